"""`miniclip interpolate`: a model between a pretrained and a fine-tuned one, or the mean of several."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from miniclip.cli.parsing import add_command

EPILOG = """examples:
  miniclip interpolate vit_b_32 runs/products --alpha 0.5 -o models/products
  miniclip interpolate vit_b_32 runs/products --alpha auto --data products.csv:val --old-data flickr30k:val \\
      -o models/products                             the best on the new data that loses at most 1 point on the old
  miniclip interpolate runs/a runs/b runs/c -o models/soup       the mean of several runs from one start

auto measures alpha 0, 0.1, …, 1 on validation data: mean R@1 of both directions for data with captions, top-1 accuracy
for data with classes. It takes the alpha with the greatest score on the new data among those that lose at most
--allow-loss points on the old data, and writes the table and the curve, interpolation.json and interpolation.png.
"""


def add(commands: Any) -> None:
    """Add the command."""
    text = "average the weights of models, such as a pretrained and a fine-tuned one"
    parser = add_command(commands, "interpolate", interpolate_command, text, EPILOG)
    parser.add_argument(
        "models", nargs="+", metavar="MODEL", help="the pretrained and the fine-tuned model, or several"
    )
    parser.add_argument(
        "--alpha", type=alpha_or_auto, metavar="X|auto", help="the share of the second of two models, in 0..1, or auto"
    )
    parser.add_argument("-o", "--output", required=True, metavar="DIR", help="directory for the checkpoint")
    parser.add_argument("--overwrite", action="store_true", help="replace files in DIR")
    parser.add_argument("--data", metavar="DATA[:SPLIT]", help="with auto: new data (default: those of the run, val)")
    parser.add_argument("--old-data", metavar="DATA[:SPLIT]", help="with auto: data of what the model could do before")
    parser.add_argument(
        "--allow-loss", type=float, metavar="X", help="with auto: points that may be lost on the old data (default 1)"
    )
    parser.add_argument("--device", help="cpu, cuda or mps, for auto (default: the GPU if there is one)")


def alpha_or_auto(text: str) -> float | str:
    """Return a number, or "auto"."""
    return text if text == "auto" else float(text)


def interpolate_command(
    models: list[str],
    alpha: float | str | None,
    output: str,
    overwrite: bool,
    data: str | None,
    old_data: str | None,
    allow_loss: float | None,
    device: str | None,
) -> None:
    """Run `miniclip interpolate`."""
    import miniclip
    from miniclip.utils.target import require_target

    if len(models) != 2 and (alpha is not None or len(models) < 2):
        raise ValueError(f"found {len(models)} models; --alpha needs two, and their mean, without --alpha, two or more")
    if alpha != "auto" and (data, old_data, allow_loss) != (None, None, None):
        raise ValueError("--data, --old-data and --allow-loss choose alpha: add --alpha auto, or remove them")
    target = require_target(output, overwrite)
    if alpha == "auto":
        allowed = 1.0 if allow_loss is None else allow_loss
        chosen_between(models[0], models[1], target, data, old_data, allowed, device)
    else:
        loaded = [miniclip.load(name) for name in models] if len(models) > 2 else load_pair(*models)
        mean = miniclip.soup(loaded) if alpha is None else miniclip.interpolate(loaded[0], loaded[1], float(alpha))
        for name in ("interpolation.json", "interpolation.png"):  # would describe another choice of alpha
            (target / name).unlink(missing_ok=True)
        miniclip.save(mean, target, overwrite=overwrite)
    print(f"wrote {target}    in Python: miniclip.load({str(target)!r})")


def load_pair(start: str, tuned: str, **options: Any) -> list[Any]:
    """Load a pretrained and a fine-tuned model, the former with the image size and the context length of the latter.

    `miniclip finetune --image-size` and `--context-length` start from the same resized positions.
    """
    import miniclip

    a, b = (miniclip.load(name, **options) for name in (start, tuned))
    sizes = [{"image_size": c.image.image_size, "context_length": c.text.context_length} for c in (a.config, b.config)]
    if sizes[0] != sizes[1]:
        changed: dict[str, Any] = {name: size for name, size in sizes[1].items() if size != sizes[0][name]}
        a = miniclip.load(start, **options, **changed)
    return [a, b]


def chosen_between(
    start: str, tuned: str, target: Path, data: str | None, old_data: str | None, allowed: float, device: str | None
) -> None:
    """Measure the models between two, write the table and the curve, and save the chosen model."""
    import miniclip
    from miniclip.checkpoints.native import write_json
    from miniclip.evaluation.comparison import aligned
    from miniclip.finetuning.interpolation import interpolate
    from miniclip.finetuning.sweep import as_record, choose, sweep
    from miniclip.plots.interpolation import plot_interpolation
    from miniclip.runtime.devices import select_device

    if old_data is None:
        raise ValueError("--alpha auto needs --old-data: data that show what fine-tuning lost, as flickr30k:val")
    if not allowed >= 0:
        raise ValueError(f"--allow-loss is {allowed}; expected percentage points, at least 0")
    (new_name, new), (old_name, old) = measure_of(tuned, data), measure_of(tuned, old_data)
    place = select_device(device)
    a, b = load_pair(start, tuned, device=place)
    points = sweep(a, b, new, old)
    chosen = choose(points, allowed)
    rows = [["alpha", f"new: {new_name}", "change", f"old: {old_name}", "change"]]
    rows += [[f"{p.alpha:g}", *cells(p.new), *cells(p.old)] for p in points]
    print(aligned(rows))
    points_lost = f"{allowed:g} point{'' if allowed == 1 else 's'}"
    print(
        f"alpha {chosen.alpha:g}: the greatest score on the new data of those that lose at most {points_lost} on the "
        "old data. Both are validation data: report the figures of test data"
    )
    miniclip.save(interpolate(a, b, chosen.alpha), target, overwrite=True)
    record = {"models": [start, tuned], "new": new_name, "old": old_name, "allowed_loss": allowed}
    write_json(target / "interpolation.json", record | {"alpha": chosen.alpha, "sweep": [as_record(p) for p in points]})
    plot_interpolation(points, chosen, target / "interpolation.png", f"new: {new_name}", f"old: {old_name}")
    print(f"wrote {target / 'interpolation.json'} and {target / 'interpolation.png'}")


def cells(metric: Any) -> list[str]:
    """Format a score with its interval, and its difference to alpha 0."""
    of = metric.difference
    value = f"{metric.value:.1f} [{metric.low:.1f}, {metric.high:.1f}]"
    return [value, f"{of.value:+.1f} [{of.low:+.1f}, {of.high:+.1f}]"]


def measure_of(run: str, data: str | None) -> tuple[str, Any]:
    """Return the name and the measure of a score on data; None: those of a run.

    Raises:
        ValueError: the data are test or training data.
    """
    from miniclip.cli.finetuning.against import spec_and_split, task_of
    from miniclip.cli.run_data import data_of_run
    from miniclip.data import open_data
    from miniclip.evaluation import open_labelled
    from miniclip.finetuning.sweep import retrieval_measure, zero_shot_measure

    spec: str
    split: Any
    spec, reading = (data, {}) if data else data_of_run(run)
    spec, split = spec_and_split(spec, "val")
    if split in ("test", "train"):
        reason = "test figures stay fair" if split == "test" else "it does not prefer what was memorized"
        raise ValueError(f"{spec}:{split}: alpha is chosen on validation data, so that {reason}: use :val")
    name = f"{Path(spec.partition('?')[0]).name} {split}"
    if task_of(spec, split, reading) == "retrieval":
        return f"mean R@1, {name}", retrieval_measure(open_data(spec, split, **reading))
    labelled = open_labelled(spec, split)
    if len(labelled) != 1:
        raise ValueError(f"{spec}: has {len(labelled)} kinds of classes; choose one, as {spec}:{next(iter(labelled))}")
    return f"top-1, {name}", zero_shot_measure(next(iter(labelled.values())))
