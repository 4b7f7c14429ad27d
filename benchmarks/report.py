"""The rows of a benchmark as a Markdown table and as a plot."""

import itertools
import textwrap
from pathlib import Path
from typing import Any

from benchmarks.harness import MINICLIP, Row


def to_markdown(rows: list[Row], machine: dict[str, Any] | None = None, heading: bool = True) -> str:
    """Return a table with a line for each row: miniclip's value, the baselines' values and the speedups."""
    lines = [f"{machine_line(machine)}\n"] if machine else []
    if heading:
        lines += ["| what | miniclip | baselines (speedup) | targets | reached |", "|" + " --- |" * 5]
    for row in rows:
        baselines = "; ".join(
            f"{name} {format_number(row.median(name))} (**{row.speedup(name):.2f}**)" for name in row.baselines
        )
        targets = "; ".join(f"{target:.3g} × {name}" for name, target in row.targets.items())
        reached = "" if not row.targets else "yes" if row.reached() else "no"
        own = f"{format_number(row.median(MINICLIP))} {row.unit}"
        note = f"<br>{row.note}" if row.note else ""
        lines.append(f"| {row.part}: {row.case}{note} | {own} | {baselines} | {targets} | {reached} |")
    return "\n".join(lines) + ("\n" if heading else "")


def machine_line(machine: dict[str, Any]) -> str:
    """Return hardware and versions in one line."""
    device = f"{machine['gpu']}; " if "gpu" in machine else ""
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    processor = f"{machine['cores']} cores of {machine['processor']} ({machine['cpu_capability']})"
    return f"{device}{processor}, {machine['system']}, Python {machine['python']}; {versions}."


def format_number(value: float) -> str:
    """Format with three significant digits, and separators for thousands."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def plot_speedups(rows: list[Row], machine: dict[str, Any], path: Path) -> None:
    """Draw a bar for each row: the speedup over the best baseline and its target, on a logarithmic axis."""
    from matplotlib.figure import Figure

    rows = [row for row in rows if row.part not in ("lower precision", "recall in bfloat16")]  # not a speedup
    figure = Figure(figsize=(13, 0.3 * len(rows) + 1.4), dpi=100, layout="constrained")
    axes = figure.subplots()
    parts = list(dict.fromkeys(row.part for row in rows))
    colors = dict(zip(parts, itertools.cycle(["#4c78a8", "#e45756", "#54a24b", "#b279a2", "#f58518"]), strict=False))
    right = 2.0
    for y, row in enumerate(rows):
        baseline = min(row.baselines, key=row.speedup)
        speedup, target = row.speedup(baseline), row.targets.get(baseline, 0)
        axes.barh(y, speedup - 1, left=1, color=colors[row.part], height=0.7)
        if target:
            axes.plot([target] * 2, [y - 0.4, y + 0.4], color="black", lw=1.5)
        end = max(speedup, target, 1)
        axes.annotate(f"{speedup:.2f} × {baseline}", (end, y), (5, 0), textcoords="offset points", va="center", size=9)
        right = max(right, end)
    axes.set_xscale("log", base=2)
    axes.axvline(1, color="gray", lw=1)
    axes.set_yticks(range(len(rows)), [f"{row.part}: {row.case}" for row in rows], size=9)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xlim(0.8, 3 * right)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set_xlabel("speedup over the best baseline (or times as small); black: target", size=9)
    figure.suptitle(textwrap.fill(machine_line(machine), 140), size=8)
    figure.savefig(path)
