"""The learning curve as a picture. matplotlib is imported when it draws: no window, no global state."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

from miniclip.atomic import write_atomically
from miniclip.train.history import History

TRAIN, VALIDATION, TO_IMAGE, TO_TEXT = "#4c78a8", "#e45756", "#54a24b", "#b279a2"


def learning_curve(history: History, path: str | Path, title: str = "") -> None:
    """Draw training and validation loss, and the recall below them, over the steps; written atomically as a PNG.

    Args:
        history: what the run has logged.
        path: the picture.
        title: above it.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 6.5), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    losses, recall = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    _draw_losses(losses, history)
    _draw_recall(recall, history)
    figure.suptitle(title)
    write_atomically(Path(path), lambda temporary: figure.savefig(temporary, format="png"))


def smooth(values: list[float], span: int) -> list[float]:
    """The mean of each value and its neighbours, `span // 2` on either side, or as many as there are.

    Centred, so that it does not lag behind: `smooth([1, 3, 5], span=3)` is `[2, 3, 4]`.
    """
    sums = [0.0, *itertools.accumulate(values)]
    edges = [(max(0, i - span // 2), min(len(values), i + span // 2 + 1)) for i in range(len(values))]
    return [(sums[end] - sums[start]) / (end - start) for start, end in edges]


def _draw_losses(axes: Any, history: History) -> None:
    steps = [record["step"] for record in history.steps]
    values = [record["loss"] for record in history.steps]
    axes.plot(steps, values, color=TRAIN, alpha=0.25, linewidth=0.8)
    axes.plot(steps, smooth(values, len(values) // 50), color=TRAIN, linewidth=1.8, label="training loss")
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
