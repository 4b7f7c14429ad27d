"""Bootstrap over images: confidence intervals and paired differences of means (Efron 1979; Koehn 2004).

Images are drawn with replacement, each with all its captions: the captions of one image are not independent.
Letters: N images, K metrics.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from miniclip.inference.batching import progress_bar

DRAWS = 1000
LEVEL = 0.95


class Scores(NamedTuple):
    """Per-image sums of which a metric is the ratio: sum of `hits` over sum of `counts`."""

    hits: Tensor  # (N, K) float64, the metric's numerator for each image
    counts: Tensor  # (N,) float64, its denominator: 1 for each image, or its number of captions


class Difference(NamedTuple):
    """Difference of two models on the same images."""

    value: float
    low: float
    high: float
    p: float  # two-sided p-value of equal means, at least 1 / draws


def means(scores: Scores) -> Tensor:
    """Return the metrics over all images: (K,)."""
    return scores.hits.sum(dim=0) / scores.counts.sum()


def intervals(
    scores: Scores, *, level: float = LEVEL, draws: int = DRAWS, seed: int = 0, progress: bool = False
) -> Tensor:
    """Return percentile intervals of the metrics.

    Args:
        scores: per-image sums.
        level: coverage, in 0..1.
        draws: resampled datasets.
        seed: seed of the resampling.
        progress: show a progress bar.

    Returns:
        (K, 2) lower and upper ends.
    """
    weights = _weights(len(scores.counts), draws, seed, progress)
    drawn = torch.stack([_resampled(scores, each) for each in weights])  # (draws, K)
    tail = (1 - level) / 2
    return torch.quantile(drawn, torch.tensor([tail, 1 - tail], dtype=drawn.dtype), dim=0).T


def paired_differences(
    first: Scores,
    second: Scores,
    *,
    level: float = LEVEL,
    draws: int = DRAWS,
    seed: int = 0,
    progress: bool = False,
) -> list[Difference]:
    """Compare two models that were scored on the same images, in the same order (paired bootstrap).

    Returns:
        For each metric, second minus first, with its interval and p-value.

    Raises:
        ValueError: the scores are of different images.
    """
    if first.hits.shape != second.hits.shape or not torch.equal(first.counts, second.counts):
        raise ValueError(
            f"scores of {len(first.counts)} and {len(second.counts)} images; a paired comparison needs the same images"
        )
    drawn = torch.stack(
        [
            _resampled(second, weights) - _resampled(first, weights)
            for weights in _weights(len(first.counts), draws, seed, progress)
        ]
    )  # (draws, K)
    tail = (1 - level) / 2
    low, high = torch.quantile(drawn, torch.tensor([tail, 1 - tail], dtype=drawn.dtype), dim=0)
    sides = torch.minimum((drawn <= 0).double().mean(dim=0), (drawn >= 0).double().mean(dim=0))
    p = (2 * sides).clamp(1 / draws, 1)
    values = means(second) - means(first)
    return [Difference(*map(float, row)) for row in zip(values, low, high, p, strict=True)]


def _weights(images: int, draws: int, seed: int, progress: bool) -> Iterator[Tensor]:
    """Yield, for each resampled dataset, how often each image was drawn: (N,)."""
    generator = torch.Generator().manual_seed(seed)
    with progress_bar(draws, " draws", progress, "bootstrap", delay=1) as advance:
        for _ in range(draws):
            yield torch.bincount(torch.randint(images, (images,), generator=generator), minlength=images).double()
            advance(1)


def _resampled(scores: Scores, weights: Tensor) -> Tensor:
    return (weights @ scores.hits) / (weights @ scores.counts)
