"""The table and the plot of a comparison."""

import json
import statistics
from pathlib import Path
from typing import Any

from benchmarks.report import machine_line

INTERPOLATED = ", interpolated"  # end of the name of a row


def line(row: dict[str, Any]) -> str:
    """Return a row as one line of text."""
    parts = [(name, value) for name, value in row.items() if name != "sweep"]
    return ", ".join(f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}" for name, value in parts)


def write(rows: list[dict[str, Any]], machine: dict[str, Any], folder: Path) -> None:
    """Write `finetuning.md`, `finetuning.json` and, if models were interpolated, `alpha.png`."""
    compared = compare([row for row in rows if "method" in row])
    costs, rates = ([row for row in rows if name in row] for name in ("cost", "rate"))
    lines = [f"{machine_line(machine)}\n"]
    for start, methods in compared.items():
        lines += [f"### {start}\n", *table(methods), ""]
    for title, part in (("Rates, on the choosing half", rates), ("Costs", costs)):
        if part:
            lines += [f"### {title}\n", *(f"- {line(row)}" for row in part), ""]
    (folder / "finetuning.md").write_text("\n".join(lines))
    (folder / "finetuning.json").write_text(
        json.dumps({"machine": machine, "table": compared, "rates": rates, "costs": costs}, indent=1)
    )
    print("\n".join(lines))
    if any("sweep" in row for row in rows):
        draw(rows, folder / "alpha.png")


def compare(rows: list[dict[str, Any]]) -> dict[str, dict[str, dict[str, list[float]]]]:
    """Return, by start and method, a list of each figure over the seeds."""
    compared: dict[str, Any] = {}
    for base in (row for row in rows if row["method"] == "start"):
        methods: dict[str, Any] = {"start": {"new": [base["new"]], "old": [base["old"]]}}
        runs = [row for row in rows if row["start"] == base["start"] and row["method"] != "start"]
        between = [{**row, **row["interpolated"], "method": row["method"] + INTERPOLATED} for row in runs]
        for row in [*runs, *between]:
            figures = methods.setdefault(row["method"], {})
            row = {**row, "gain": row["new"] - base["new"], "forgetting": base["old"] - row["old"]}
            for name in ("gain", "forgetting", "seconds", "peak_mib", "saved_mb", "alpha"):
                figures.setdefault(name, []).append(row.get(name))
        compared[base["start"]] = methods
    return compared


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
    """Draw the models between the start and the tuned ones, new against old images: a panel for each start."""
    from matplotlib.figure import Figure

    runs = [row for row in rows if "sweep" in row]
    starts = list(dict.fromkeys(row["start"] for row in runs))
    figure = Figure(figsize=(6.4 * len(starts), 4.6), dpi=120, layout="constrained")
    for axes, start in zip(figure.subplots(1, len(starts), squeeze=False)[0], starts, strict=True):
        methods = list(dict.fromkeys(row["method"] for row in runs if row["start"] == start))
        for number, method in enumerate(methods):
            chosen = [row for row in runs if row["start"] == start and row["method"] == method]
            old, new = (curve(chosen, side) for side in ("old", "new"))
            axes.plot(old, new, color=f"C{number}", marker="o", ms=2.5, lw=1.2, label=method)
            axes.plot(old[-1], new[-1], color=f"C{number}", marker="s", ms=7)
        axes.plot(old[0], new[0], "k*", ms=11, zorder=3, label="start")
        axes.set(title=start, xlabel="mean R@1 on old images, %", ylabel="mean R@1 on new images, %")
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.01, 0.5))
    figure.savefig(path)


def curve(runs: list[dict[str, Any]], side: str) -> list[float]:
    """Return the mean score over runs on the choosing images, for each alpha."""
    return [statistics.mean(points) for points in zip(*([p[side] for p in run["sweep"]] for run in runs), strict=True)]
