"""Figure of few-shot probes: accuracy against the number of training images per class, with bands over the seeds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from miniclip.evaluation.comparison import Result
from miniclip.plots.figure import add_legend_below, finish_axes, new_figure, write_figure


def plot_few_shot(results: Sequence[Result], path: str | Path, *, zero_shot: Sequence[Result] = ()) -> None:
    """Draw one curve per model; a band shows the lowest and the highest seed.

    Args:
        results: few-shot results of some models on one dataset.
        path: PNG file, written atomically.
        zero_shot: zero-shot results of the same models on the same images, drawn as dashed lines.
    """
    figure = new_figure(6.4, 4.6)
    axes = figure.add_subplot()
    colors = {result.model: f"C{number}" for number, result in enumerate(results)}
    for result in results:
        metrics = sorted(result.metrics, key=lambda metric: metric.shots or 0)  # --shots has any order
        shots = [metric.shots or 0 for metric in metrics]
        color = colors[result.model]
        low, high = ([extreme(metric.seeds or (metric.value,)) for metric in metrics] for extreme in (min, max))
        axes.fill_between(shots, low, high, color=color, alpha=0.2, linewidth=0)
        axes.plot(shots, [metric.value for metric in metrics], "o-", color=color, label=result.model)
    for result in zero_shot:
        top1 = next(metric.value for metric in result.metrics if metric.name == "top1")
        label = f"{result.model}, zero-shot" if len(zero_shot) > 1 else "zero-shot"
        axes.axhline(top1, color=colors.get(result.model, "gray"), linestyle="--", linewidth=1.2, label=label)
    ticks = sorted({metric.shots or 0 for result in results for metric in result.metrics})
    axes.set_xscale("log", base=2)
    axes.set_xticks(ticks, [str(count) for count in ticks])
    axes.minorticks_off()
    seeds = len(results[0].metrics[0].seeds)
    axes.set(xlabel="training images per class", ylabel="top-1, percent", ylim=(0, 102))
    axes.set_title(
        f"{results[0].task}\nmean and range of {seeds} seed{'s' if seeds > 1 else ''}", fontsize=10, parse_math=False
    )
    finish_axes(axes)
    add_legend_below(figure)
    write_figure(figure, path)
