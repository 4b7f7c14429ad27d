"""Several models on the same data: metrics with confidence intervals, and the significance of their differences."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from miniclip.evaluation.bootstrap import Difference, Scores, intervals, means, paired_differences


class Metric(NamedTuple):
    """One metric of one model, in percent; ranks and strengths are not."""

    name: str
    value: float
    low: float | None = None  # 95% confidence interval over images
    high: float | None = None
    difference: Difference | None = None  # to the first model


class Result(NamedTuple):
    """Metrics of one model on one task."""

    model: str
    task: str
    metrics: list[Metric]


def with_intervals(
    names: Sequence[str], scores: Scores, reference: Scores | None = None, *, seed: int = 0
) -> list[Metric]:
    """Return metrics of per-image scores, in percent, with intervals and the difference to a reference model."""
    differences: list[Any] = [None] * len(names)
    if reference is not None:
        differences = [
            Difference(100 * d.value, 100 * d.low, 100 * d.high, d.p)
            for d in paired_differences(reference, scores, seed=seed)
        ]
    rows = zip(
        names, (100 * means(scores)).tolist(), (100 * intervals(scores, seed=seed)).tolist(), differences, strict=True
    )
    return [Metric(name, value, low, high, difference) for name, value, (low, high), difference in rows]


def as_records(results: Sequence[Result]) -> list[dict[str, Any]]:
    """Return one flat record per model, task and metric, for JSON and CSV."""
    records = []
    for result in results:
        for metric in result.metrics:
            record: dict[str, Any] = {"model": result.model, "task": result.task, "metric": metric.name}
            value = None if math.isnan(metric.value) else metric.value  # JSON has no NaN
            record |= {"value": value, "low": metric.low, "high": metric.high}
            for field in Difference._fields:
                name = {"value": "difference", "p": "p"}.get(field, f"difference_{field}")
                record[name] = None if metric.difference is None else getattr(metric.difference, field)
            records.append(record)
    return records


def table(results: Sequence[Result]) -> str:
    """Return a text table: a block per task, a row per metric, a column per model."""
    blocks = []
    for task in dict.fromkeys(result.task for result in results):
        columns = [result for result in results if result.task == task]
        names = [metric.name for metric in columns[0].metrics]
        cells = [[task, *(column.model for column in columns)]]
        cells += [[name, *(_cell(_metric(column, name)) for column in columns)] for name in names]
        widths = [max(len(row[i]) for row in cells) for i in range(len(cells[0]))]
        lines = [
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells
        ]
        blocks.append("\n".join([lines[0], "-" * len(lines[0]), *lines[1:]]))
    return "\n\n".join(blocks)


def _metric(result: Result, name: str) -> Metric:
    return next(metric for metric in result.metrics if metric.name == name)


def _cell(metric: Metric) -> str:
    """Format a metric: "53.1 [50.2, 56.0]", and its difference with a star if p is below 0.05."""
    text = f"{metric.value:.2g}" if metric.name == "strength" else f"{metric.value:.1f}"
    if metric.low is not None and metric.high is not None:
        text += f" [{metric.low:.1f}, {metric.high:.1f}]"
    if metric.difference is not None:
        text += f" {metric.difference.value:+.1f}{'*' if metric.difference.p < 0.05 else ''}"
    return text
