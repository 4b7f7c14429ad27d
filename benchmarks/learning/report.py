"""The comparison of systems after equal time: a table, the curves as a plot, both as JSON."""

import json
import statistics
import textwrap
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.learning.records import Record, final
from benchmarks.learning.statistics_of_runs import mean_and_spread, p_value, time_to_reach
from benchmarks.report import machine_line

COLORS = {"miniclip": "#4c78a8", "open_clip": "#e45756"}
WAYS = ("image_to_text", "text_to_image", "mean_R@1")
Curve = list[tuple[float, float]]


class Comparison(NamedTuple):
    """The runs of both systems on a set with one budget."""

    set: str
    budget: float
    runs: dict[str, list[Record]]  # by system

    def summary(self) -> dict[str, Any]:
        """Return figures for the table, JSON values."""
        systems = {}
        for system, records in self.runs.items():
            figures = {way: mean_and_spread([record["curve"][-1][way] for record in records]) for way in WAYS}
            pairs = round(sum(record["pairs"] for record in records) / len(records))
            systems[system] = {"seeds": len(records), "pairs": pairs, "facts": records[0]["facts"], **figures}
        values: dict[str, Any] = {"set": self.set, "budget": self.budget, "systems": systems}
        if len(self.runs) == 2:
            values |= self._difference()
        return values

    def _difference(self) -> dict[str, Any]:
        """Return the ratio of the means, its p-value, and the time that each needs to reach the other's result."""
        (first, own), (second, other) = self.runs.items()
        finals = {first: [final(record) for record in own], second: [final(record) for record in other]}
        means = {name: mean_and_spread(values)[0] for name, values in finals.items()}
        return {
            "ratio": means[first] / means[second] if means[second] else None,
            "p_value": p_value(finals[first], finals[second]),
            "seconds_to_reach_the_other": {
                name: time_to_reach([curve_of(record) for record in self.runs[name]], means[rival])
                for name, rival in ((first, second), (second, first))
            },
        }


def curve_of(record: Record) -> Curve:
    """Return the points (seconds, mean R@1) of a run."""
    return [(point["seconds"], point["mean_R@1"]) for point in record["curve"]]


def to_markdown(comparisons: list[Comparison], machine: dict[str, Any]) -> str:
    """Return the table, with a line for each dataset, budget and system."""
    lines = [
        f"{machine_line(machine)}\n",
        "R@1 in percent, mean ± standard deviation over the seeds.\n",
        "| set | seconds | system | seeds | pairs | image to text | text to image | mean | "
        "reaches the other's mean after | p-value |",
        "|" + " --- |" * 10,
    ]
    for comparison in comparisons:
        summary = comparison.summary()
        for system, values in summary["systems"].items():
            figures = " | ".join(f"{values[way][0]:.1f} ± {values[way][1]:.1f}" for way in WAYS)
            reached = summary.get("seconds_to_reach_the_other", {}).get(system)
            after = "" if len(comparison.runs) < 2 else "never" if reached is None else f"{reached:.0f} s"
            p = summary.get("p_value")
            lines.append(
                f"| {comparison.set} | {comparison.budget:.0f} | {system} | {values['seeds']} | {values['pairs']:,} | "
                f"{figures} | {after} | {'' if p is None else f'{p:.1g}'} |"
            )
    return "\n".join(lines) + "\n"


def plot(comparisons: list[Comparison], machine: dict[str, Any], path: Path) -> None:
    """Draw recall over time: thin lines for seeds, a thick one for their mean, a panel per dataset and budget."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5 * len(comparisons), 4), dpi=100, layout="constrained")
    panels = figure.subplots(1, len(comparisons), squeeze=False)[0]
    for axes, comparison in zip(panels, comparisons, strict=True):
        for system, records in comparison.runs.items():
            color, curves = COLORS[system], [curve_of(record) for record in records]
            for curve in curves:
                axes.plot(*zip((0.0, 0.0), *curve, strict=True), color=color, lw=0.7, alpha=0.5)
            mean = [tuple(map(statistics.mean, zip(*points, strict=True))) for points in zip(*curves, strict=True)]
            axes.plot(*zip((0.0, 0.0), *mean, strict=True), color=color, lw=2, label=system)
        axes.set_title(f"{comparison.set}, {comparison.budget:.0f} s")
        axes.set_xlabel("GPU seconds" if "gpu" in machine else "CPU seconds of training")
        axes.set_ylabel("mean R@1 of both directions, %")
        axes.set_ylim(bottom=0)
        axes.legend(loc="upper left")
    figure.suptitle(textwrap.fill(machine_line(machine), 90 * len(comparisons)), size=7)
    figure.savefig(path)


def write(comparisons: list[Comparison], machine: dict[str, Any], folder: Path) -> str:
    """Write `results.md`, `results.json` and `curves.png`; return the table."""
    table = to_markdown(comparisons, machine)
    (folder / "results.md").write_text(table)
    curves = [
        {
            "set": c.set,
            "budget": c.budget,
            "curves": {name: [r["curve"] for r in runs] for name, runs in c.runs.items()},
        }
        for c in comparisons
    ]
    results = {"machine": machine, "comparisons": [c.summary() for c in comparisons], "curves": curves}
    (folder / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    plot(comparisons, machine, folder / "curves.png")
    return table
