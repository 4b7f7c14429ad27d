"""`miniclip classify`: zero-shot classification of images."""

from __future__ import annotations

import json as json_format
from pathlib import Path
from typing import Any

from miniclip.cli.parsing import add_command

EPILOG = """examples:
  miniclip classify vit_b_16 cat.jpg dog.jpg --labels cat dog
  miniclip classify runs/mine photos/*.jpg --labels cat dog --template "a drawing of a {}" --json
"""


def add(commands: Any) -> None:
    """Add the command."""
    classify = add_command(commands, "classify", classify_command, "classify images by text, without training", EPILOG)
    classify.add_argument("checkpoint", help="a name, a run, a checkpoint directory or file, or a Hub repository")
    classify.add_argument("images", nargs="+", help="image files")
    classify.add_argument("--labels", nargs="+", required=True, help="class names")
    classify.add_argument("--template", action="append", help="prompt with {} for the class name; may be repeated")
    classify.add_argument("--device", help="cpu, cuda or mps (default: the GPU if there is one)")
    classify.add_argument("--json", action="store_true", help="print JSON instead of a table")


def classify_command(
    checkpoint: str, images: list[str], labels: list[str], template: list[str] | None, device: str | None, json: bool
) -> None:
    """Run `miniclip classify`."""
    import miniclip
    from miniclip.evaluation.labelled.images import checked_class_names
    from miniclip.runtime.devices import select_device

    for image in map(Path, images):
        if not image.is_file():
            reason = f"a folder; name its images, as in {image}/*.jpg" if image.is_dir() else "no such image file"
            raise FileNotFoundError(f"{image}: {reason}")
    model = miniclip.load(checkpoint, device=select_device(device))
    names = checked_class_names(labels, "--labels")
    rows = model.classify(images, names, template).tolist()
    print(_as_json(images, names, rows) if json else _as_table(images, names, rows))


def _as_json(images: list[str], labels: list[str], rows: list[list[float]]) -> str:
    records = [
        {"image": image, "label": labels[row.index(max(row))], "probabilities": dict(zip(labels, row, strict=True))}
        for image, row in zip(images, rows, strict=True)
    ]
    return json_format.dumps(records, indent=2, ensure_ascii=False)


def _as_table(images: list[str], labels: list[str], rows: list[list[float]]) -> str:
    """One line per image: its name, and the three most probable labels."""
    width = max(map(len, images))
    lines = []
    for image, row in zip(images, rows, strict=True):
        best = sorted(zip(row, labels, strict=True), reverse=True)[:3]
        lines.append(f"{image.ljust(width)}  " + ", ".join(f"{label} {value:.1%}" for value, label in best))
    return "\n".join(lines)
