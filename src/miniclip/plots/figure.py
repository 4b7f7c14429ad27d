"""Matplotlib figures without global state, written atomically as PNG files. matplotlib is imported on use."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

from miniclip.utils.atomic import write_atomically

TRAIN_COLOR, VALIDATION_COLOR = "#4c78a8", "#e45756"
POSITIVE_COLOR, NEGATIVE_COLOR = "#2d7d2d", "#c03b3b"
DPI = 120


def new_figure(width: float, height: float, automatic_layout: bool = True) -> Any:
    """Return a figure of a size in inches that is not registered with pyplot.

    Args:
        width: inches.
        height: inches.
        automatic_layout: use the constrained layout; it can take longer than drawing the figure.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained" if automatic_layout else None)
    FigureCanvasAgg(figure)
    return figure


def write_figure(figure: Any, path: str | Path) -> None:
    """Write a figure as a PNG file, atomically. Characters that the font lacks become boxes."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        write_atomically(Path(path), lambda temporary: figure.savefig(temporary, format="png"))


def add_legend_below(figure: Any) -> None:
    """Add a legend below all axes, where it hides nothing; its texts are names, which may hold a dollar sign."""
    legend = figure.legend(fontsize=9, frameon=False, loc="outside lower center", ncols=2)
    for text in legend.get_texts():
        text.set_parse_math(False)


def finish_axes(axes: Any) -> None:
    """Add a light grid, and remove the top and right borders."""
    axes.grid(alpha=0.25)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
