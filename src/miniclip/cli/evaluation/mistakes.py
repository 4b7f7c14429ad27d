"""Sheet of the wrong predictions with the highest confidence."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from miniclip.data.image_types import as_image
from miniclip.evaluation.labelled.images import LabelledImages
from miniclip.evaluation.zero_shot import Predictions

MAX_MISTAKES = 24  # images of the sheet


class Mistakes:
    """Wrongly classified images as a dataset: each with its class and its prediction in place of a caption."""

    def __init__(self, images: LabelledImages, predictions: Predictions, rows: list[int]) -> None:
        self.images, self.rows = images, rows
        names = predictions.class_names
        self.captions = [
            [
                f"{names[predictions.predicted[row]]} {float(predictions.confidence[row]):.0%}, "
                f"is {names[predictions.labels[row]]}"
            ]
            for row in rows
        ]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[Any, list[str]]:
        """Return an image and its description."""
        return as_image(self.images[self.rows[index]]), self.captions[index]


def write_mistakes(images: LabelledImages, predictions: Predictions, path: Path) -> Iterator[Path]:
    """Write a sheet of the wrong predictions with the highest confidence, if there are any."""
    from miniclip.data.tools.contact_sheet import contact_sheet

    confidence = torch.where(predictions.correct, -1.0, predictions.confidence.double())
    rows = confidence.argsort(descending=True, stable=True)[: min(MAX_MISTAKES, int((~predictions.correct).sum()))]
    path.unlink(missing_ok=True)  # the sheet of an earlier evaluation
    if len(rows):
        contact_sheet(Mistakes(images, predictions, rows.tolist()), path, count=len(rows))
        yield path
