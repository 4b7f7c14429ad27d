"""`miniclip eval`: retrieval recall of a model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from miniclip.cli.parsing import add_command
from miniclip.data.skipping import MAX_SKIP_FRACTION

NEEDS_DATA = "{}: does not belong to a run, whose data would be used: add --data, as in `--data photos.csv`"

EPILOG = """examples:
  miniclip eval runs/shapes                          the best model of a run, on the run's validation data
  miniclip eval runs/shapes/last --data photos --split test
"""


def add(commands: Any) -> None:
    """Add the command."""
    evaluate = add_command(commands, "eval", eval_command, "measure the retrieval recall of a model", EPILOG)
    evaluate.add_argument("checkpoint", help="a run or a checkpoint directory")
    evaluate.add_argument("--data", help="as in train (default: the data of the run)")
    evaluate.add_argument("--split", default="val", help="train, val, test or all (default val)")
    evaluate.add_argument("--device", help="cpu, cuda or mps (default: the GPU if there is one)")
    evaluate.add_argument(
        "--dtype",
        choices=("auto", "float32", "bfloat16", "float16"),
        help="precision of the weights; auto: bfloat16 if the device has hardware for it (default: as loaded)",
    )


def eval_command(checkpoint: str, data: str | None, split: Any, device: str | None, dtype: Any) -> None:
    """Run `miniclip eval`."""
    import miniclip
    from miniclip.data import open_data
    from miniclip.runtime.devices import select_device

    place = select_device(device)
    options: dict[str, Any] = {}
    if data is None and (Path(checkpoint).exists() or checkpoint in miniclip.list_models()):  # before a download
        data, options = data_of_run(checkpoint)
    model = miniclip.load(checkpoint, device=place, dtype=dtype)
    if data is None:
        raise ValueError(NEEDS_DATA.format(checkpoint))
    dataset = open_data(data, split, **options)
    captions = sum(map(len, dataset.captions))
    print(f"{checkpoint} on {data}, {split}: {len(dataset):,} images, {captions:,} captions")
    print(format_recalls(miniclip.evaluation.retrieval(model, dataset), dataset))


def data_of_run(checkpoint: str) -> tuple[str, dict[str, Any]]:
    """Return the dataset of the run that a checkpoint belongs to, and its treatment of unreadable images.

    Raises:
        ValueError: it belongs to no run.
    """
    from miniclip.runs.directory import read_run

    run = Path(checkpoint) if is_run(Path(checkpoint)) else Path(checkpoint).parent
    if not (run / "config.json").is_file() or not is_run(run):
        raise ValueError(NEEDS_DATA.format(checkpoint))
    saved = read_run(run)
    return data_spec_of(str(run), saved), reading_options_of(saved["train"])


def is_run(path: Path) -> bool:
    """Return whether a directory is a run directory with a checkpoint."""
    return (path / "best").exists() or (path / "last").exists()


def data_spec_of(run: str, saved: dict[str, Any]) -> str:
    """Return the dataset spec that a run directory has saved."""
    if "data" not in saved["about"]:
        raise ValueError(
            f"{run} was started from Python and has no path of its data: use Trainer.resume, or add --data"
        )
    return str(saved["about"]["data"])


def reading_options_of(train: dict[str, Any]) -> dict[str, Any]:
    """Return a run's treatment of rows and images that cannot be read."""
    return {
        "on_error": train.get("on_error", "raise"),
        "max_skip_fraction": train.get("max_skip_fraction", MAX_SKIP_FRACTION),
    }


def format_recalls(record: dict[str, Any], data: Any) -> str:
    """Format the recalls of both directions in one line, each with the R@1 of a random ranking."""
    chance = 100 / len(data)  # in both directions: captions per image cancel
    parts = []
    for direction in ("text_to_image", "image_to_text"):
        recalls = ", ".join(f"{name} {value:.1f}" for name, value in record[direction].items())
        parts.append(f"{direction.replace('_', ' ')} {recalls} (R@1 by chance {chance:.2f})")
    return "; ".join(parts)
