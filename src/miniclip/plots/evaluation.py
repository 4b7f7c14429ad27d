"""Figures of an evaluation: bars with confidence intervals, a confusion matrix, and a reliability diagram.

Letters: C classes, M bins.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from miniclip.evaluation.calibration import reliability
from miniclip.evaluation.comparison import Result
from miniclip.plots.figure import TRAIN_COLOR, VALIDATION_COLOR, add_legend_below, finish_axes, new_figure, write_figure

MAX_LABELS = 40  # class names on an axis; more would overlap
MAX_CELL_NUMBERS = 15  # classes up to which each cell of a confusion matrix shows its number


def plot_bars(results: Sequence[Result], path: str | Path) -> None:
    """Draw the metrics in percent of one task as bars with their intervals, one color per model."""
    names = [metric.name for metric in results[0].metrics if metric.low is not None]
    figure = new_figure(max(5.0, 1.1 * len(names) * max(2, len(results)) ** 0.5 + 1), 4.0)
    axes = figure.add_subplot()
    width = 0.8 / len(results)
    for number, result in enumerate(results):
        metrics = [metric for metric in result.metrics if metric.name in names]
        x = [position + (number - (len(results) - 1) / 2) * width for position in range(len(names))]
        low = [metric.value - float(metric.low or 0) for metric in metrics]
        high = [float(metric.high or 0) - metric.value for metric in metrics]
        values = [metric.value for metric in metrics]
        axes.bar(x, values, 0.92 * width, yerr=[low, high], capsize=3, label=result.model, color=f"C{number}")
    axes.set_xticks(range(len(names)), [name.replace("_", " ") for name in names])
    axes.set(ylim=(0, 102), ylabel="percent")
    axes.set_title(f"{results[0].task}, with 95% intervals", fontsize=10, parse_math=False)
    finish_axes(axes)
    add_legend_below(figure)  # bars may fill the axes
    write_figure(figure, path)


def plot_confusion(matrix: Tensor, class_names: Sequence[str], path: str | Path, title: str = "") -> None:
    """Draw a confusion matrix (C, C), each row as shares of its class.

    Args:
        matrix: images of class i (row) predicted as class j (column).
        class_names: C names.
        path: PNG file, written atomically.
        title: title of the figure.
    """
    C = len(class_names)
    side = min(12.0, max(4.5, 2.5 + 0.35 * C))
    figure = new_figure(side + 1, side)
    axes = figure.add_subplot()
    shares = matrix.double() / matrix.sum(dim=1, keepdim=True).clamp_min(1)
    heat_map = axes.imshow(shares.numpy(), cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
    axes.set(xlabel="predicted class", ylabel="class")
    axes.set_title(title, parse_math=False)
    if C <= MAX_LABELS:
        for axis, rotation in ((axes.xaxis, 90), (axes.yaxis, 0)):
            axis.set_ticks(range(C), class_names, rotation=rotation, parse_math=False)
    if C <= MAX_CELL_NUMBERS:
        for row, column in torch.nonzero(matrix).tolist():
            color = "white" if shares[row, column] > 0.5 else "black"
            axes.text(column, row, int(matrix[row, column]), ha="center", va="center", color=color, fontsize=8)
    figure.colorbar(heat_map, ax=axes, label="share of the class", shrink=0.8)
    write_figure(figure, path)


def plot_reliability(confidence: Tensor, correct: Tensor, path: str | Path, title: str = "") -> None:
    """Draw accuracy against confidence in bins of equal width; a calibrated model lies on the diagonal.

    Args:
        confidence: (N,) probability of the predicted class.
        correct: (N,) bool.
        path: PNG file, written atomically.
        title: title of the figure.
    """
    figure = new_figure(5.0, 5.4)
    axes, below = figure.subplots(2, 1, sharex=True, gridspec_kw={"height_ratios": (4, 1)})
    bins = reliability(confidence, correct)
    axes.plot([0, 1], [0, 1], color="gray", linestyle="--", linewidth=1, label="calibrated")
    axes.plot(bins.confidence, bins.accuracy, "o-", color=TRAIN_COLOR, label="model", clip_on=False, zorder=3)
    for x, y in zip(bins.confidence.tolist(), bins.accuracy.tolist(), strict=True):
        axes.plot([x, x], [x, y], color=VALIDATION_COLOR, alpha=0.5)
    axes.set(ylabel="accuracy", xlim=(0, 1), ylim=(0, 1))
    axes.set_title(title, parse_math=False)
    axes.legend(frameon=False)
    below.hist(confidence.numpy(), bins=15, range=(0, 1), color=TRAIN_COLOR)
    below.set(xlabel="confidence", ylabel="images")
    for part in (axes, below):
        finish_axes(part)
    write_figure(figure, path)
