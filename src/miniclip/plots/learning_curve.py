"""The learning curve as a picture. matplotlib is imported when it draws: no window, no global state."""

from __future__ import annotations

import itertools
import math
import warnings
from pathlib import Path
from typing import Any

from miniclip.runs.history import History, Record, thinned
from miniclip.utils.atomic import write_atomically

TRAIN, VALIDATION, TO_IMAGE, TO_TEXT = "#4c78a8", "#e45756", "#54a24b", "#b279a2"
POINTS = 2000  # of the training loss that are drawn: two in a column of the picture


def new_figure(width: float, height: float, arranged: bool = True) -> Any:
    """A figure of so many inches that nobody else knows of, of 120 pixels an inch.

    Arranged by itself, which can take longer than drawing it; or by `subplots_adjust`, where what lies where is known.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=120, layout="constrained" if arranged else None)
    FigureCanvasAgg(figure)
    return figure


def write_figure(figure: Any, path: str | Path) -> None:
    """Write a figure as a PNG, atomically. Letters that the font lacks become boxes, without a word."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        write_atomically(Path(path), lambda temporary: figure.savefig(temporary, format="png"))


def learning_curve(history: History, path: str | Path, title: str = "") -> None:
    """Draw training and validation loss, and the recall below them, over the steps; written atomically as a PNG.

    However long the run, it takes a fraction of a second: of many steps the mean is drawn, and their range behind it.

    Args:
        history: what the run has logged.
        path: the picture.
        title: above it.
    """
    figure = new_figure(8, 6.5)
    losses, recall = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    _draw_losses(losses, history)
    _draw_recall(recall, history)
    figure.suptitle(title)
    write_figure(figure, path)


def smooth(values: list[float], span: int) -> list[float]:
    """The mean of each value and its neighbours, `span // 2` on either side, or as many as there are.

    Centred, so that it does not lag behind: `smooth([1, 3, 5], span=3)` is `[2, 3, 4]`.
    """
    sums = [0.0, *itertools.accumulate(values)]
    edges = [(max(0, i - span // 2), min(len(values), i + span // 2 + 1)) for i in range(len(values))]
    return [(sums[end] - sums[start]) / (end - start) for start, end in edges]


def _draw_losses(axes: Any, history: History) -> None:
    _draw_training(axes, thinned([r for r in history.steps if _finite(r.get("loss"))], POINTS))
    if history.evaluations:
        at = [record["step"] for record in history.evaluations]
        axes.plot(
            at, [r["val_loss"] for r in history.evaluations], "o-", color=VALIDATION, ms=4, label="validation loss"
        )
    if history.steps:
        log_n = history.steps[-1]["log_n"]
        label = f"log N = {log_n:.2f}, knowing nothing (N = {round(math.exp(log_n))})"
        axes.axhline(log_n, color="grey", linestyle="--", linewidth=1, label=label)
    axes.set_ylabel("loss")
    axes.set_ylim(bottom=0)
    _finish(axes, "best")


def _draw_training(axes: Any, points: list[Record]) -> None:
    """The loss of the steps, or their range where a point stands for several, and its smoothed mean."""
    steps = [record["step"] for record in points]
    values = [record["loss"] for record in points]
    if any("loss_min" in record for record in points):
        low, high = ([r.get(f"loss_{end}", r["loss"]) for r in points] for end in ("min", "max"))
        axes.fill_between(steps, low, high, color=TRAIN, alpha=0.2, linewidth=0)
    else:
        axes.plot(steps, values, color=TRAIN, alpha=0.25, linewidth=0.8)
    axes.plot(steps, smooth(values, len(values) // 50), color=TRAIN, linewidth=1.8, label="training loss")


def _draw_recall(axes: Any, history: History) -> None:
    at = [record["step"] for record in history.evaluations]
    for way, name, color in (
        ("text_to_image", "text to image", TO_IMAGE),
        ("image_to_text", "image to text", TO_TEXT),
    ):
        axes.plot(at, [r[way]["R@1"] for r in history.evaluations], "o-", color=color, ms=4, label=f"{name}, R@1")
        axes.plot(at, [r[way]["R@5"] for r in history.evaluations], ":", color=color, label=f"{name}, R@5")
    axes.set_ylabel("validation recall (%)")
    axes.set_xlabel("step")
    axes.set_ylim(0, 100)
    _finish(axes, "best")


def _finish(axes: Any, where: str) -> None:
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc=where, fontsize=8, framealpha=0.85)


def _finite(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
