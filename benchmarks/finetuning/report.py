"""The table and the plot of a comparison."""

import json
import statistics
from pathlib import Path
from typing import Any

from benchmarks.report import machine_line

ALLOWED_LOSS = 1.0  # points on the old images; the default of `miniclip interpolate`
INTERPOLATED = "full, interpolated"


def line(row: dict[str, Any]) -> str:
    """Return a row as one line of text."""
    parts = [(name, value) for name, value in row.items() if name != "alphas"]
    return ", ".join(f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}" for name, value in parts)


def write(rows: list[dict[str, Any]], machine: dict[str, Any], folder: Path) -> None:
    """Write `finetuning.md`, `finetuning.json` and, if models were interpolated, `alpha.png`."""
    compared = compare([row for row in rows if "start" in row])
    costs = [row for row in rows if "cost" in row]
    lines = [f"{machine_line(machine)}\n"]
    for start, methods in compared.items():
        lines += [f"### {start}\n", *table(methods), ""]
    if costs:
        lines += ["### Costs\n", *(f"- {line(row)}" for row in costs), ""]
    (folder / "finetuning.md").write_text("\n".join(lines))
    (folder / "finetuning.json").write_text(
        json.dumps({"machine": machine, "table": compared, "costs": costs}, indent=1)
    )
    print("\n".join(lines))
    if any("full" in methods for methods in compared.values()):
        draw(rows, folder / "alpha.png")


def compare(rows: list[dict[str, Any]]) -> dict[str, dict[str, dict[str, list[float]]]]:
    """Return, by start and method, a list of each figure over the seeds."""
    compared: dict[str, Any] = {}
    for base in (row for row in rows if row["method"] == "start"):
        methods: dict[str, Any] = {"start": {"new": [base["new"]], "old": [base["old"]]}}
        runs = [row for row in rows if row["start"] == base["start"] and row["method"] != "start"]
        for row in [*runs, *(interpolated(row, base) for row in runs if row["method"] == "full")]:
            figures = methods.setdefault(row["method"], {})
            row = {**row, "gain": row["new"] - base["new"], "forgetting": base["old"] - row["old"]}
            for name in ("gain", "forgetting", "seconds", "peak_mib", "saved_mb", "alpha"):
                figures.setdefault(name, []).append(row.get(name))
        compared[base["start"]] = methods
    return compared


def interpolated(full: dict[str, Any], base: dict[str, Any]) -> dict[str, Any]:
    """Return the row of the interpolation that the rule of `miniclip interpolate` chooses on the selection images."""
    points = curve(full, base)
    allowed = {
        alpha: point for alpha, point in points.items() if base["old_select"] - point["old_select"] <= ALLOWED_LOSS
    }
    alpha = max(allowed, key=lambda alpha: (allowed[alpha]["new_select"], -alpha))
    return {**full, **points[alpha], "method": INTERPOLATED, "alpha": alpha}


def curve(full: dict[str, Any], base: dict[str, Any]) -> dict[float, dict[str, float]]:
    """Return the scores by alpha, from the start to the fine-tuned model."""
    between = {float(alpha): point for alpha, point in full["alphas"].items()}
    names = ("new", "old", "new_select", "old_select")
    return {0.0: {name: base[name] for name in names}, **between, 1.0: {name: full[name] for name in names}}


def table(methods: dict[str, dict[str, list[float]]]) -> list[str]:
    """Return the lines of a Markdown table."""
    start, full = methods["start"], methods.get("full")
    lines = [
        f"Before: mean R@1 {start['new'][0]:.1f} on the new images, {start['old'][0]:.1f} on the old ones. Gain and "
        "forgetting are in points, mean ± standard deviation over the seeds.\n",
        "| method | gain on the new set | share of full's gain | forgetting on the old set | share of full's | "
        "CPU seconds | memory, MiB | saved, MB |",
        "|" + " --- |" * 8,
    ]
    for method, figures in methods.items():
        if method == "start":
            continue
        shares = [share(figures[name], full[name]) if full else "" for name in ("gain", "forgetting")]
        name = method if figures["alpha"][0] is None else f"{method} (alpha {spread(figures['alpha'], 2)})"
        costs = [f"{statistics.mean(figures[key]):,.{digits}f}" for key, digits in COSTS.items()]
        lines.append(
            f"| {name} | {spread(figures['gain'])} | {shares[0]} | {spread(figures['forgetting'])} | {shares[1]} | "
            + " | ".join(costs)
            + " |"
        )
    return lines


COSTS = {"seconds": 0, "peak_mib": 0, "saved_mb": 2}


def share(values: list[float], whole: list[float]) -> str:
    mean = statistics.mean(whole)
    return f"{statistics.mean(values) / mean:.0%}" if mean > 0 else ""


def spread(values: list[float], digits: int = 1) -> str:
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.mean(values):.{digits}f} ± {deviation:.{digits}f}"


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Draw the scores on the new and the old images against alpha, a panel for each start."""
    from matplotlib.figure import Figure

    bases = [row for row in rows if row.get("method") == "start"]
    figure = Figure(figsize=(4.2 * len(bases), 3.4), dpi=120, layout="constrained")
    for axes, base in zip(figure.subplots(1, len(bases), squeeze=False)[0], bases, strict=True):
        runs = [row for row in rows if row.get("method") == "full" and row["start"] == base["start"]]
        for side, color in (("new", "#4c78a8"), ("old", "#e45756")):
            curves = [curve(run, base) for run in runs]
            alphas = list(curves[0]) if curves else []
            values = [[points[alpha][side] for points in curves] for alpha in alphas]
            means = [statistics.mean(value) for value in values]
            spreads = [statistics.stdev(value) if len(value) > 1 else 0.0 for value in values]
            axes.plot(alphas, means, color=color, marker="o", ms=3, label=f"{side} images")
            low, high = ([m + sign * s for m, s in zip(means, spreads, strict=True)] for sign in (-1, 1))
            axes.fill_between(alphas, low, high, color=color, alpha=0.2, lw=0)
        if runs:
            chosen = statistics.mean(interpolated(run, base)["alpha"] for run in runs)
            axes.axvline(chosen, color="gray", lw=1, ls="--", label="chosen alpha (mean)")
        axes.set_title(base["start"], size=10)
        axes.set_xlabel("alpha, the share of the fine-tuned model")
        axes.set_ylabel("mean R@1, validation images, %")
        axes.legend(fontsize=8)
    figure.savefig(path)
