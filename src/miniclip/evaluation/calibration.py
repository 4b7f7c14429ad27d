"""Expected calibration error (Naeini et al. 2015; Guo et al. 2017, arXiv 1706.04599).

A classifier is calibrated if, of its predictions with a confidence of 80%, 80% are right. Letters: N images, M bins.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

BINS = 15


class Bins(NamedTuple):
    """Bins of a reliability diagram; bins without images are left out. Shapes (M,)."""

    confidence: Tensor  # mean confidence
    accuracy: Tensor  # share of right predictions
    images: Tensor  # number of images


def reliability(confidence: Tensor, correct: Tensor, bins: int = BINS, equal_mass: bool = False) -> Bins:
    """Sort predictions into bins by their confidence.

    Args:
        confidence: (N,) probability of the predicted class, in 0..1.
        correct: (N,) bool.
        bins: number of bins.
        equal_mass: bins with equal numbers of images instead of bins of equal width.

    Raises:
        ValueError: the tensors are empty, or a confidence is outside 0..1 or NaN.
    """
    if not len(confidence):
        raise ValueError("confidence: found no prediction, expected at least one")
    if not bool(((confidence >= 0) & (confidence <= 1)).all()):
        raise ValueError("confidence: expected probabilities in 0..1")
    confidence, correct = confidence.double(), correct.double()
    if equal_mass:
        places = torch.arange(len(confidence), device=confidence.device)
        index = torch.empty_like(places)
        index[confidence.argsort(stable=True)] = places * bins // len(confidence)
    else:  # bins (0, 1/M], (1/M, 2/M], ...
        index = (confidence * bins).ceil().long().clamp(1, bins) - 1
    count = torch.bincount(index, minlength=bins)
    used = count > 0
    sums = [torch.bincount(index, weights, minlength=bins)[used] / count[used] for weights in (confidence, correct)]
    return Bins(sums[0], sums[1], count[used])


def calibration_error(confidence: Tensor, correct: Tensor, bins: int = BINS, equal_mass: bool = False) -> float:
    """Return the expected calibration error: the mean over images of |accuracy - confidence| of their bins.

    Args and errors are those of `reliability`.

    Returns:
        In percent, 0 is best.
    """
    means = reliability(confidence, correct, bins, equal_mass)
    return 100 * float(((means.accuracy - means.confidence).abs() * means.images).sum() / len(confidence))
