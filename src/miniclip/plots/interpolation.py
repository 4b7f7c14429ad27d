"""Curve of the models between a pretrained and a fine-tuned one: score on new data against score on old data."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from miniclip.evaluation.comparison import Metric
from miniclip.finetuning.sweep import Point
from miniclip.plots.figure import POSITIVE_COLOR, TRAIN_COLOR, finish_axes, new_figure, write_figure


def plot_interpolation(
    points: Sequence[Point], chosen: Point, path: str | Path, new: str = "new data", old: str = "old data"
) -> None:
    """Plot the curve, with the 95% interval of each score, and mark the chosen model.

    Args:
        points: from `finetuning.sweep.sweep`.
        chosen: one of them.
        path: PNG file, written atomically.
        new: label of the score on the new data.
        old: label of the score on the old data.
    """
    figure = new_figure(6.5, 5)
    axes = figure.subplots()
    x, y = [point.old.value for point in points], [point.new.value for point in points]
    ends = {"xerr": _lengths([point.old for point in points]), "yerr": _lengths([point.new for point in points])}
    axes.errorbar(x, y, **ends, fmt="o-", ms=4, color=TRAIN_COLOR, ecolor="#c6d4e3", capsize=2)
    for alpha, *place in zip([point.alpha for point in points], x, y, strict=True):
        axes.annotate(f"{alpha:g}", place, xytext=(5, 5), textcoords="offset points", fontsize=8)
    label = f"chosen: alpha {chosen.alpha:g}"
    axes.plot(chosen.old.value, chosen.new.value, "*", ms=16, color=POSITIVE_COLOR, label=label)
    axes.set_xlabel(f"{old}, percent", parse_math=False)
    axes.set_ylabel(f"{new}, percent", parse_math=False)
    axes.set_title("from the pretrained model (alpha 0) to the fine-tuned one (alpha 1)", fontsize=10)
    axes.legend(loc="best", fontsize=9)
    finish_axes(axes)
    write_figure(figure, path)


def _lengths(metrics: Sequence[Metric]) -> list[list[float]]:
    """Return the lengths of the intervals below and above the values."""
    below = [metric.value - (metric.value if metric.low is None else metric.low) for metric in metrics]
    above = [(metric.value if metric.high is None else metric.high) - metric.value for metric in metrics]
    return [below, above]
