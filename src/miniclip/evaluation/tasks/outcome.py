"""Outcome of one model on one task."""

from __future__ import annotations

from typing import NamedTuple

from miniclip.evaluation.bootstrap import Scores
from miniclip.evaluation.comparison import Metric
from miniclip.evaluation.robustness import Figure
from miniclip.evaluation.zero_shot import Predictions


class Outcome(NamedTuple):
    """Metrics of one model on one task, and what comparisons and figures need.

    Attributes:
        metrics: the metrics.
        scores: per-image scores, for comparisons with other models.
        figures: by name, functions that compute the main figures from features of other forms of the same images.
        predictions: those of zero-shot classification.
    """

    metrics: list[Metric]
    scores: dict[str, Scores]
    figures: dict[str, Figure]
    predictions: Predictions | None = None
