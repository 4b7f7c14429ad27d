"""The table and the plot of a comparison."""

import json
import statistics
from pathlib import Path
from typing import Any

from benchmarks.finetuning.methods import chosen_alpha
from benchmarks.report import machine_line

INTERPOLATED = ", interpolated"  # end of the name of a row


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
    if any("alphas" in row for row in rows):
        draw(rows, folder / "alpha.png")


def compare(rows: list[dict[str, Any]]) -> dict[str, dict[str, dict[str, list[float]]]]:
    """Return, by start and method, a list of each figure over the seeds."""
    compared: dict[str, Any] = {}
    for base in (row for row in rows if row["method"] == "start"):
        methods: dict[str, Any] = {"start": {"new": [base["new"]], "old": [base["old"]]}}
        runs = [row for row in rows if row["start"] == base["start"] and row["method"] != "start"]
        for row in [*runs, *(interpolated(row, base) for row in runs if "alphas" in row)]:
            figures = methods.setdefault(row["method"], {})
            row = {**row, "gain": row["new"] - base["new"], "forgetting": base["old"] - row["old"]}
            for name in ("gain", "forgetting", "seconds", "peak_mib", "saved_mb", "alpha"):
                figures.setdefault(name, []).append(row.get(name))
        compared[base["start"]] = methods
    return compared


def interpolated(run: dict[str, Any], base: dict[str, Any]) -> dict[str, Any]:
    """Return the row of the interpolation that the rule of `miniclip interpolate` chooses on the selection images."""
    points = curve(run, base)
    alpha = chosen_alpha(points)
    return {**run, **points[alpha], "method": run["method"] + INTERPOLATED, "alpha": alpha}


def curve(run: dict[str, Any], base: dict[str, Any]) -> dict[float, dict[str, float]]:
    """Return the scores by alpha, from the start to the fine-tuned model."""
    between = {float(alpha): point for alpha, point in run["alphas"].items()}
    names = ("new", "old", "new_select", "old_select")
    return {0.0: {name: base[name] for name in names}, **between, 1.0: {name: run[name] for name in names}}


def table(methods: dict[str, dict[str, list[float]]]) -> list[str]:
    """Return the lines of a Markdown table."""
    start, full = methods["start"], methods.get("full")
    lines = [
        f"Before: mean R@1 {start['new'][0]:.1f} on the new images, {start['old'][0]:.1f} on the old ones. Gain and "
        "forgetting are in points, mean ± standard deviation over the seeds.\n",
        "| method | seeds | gain on the new set | share of full's gain | forgetting on the old set | share of full's | "
        "CPU seconds | memory, MiB | saved, MB |",
        "|" + " --- |" * 9,
    ]
    for method, figures in methods.items():
        if method == "start":
            continue
        shares = [share(figures[name], full[name]) if full else "" for name in ("gain", "forgetting")]
        name = method if figures["alpha"][0] is None else f"{method} (alpha {spread(figures['alpha'], 2)})"
        costs = [f"{statistics.mean(figures[key]):,.{digits}f}" for key, digits in COSTS.items()]
        lines.append(
            f"| {name} | {len(figures['gain'])} | {spread(figures['gain'])} | {shares[0]} | "
            f"{spread(figures['forgetting'])} | {shares[1]} | " + " | ".join(costs) + " |"
        )
    return lines


COSTS = {"seconds": 0, "peak_mib": 0, "saved_mb": 2}


def share(values: list[float], whole: list[float]) -> str:
    mean = statistics.mean(whole)
    return f"{statistics.mean(values) / mean:.0%}" if mean > 0 else ""


def spread(values: list[float], digits: int = 1) -> str:
    deviation = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.{digits}f}{deviation}"


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Draw the scores on new and old images against alpha: a row of panels for each start, a panel for each method."""
    from matplotlib.figure import Figure

    swept = [row for row in rows if "alphas" in row]
    bases = [row for row in rows if row.get("method") == "start" and any(r["start"] == row["start"] for r in swept)]
    methods = list(dict.fromkeys(row["method"] for row in swept))
    figure = Figure(figsize=(4.2 * len(methods), 3.4 * len(bases)), dpi=120, layout="constrained")
    grid = figure.subplots(len(bases), len(methods), squeeze=False, sharex=True, sharey="row")
    for panels, base in zip(grid, bases, strict=True):
        for axes, method in zip(panels, methods, strict=True):
            runs = [row for row in swept if row["method"] == method and row["start"] == base["start"]]
            draw_curves(axes, runs, base)
            axes.set_title(f"{method}: {base['start']}", size=9)
        panels[0].set_ylabel("mean R@1, selection images, %")
        panels[0].legend(fontsize=8)
    for axes in grid[-1]:
        axes.set_xlabel("alpha, the share of the fine-tuned model")
    figure.savefig(path)


def draw_curves(axes: Any, runs: list[dict[str, Any]], base: dict[str, Any]) -> None:
    """Draw mean and standard deviation over the seeds, and the mean of the chosen alpha."""
    if not runs:
        return
    for side, color in (("new", "#4c78a8"), ("old", "#e45756")):
        curves = [curve(run, base) for run in runs]
        alphas = list(curves[0])
        values = [[points[alpha][f"{side}_select"] for points in curves] for alpha in alphas]
        means = [statistics.mean(value) for value in values]
        spreads = [statistics.stdev(value) if len(value) > 1 else 0.0 for value in values]
        axes.plot(alphas, means, color=color, marker="o", ms=3, label=f"{side} images")
        low, high = ([m + sign * s for m, s in zip(means, spreads, strict=True)] for sign in (-1, 1))
        axes.fill_between(alphas, low, high, color=color, alpha=0.2, lw=0)
    chosen = statistics.mean(interpolated(run, base)["alpha"] for run in runs)
    axes.axvline(chosen, color="gray", lw=1, ls="--", label="chosen alpha (mean)")
