"""Several models on the same data: figures with confidence intervals, and the significance of their differences."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import chain
from typing import Any, NamedTuple

from miniclip.evaluation.bootstrap import Difference, Scores, intervals, means, paired_differences
from miniclip.evaluation.corruptions import SEVERITIES
from miniclip.evaluation.robustness import Robustness

SIGNIFICANT = 0.05  # p-value below which a difference has a star


class Metric(NamedTuple):
    """One metric of one model, in percent; ranks and strengths are not."""

    name: str
    value: float
    low: float | None = None  # 95% confidence interval over images
    high: float | None = None
    difference: Difference | None = None  # to the first model
    seeds: tuple[float, ...] = ()  # the value of each seed; `value` is their mean
    shots: int | None = None  # training images per class of a few-shot probe

    @property
    def spread(self) -> float | None:
        """Standard deviation over the seeds, with N - 1; None with fewer than two."""
        if len(self.seeds) < 2:
            return None
        return math.sqrt(sum((each - self.value) ** 2 for each in self.seeds) / (len(self.seeds) - 1))


class Result(NamedTuple):
    """Metrics of one model on one task, or one figure under corruptions."""

    model: str
    task: str
    metrics: list[Metric]
    robustness: Robustness | None = None


def with_intervals(
    names: Sequence[str], scores: Scores, reference: Scores | None = None, *, seed: int = 0, progress: bool = False
) -> list[Metric]:
    """Return metrics of per-image scores, in percent, with intervals and the difference to a reference model."""
    differences: list[Any] = [None] * len(names)
    if reference is not None:
        differences = [
            Difference(100 * d.value, 100 * d.low, 100 * d.high, d.p)
            for d in paired_differences(reference, scores, seed=seed, progress=progress)
        ]
    ends = (100 * intervals(scores, seed=seed, progress=progress)).tolist()
    rows = zip(names, (100 * means(scores)).tolist(), ends, differences, strict=True)
    return [Metric(name, value, low, high, difference) for name, value, (low, high), difference in rows]


def as_records(results: Sequence[Result]) -> list[dict[str, Any]]:
    """Return one flat record per number, for JSON and CSV; all have the same keys, with None for what does not apply.

    A record without a severity is a mean over the severities; without a corruption too, it is of clean images.
    """
    records = []
    for result in results:
        source = {"model": result.model, "task": result.task}
        if result.robustness is not None:
            records += [source | record for record in _robustness_records(result.robustness)]
        records += [source | _record(metric) for metric in result.metrics]
    return records


def _record(metric: Metric, corruption: str | None = None, severity: int | None = None, drop: Any = None) -> Any:
    value = None if math.isnan(metric.value) else metric.value  # JSON has no NaN
    record: dict[str, Any] = {"metric": metric.name, "value": value, "low": metric.low, "high": metric.high}
    for field in Difference._fields:
        name = {"value": "difference", "p": "p"}.get(field, f"difference_{field}")
        record[name] = None if metric.difference is None else getattr(metric.difference, field)
    record |= {"shots": metric.shots, "spread": metric.spread, "seeds": list(metric.seeds) or None}
    return record | {"corruption": corruption, "severity": severity, "drop": drop}


def _robustness_records(of: Robustness) -> list[dict[str, Any]]:
    records = [_record(Metric(of.figure, of.clean))]
    for corruption, row in of.corrupted.items():
        for severity, value in zip(SEVERITIES, row, strict=True):
            records.append(_record(Metric(of.figure, value), corruption, severity, of.clean - value))
        mean = of.mean(corruption)
        records.append(_record(Metric(of.figure, mean), corruption, None, of.clean - mean))
    records.append(_record(Metric(of.figure, of.mean()), "mean", None, of.clean - of.mean()))
    return records


def table(results: Sequence[Result], differences: bool = False) -> str:
    """Return a text table: a block per task, a row per metric, a column per model.

    With `differences`, those to the first model have columns of their own, with their intervals. A figure under
    corruptions has a block per model, with a row per corruption and a column per severity.
    """
    blocks = []
    for task in dict.fromkeys(result.task for result in results):
        columns = [result for result in results if result.task == task]
        if columns[0].robustness is not None:
            blocks += [_robustness_block(result, result.robustness) for result in columns if result.robustness]
            continue
        names = [metric.name for metric in columns[0].metrics]
        cells = [[task, *chain(*(_head(column, columns[0], differences) for column in columns))]]
        for name in names:
            first, *others = [_metric(column, name) for column in columns]
            row = [_with_difference(metric, first) if differences else [_cell(metric)] for metric in others]
            cells.append([name, _cell(first), *chain(*row)])
        blocks.append(aligned(cells))
    return "\n\n".join(blocks)


def _robustness_block(result: Result, of: Robustness) -> str:
    header = [f"severity {severity}" for severity in SEVERITIES]
    cells = [["", *header, "mean", "drop"]]
    for corruption, row in of.corrupted.items():
        mean = of.mean(corruption)
        cells.append([corruption, *(f"{value:.1f}" for value in (*row, mean, of.clean - mean))])
    means = [*(of.at(severity) for severity in SEVERITIES), of.mean()]
    cells.append(["mean", *(f"{value:.1f}" for value in (*means, of.clean - of.mean()))])
    cells.append(["drop", *(f"{of.clean - value:.1f}" for value in means), ""])
    return f"{result.task}\n{result.model}: {of.figure} {of.clean:.1f} without corruption\n{aligned(cells)}"


def aligned(cells: list[list[str]]) -> str:
    """Return rows of equal length as lines, with a rule below the first."""
    widths = [max(len(row[i]) for row in cells) for i in range(len(cells[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def _metric(result: Result, name: str) -> Metric:
    return next(metric for metric in result.metrics if metric.name == name)


def _head(column: Result, first: Result, differences: bool) -> list[str]:
    return [column.model, "difference"] if differences and column is not first else [column.model]


def _with_difference(metric: Metric, first: Metric) -> list[str]:
    """Format a metric, and its difference to the first model: "+4.2 [+1.1, +7.3]*"; some have no interval."""
    of = metric.difference
    if of is None:
        return [_cell(metric), f"{metric.value - first.value:+.1f}"]
    star = "*" if of.p < SIGNIFICANT else ""
    return [_cell(metric._replace(difference=None)), f"{of.value:+.1f} [{of.low:+.1f}, {of.high:+.1f}]{star}"]


def _cell(metric: Metric) -> str:
    """Format a metric: "53.1 [50.2, 56.0]", its spread over seeds, and a difference with a star if p is below 0.05."""
    text = f"{metric.value:.2g}" if metric.name == "strength" else f"{metric.value:.1f}"
    if metric.spread is not None:
        text += f" ± {metric.spread:.1f}"
    if metric.low is not None and metric.high is not None:
        text += f" [{metric.low:.1f}, {metric.high:.1f}]"
    if metric.difference is not None:
        text += f" {metric.difference.value:+.1f}{'*' if metric.difference.p < SIGNIFICANT else ''}"
    return text
