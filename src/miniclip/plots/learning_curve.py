"""Learning curve: training and validation loss, and validation recall, each with its value by chance."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

from miniclip.plots.figure import TRAIN_COLOR, VALIDATION_COLOR, finish_axes, new_figure, write_figure
from miniclip.runs.history import History, Record, thinned

DIRECTIONS = (("text_to_image", "text to image", "#54a24b"), ("image_to_text", "image to text", "#b279a2"))
MAX_POINTS = 2000  # points of the training loss: two per pixel column


def plot_learning_curve(history: History, path: str | Path, title: str = "") -> None:
    """Plot training and validation loss, and recall below them, over the steps.

    A thin dashed line in the color of each curve is its value for a model that cannot distinguish the pairs. Training
    and validation have different ones if the validation data are smaller than a training batch.

    Long runs are thinned, so the plot takes a fraction of a second: it shows the mean of several steps and their range.

    Args:
        history: records of the run.
        path: PNG file, written atomically.
        title: title of the figure.
    """
    figure = new_figure(8, 6.5)
    losses, recall = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    _plot_losses(losses, history)
    _plot_recall(recall, history)
    figure.align_ylabels()
    figure.suptitle(title, parse_math=False)
    write_figure(figure, path)


def smooth(values: list[float], span: int) -> list[float]:
    """Return the centred moving average over `span // 2` neighbours on each side, fewer at the ends.

    For example, `smooth([1, 3, 5], span=3)` is `[2, 3, 4]`.
    """
    sums = [0.0, *itertools.accumulate(values)]
    edges = [(max(0, i - span // 2), min(len(values), i + span // 2 + 1)) for i in range(len(values))]
    return [(sums[end] - sums[start]) / (end - start) for start, end in edges]


def _plot_losses(axes: Any, history: History) -> None:
    _plot_training_loss(axes, thinned([r for r in history.steps if _is_finite(r.get("loss"))], MAX_POINTS))
    if history.evaluations:
        steps = [record["step"] for record in history.evaluations]
        losses = [record["val_loss"] for record in history.evaluations]
        axes.plot(steps, losses, "o-", color=VALIDATION_COLOR, ms=4, label="validation loss")
        _plot_chance(axes, history.evaluations, "val_chance_loss", VALIDATION_COLOR, "validation")
    axes.set_ylabel("loss")
    axes.set_ylim(bottom=0)
    finish_axes(axes)
    if axes.lines:
        axes.legend(loc="best", fontsize=8, framealpha=0.85)


def _plot_chance(axes: Any, records: list[Record], name: str, color: str, kind: str) -> None:
    """Plot the loss by chance, which changes if a run is resumed with another batch size."""
    values = [record[name] for record in records]
    label = f"chance in {kind}, {values[-1]:.2f}"
    if len(set(values)) == 1:
        axes.axhline(values[0], color=color, linestyle="--", linewidth=1, label=label)
    else:
        steps = [record["step"] for record in records]
        axes.plot(steps, values, color=color, linestyle="--", linewidth=1, drawstyle="steps-pre", label=label)


def _plot_training_loss(axes: Any, points: list[Record]) -> None:
    """Plot the loss of each step, or the range of merged steps, and the smoothed loss."""
    if not points:
        return
    steps = [record["step"] for record in points]
    values = [record["loss"] for record in points]
    if any("loss_min" in record for record in points):
        low, high = ([r.get(f"loss_{end}", r["loss"]) for r in points] for end in ("min", "max"))
        axes.fill_between(steps, low, high, color=TRAIN_COLOR, alpha=0.2, linewidth=0)
    else:
        axes.plot(steps, values, color=TRAIN_COLOR, alpha=0.25, linewidth=0.8)
    axes.plot(steps, smooth(values, len(values) // 50), color=TRAIN_COLOR, linewidth=1.8, label="training loss")
    _plot_chance(axes, points, "chance_loss", TRAIN_COLOR, "training")


def _plot_recall(axes: Any, history: History) -> None:
    steps = [record["step"] for record in history.evaluations]
    for direction, name, color in DIRECTIONS:
        for k, style in (("R@1", "o-"), ("R@5", "o:")):
            values = [record[direction][k] for record in history.evaluations]
            axes.plot(
                steps, values, style, color=color, ms=4, mfc=color if k == "R@1" else "white", label=f"{name} {k}"
            )
    if history.evaluations:
        chance = history.evaluations[-1]["chance_recall"]
        for k, style in (("R@1", "--"), ("R@5", ":")):
            by_chance = chance["text_to_image"][k]
            label = f"{k} by chance, {by_chance:.2g}%"
            axes.axhline(by_chance, color="grey", linestyle=style, linewidth=1, label=label)
    axes.set_ylabel("validation recall (%)")
    axes.set_xlabel("step")
    axes.set_ylim(0, 100)
    finish_axes(axes)
    axes.legend(loc="best", fontsize=8, framealpha=0.85, ncols=2)


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
