"""`miniclip eval`: retrieval, zero-shot classification and linear probes, of one or several models."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from miniclip.cli.parsing import add_command

TASKS = ("retrieval", "zero-shot", "probe", "few-shot", "all")
EPILOG = """examples:
  miniclip eval runs/shapes                          the best model of a run, on the run's validation data
  miniclip eval runs/shapes/last --data photos --split test
  miniclip eval runs/shapes vit_b_16 --task zero-shot --data animals --out figures
                                                     animals/cat/*.jpg, animals/dog/*.jpg, ...
  miniclip eval vit_b_16 --task probe --data "torchvision:CIFAR10?root=data" --split test
  miniclip eval vit_b_16 --task few-shot --data "food.parquet?label=dish" --split test --shots 1 4 16 --seeds 5
  miniclip eval runs/shapes --task all --data shapes --split test --json results.json
  miniclip eval runs/products --against vit_b_32 --old-data flickr30k:val
                                                     what fine-tuning gained on the run's data, and lost on others
  miniclip eval runs/shapes --task zero-shot --data shapes --corruptions --out figures

Brackets hold a 95% interval (bootstrap over images); ± is the standard deviation over seeds. A star marks a difference
to the first model with p < 0.05 (paired bootstrap).
"""


def add(commands: Any) -> None:
    """Add the command."""
    text = "measure retrieval, zero-shot classification and linear probes"
    evaluate = add_command(commands, "eval", eval_command, text, EPILOG)
    evaluate.add_argument(
        "checkpoints", nargs="+", metavar="MODEL", help="a run, a checkpoint, a name or a Hub repository"
    )
    evaluate.add_argument("--task", choices=TASKS, help="(default retrieval; with --against, that of the data)")
    evaluate.add_argument(
        "--against", metavar="MODEL", help="the model before fine-tuning: differences to it, with their intervals"
    )
    evaluate.add_argument(
        "--old-data",
        metavar="DATA[:SPLIT]",
        help="with --against: data of what the model could do before, with captions or classes",
    )
    evaluate.add_argument(
        "--data",
        help="for retrieval as in train (default: the data of the run); for the other tasks a folder with a folder per "
        "class, parquet files or a folder of save_to_disk with class labels, torchvision:NAME?root=FOLDER, or shapes",
    )
    evaluate.add_argument(
        "--split", default="val", help="train, val or test (default val), for retrieval also all; probes train on train"
    )
    evaluate.add_argument("--templates", help="file of prompt templates: .json, .py or one a line")
    evaluate.add_argument(
        "--corruptions",
        action="store_true",
        help="also retrieval, zero-shot classification and probes under 12 corruptions at 5 severities",
    )
    evaluate.add_argument(
        "--shots",
        type=int,
        nargs="+",
        metavar="K",
        help="training images per class of few-shot probes (default: 1 2 4 8 16, up to the smallest class)",
    )
    evaluate.add_argument("--seeds", type=int, metavar="N", help="draws of few-shot probes (default 3)")
    evaluate.add_argument("--out", help="folder for figures")
    evaluate.add_argument("--json", help="file for the metrics")
    evaluate.add_argument("--csv", help="file for the metrics")
    evaluate.add_argument("--cache", help="folder in which image features are kept for other evaluations")
    evaluate.add_argument("--device", help="cpu, cuda or mps (default: the GPU if there is one)")
    evaluate.add_argument(
        "--dtype",
        choices=("auto", "float32", "bfloat16", "float16"),
        help="precision of the weights; auto: bfloat16 if the device has hardware for it (default: as loaded)",
    )


def eval_command(
    checkpoints: list[str],
    device: str | None,
    dtype: Any,
    out: str | None,
    json: str | None,
    csv: str | None,
    cache: str | None,
    against: str | None,
    old_data: str | None,
    task: str | None,
    **options: Any,
) -> None:
    """Run `miniclip eval`."""
    import miniclip
    from miniclip.cli.evaluation.files import Targets
    from miniclip.cli.evaluation.measuring import Evaluation, merged
    from miniclip.cli.finetuning.against import compared_sets
    from miniclip.evaluation.comparison import table
    from miniclip.runtime.devices import select_device

    targets = Targets(json, csv, out, cache)
    targets.require()
    place = select_device(device)
    if options["data"] is None and not (Path(checkpoints[0]).exists() or checkpoints[0] in miniclip.list_models()):
        miniclip.load(checkpoints[0], device=place, dtype=dtype)  # a wrong name has a better message than missing data
    options["progress"] = sys.stderr.isatty()
    if against is None:
        if old_data is not None:
            raise ValueError("--old-data is for --against MODEL, the model before fine-tuning; add it, or use --data")
        evaluations = [Evaluation(task or "retrieval", checkpoints[0], **options)]
    else:
        evaluations = compared_sets(checkpoints[0], old_data=old_data, task=task, **options)
        checkpoints = [against, *checkpoints]
    for checkpoint in checkpoints:
        model = miniclip.load(checkpoint, device=place, dtype=dtype)
        for evaluation in evaluations:
            evaluation.add(checkpoint, model, cache)
    evaluation = merged(evaluations)
    print(table(evaluation.results, differences=against is not None))
    for path in targets.write(evaluation):
        print(f"wrote {path}")


def format_recalls(record: dict[str, Any], data: Any) -> str:
    """Format the recalls of both directions in one line, each with the R@1 of a random ranking."""
    chance = 100 / len(data)  # in both directions: captions per image cancel
    parts = []
    for direction in ("text_to_image", "image_to_text"):
        recalls = ", ".join(f"{name} {value:.1f}" for name, value in record[direction].items())
        parts.append(f"{direction.replace('_', ' ')} {recalls} (R@1 by chance {chance:.2f})")
    return "; ".join(parts)
