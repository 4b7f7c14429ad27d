"""Figure of a metric under corruptions: one line per corruption against the severity, a panel per model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from miniclip.evaluation.comparison import Result
from miniclip.evaluation.robustness import Robustness
from miniclip.plots.figure import finish_axes, new_figure, write_figure

# one color map per kind of corruption
FAMILIES = {
    "Blues": ("gaussian_noise", "shot_noise", "impulse_noise"),
    "Oranges": ("gaussian_blur", "defocus_blur", "motion_blur", "zoom_blur"),
    "Greens": ("brightness", "contrast", "saturation"),
    "Purples": ("pixelate", "jpeg"),
}


def plot_robustness(results: Sequence[Result], path: str | Path) -> None:
    """Draw the figure of each model under each corruption; severity 0 is the clean image.

    Args:
        results: the same figure of some models on one dataset, each with its `robustness`.
        path: PNG file, written atomically.
    """
    figure = new_figure(4.0 * len(results) + 2.6, 4.6)
    panels = figure.subplots(1, len(results), sharey=True, squeeze=False)[0]
    for axes, result in zip(panels, results, strict=True):
        if result.robustness is not None:
            _draw(axes, result.robustness)
        axes.set_title(result.model, fontsize=10, parse_math=False)
        axes.set(xlabel="severity", xticks=range(6))
        finish_axes(axes)
    panels[0].set(ylim=(0, 102), ylabel=f"{getattr(results[0].robustness, 'figure', '')}, percent")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, fontsize=8.5, frameon=False, loc="outside right center")
    figure.suptitle(results[0].task, fontsize=10, parse_math=False)
    write_figure(figure, path)


def _draw(axes: Any, of: Robustness) -> None:
    from matplotlib import colormaps

    for name, family in FAMILIES.items():
        shades = colormaps[name]
        for number, kind in enumerate(kind for kind in family if kind in of.corrupted):
            color = shades(0.9 - 0.5 * number / (len(family) - 1))
            axes.plot(range(6), [of.clean, *of.corrupted[kind]], "o-", ms=3, lw=1.3, color=color, label=_label(kind))
    means = [of.clean, *(of.at(severity) for severity in range(1, 6))]
    axes.plot(range(6), means, color="black", linewidth=2.5, label="mean")


def _label(kind: str) -> str:
    return kind.replace("_", " ")
