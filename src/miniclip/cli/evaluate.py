"""`miniclip eval`: measure a model's retrieval recall."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from miniclip.cli.parsing import add_command
from miniclip.data.skipping import MAX_SKIP_FRACTION

EPILOG = """examples:
  miniclip eval runs/shapes                          the best model of a run, on the data it was validated with
  miniclip eval runs/shapes/last --data photos --split test
"""


def add(commands: Any) -> None:
    """Add the command."""
    evaluate = add_command(commands, "eval", eval_command, "measure a model's retrieval recall", EPILOG)
    evaluate.add_argument("checkpoint", help="a run, or a checkpoint directory")
    evaluate.add_argument("--data", help="as in train (default: the data of the run)")
    evaluate.add_argument("--split", default="val", help="train, val, test or all (default val)")
    evaluate.add_argument("--device", help="cpu, cuda, mps (default: the GPU where there is one)")
    evaluate.add_argument(
        "--dtype",
        choices=("auto", "float32", "bfloat16", "float16"),
        help="precision of the weights; auto: bfloat16 if the device has hardware for it (default: as they are opened)",
    )


def eval_command(checkpoint: str, data: str | None, split: str, device: str | None, dtype: str | None) -> None:
    """`miniclip eval`."""
    import torch

    import miniclip
    from miniclip.data import open_data
    from miniclip.runs.directory import read_run

    model = miniclip.load(checkpoint, device=device or ("cuda" if torch.cuda.is_available() else "cpu"), dtype=dtype)
    rule = {}
    if data is None:
        run = (
            checkpoint
            if (Path(checkpoint) / "best").exists() or (Path(checkpoint) / "last").exists()
            else str(Path(checkpoint).parent)
        )
        settings = read_run(run)
        data, rule = data_of(run, settings), rule_of(settings["train"])
    pairs = open_data(data, split, **rule)
    print(f"{checkpoint} on {data}, {split}: {len(pairs):,} pictures, {sum(map(len, pairs.captions)):,} captions")
    print(in_words(miniclip.evaluation.retrieval(model, pairs), pairs))


def data_of(run: str, settings: dict[str, Any]) -> str:
    """What the data of a run are called on the command line."""
    if "data" not in settings["about"]:
        raise ValueError(
            f"{run} was started from Python, and does not say where its data are: use Trainer.resume, or --data"
        )
    return str(settings["about"]["data"])


def rule_of(train: dict[str, Any]) -> dict[str, Any]:
    """What a run does with rows and pictures that cannot be used."""
    return {
        "on_error": train.get("on_error", "raise"),
        "max_skip_fraction": train.get("max_skip_fraction", MAX_SKIP_FRACTION),
    }


def in_words(record: dict[str, Any], data: Any) -> str:
    """Recalls in a line, with what chance gives."""
    captions = sum(map(len, data.captions))
    own = captions / len(data)
    parts = [
        f"{name} "
        + ", ".join(f"{k} {value:.1f}" for k, value in record[way].items())
        + f" (R@1 by chance {chance:.2f})"
        for way, name, chance in (
            ("text_to_image", "text to image", 100 / len(data)),
            ("image_to_text", "image to text", 100 * own / captions),
        )
    ]
    return "; ".join(parts)
