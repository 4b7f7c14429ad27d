"""Figures under corruption: for each corruption and severity, and the drop against clean images.

Letters: N images, D features.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from statistics import fmean
from typing import Any, NamedTuple

from torch import Tensor

from miniclip.evaluation.corruptions import CORRUPTIONS, SEVERITIES, CorruptedImages
from miniclip.evaluation.features import image_features
from miniclip.inference.batching import progress_bar
from miniclip.inference.kept_pixels import KeptPixels

Figure = Callable[[Tensor], float]  # features (N, D) of the images of a dataset to a percentage


class Robustness(NamedTuple):
    """One figure of clean and of corrupted images, in percent."""

    figure: str  # its name, such as "top1"
    clean: float
    corrupted: dict[str, list[float]]  # by corruption, at the severities 1 to 5

    def mean(self, corruption: str | None = None) -> float:
        """Return the mean over the severities of one corruption, or of all."""
        rows = self.corrupted.values() if corruption is None else [self.corrupted[corruption]]
        return fmean(value for row in rows for value in row)

    def at(self, severity: int) -> float:
        """Return the mean over the corruptions at one severity."""
        return fmean(row[SEVERITIES.index(severity)] for row in self.corrupted.values())


def robustness(
    model: Any, images: Sequence[Any], figures: Mapping[str, Figure], *, progress: bool = False
) -> list[Robustness]:
    """Compute figures under all corruptions and severities. Each corrupted image is encoded once for all figures.

    Args:
        model: a CLIPModel or `CachedEncoder`, which keeps the features of the clean images.
        images: N images of a dataset.
        figures: by name, functions of the features (N, D).
        progress: show a progress bar.
    """
    clean = image_features(model, images, progress=progress)
    kept = KeptPixels(images).of(model)
    values: dict[str, dict[str, list[float]]] = {name: {kind: [] for kind in CORRUPTIONS} for name in figures}
    with progress_bar(len(CORRUPTIONS) * len(SEVERITIES) * len(images), " images", progress, "corruptions") as advance:
        for kind in CORRUPTIONS:
            for severity in SEVERITIES:
                features = image_features(model, CorruptedImages(kept, model.preprocess, kind, severity))
                for name, figure in figures.items():
                    values[name][kind].append(figure(features))
                advance(len(images))
    return [Robustness(name, figure(clean), values[name]) for name, figure in figures.items()]
