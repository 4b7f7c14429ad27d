"""Rows of figures as a table and as a plot."""

import itertools
import textwrap
from pathlib import Path
from typing import Any

from benchmarks.frame import OURS, Row


def as_markdown(rows: list[Row], where: dict[str, Any] | None = None, heading: bool = True) -> str:
    """The table: a line a row, with the lead over each peer; and what stands beside it."""
    lines = [f"{in_words(where)}\n"] if where else []
    if heading:
        lines += ["| what | miniclip | peers: their figure, and our lead | to reach | |", "|" + " --- |" * 5]
    for row in rows:
        peers = "; ".join(f"{name} {number(row.median(name))} (**{row.lead(name):.2f}**)" for name in row.peers)
        reach = "; ".join(f"{times:.3g} × {name}" for name, times in row.reach.items())
        done = "" if not row.reach else "yes" if row.reached() else "no"
        ours = f"{number(row.median(OURS))} {row.unit}"
        note = f"<br>{row.note}" if row.note else ""
        lines.append(f"| {row.part}: {row.case}{note} | {ours} | {peers} | {reach} | {done} |")
    return "\n".join(lines) + ("\n" if heading else "")


def in_words(where: dict[str, Any]) -> str:
    """The machine and the versions, in a line."""
    device = f"{where['gpu']}; " if "gpu" in where else ""
    versions = ", ".join(f"{name} {version}" for name, version in where["versions"].items())
    processor = f"{where['cores']} cores of {where['processor']} ({where['cpu_capability']})"
    return f"{device}{processor}, {where['system']}, Python {where['python']}; {versions}."


def number(value: float) -> str:
    """Three digits, and thousands apart."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def plot_leads(rows: list[Row], where: dict[str, Any], path: Path) -> None:
    """A bar a row: the lead over the best peer, with what was to reach, on a logarithmic axis."""
    from matplotlib.figure import Figure

    rows = [row for row in rows if row.part != "recall in bfloat16"]  # no race
    figure = Figure(figsize=(13, 0.3 * len(rows) + 1.4), dpi=100, layout="constrained")
    axes = figure.subplots()
    parts = list(dict.fromkeys(row.part for row in rows))
    colors = dict(zip(parts, itertools.cycle(["#4c78a8", "#e45756", "#54a24b", "#b279a2", "#f58518"]), strict=False))
    furthest = 2.0
    for place, row in enumerate(rows):
        peer = min(row.peers, key=row.lead)
        lead, asked = row.lead(peer), row.reach.get(peer, 0)
        axes.barh(place, lead - 1, left=1, color=colors[row.part], height=0.7)
        if asked:
            axes.plot([asked] * 2, [place - 0.4, place + 0.4], color="black", lw=1.5)
        end = max(lead, asked, 1)
        axes.annotate(f"{lead:.2f} × {peer}", (end, place), (5, 0), textcoords="offset points", va="center", size=9)
        furthest = max(furthest, end)
    axes.set_xscale("log", base=2)
    axes.axvline(1, color="gray", lw=1)
    axes.set_yticks(range(len(rows)), [f"{row.part}: {row.case}" for row in rows], size=9)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xlim(0.8, 3 * furthest)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set_xlabel("times as fast, or as small, as the best peer; black: to reach", size=9)
    figure.suptitle(textwrap.fill(in_words(where), 140), size=8)
    figure.savefig(path)
