"""What a run has logged: `metrics.jsonl`, a line a step and a line an evaluation, and the same in memory, thinned.

The file keeps every step of a run of weeks. Memory and pictures need not: beyond `LIMIT` points each one stands for two
steps, later for four, and so on, with the mean of their figures and the least and the greatest loss.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeGuard

from miniclip.errors import DataError

FILE = "metrics.jsonl"
LIMIT = 10_000  # points in memory, and after the last of them the steps that do not yet fill one
LAST = ("step", "epoch", "lr", "log_n")  # of the steps of a point, the last one's; of other figures the mean

Record = dict[str, Any]


@dataclasses.dataclass
class History:
    """The records of a run, oldest first.

    Attributes:
        steps: one a step: `step`, `epoch`, `loss`, `log_n`, `lr`, `logit_scale`, `grad_norm`. Of a run of more than
            `LIMIT` steps one for `stride` of them (`merged`), and the very last as they were.
        evaluations: one an evaluation: `step`, `epoch`, `val_loss`, `val_log_n`, `image_to_text`, `text_to_image`
            (the recalls, in percent).
        skipped: one a step that was not finite: `step`, `epoch`, `log_n`, `lr`, `skipped` (where it went wrong),
            `batch` (what was kept of it).
        stride: how many steps a point stands for, a power of two.
        end: bytes of the file that these records fill.
    """

    steps: list[Record] = dataclasses.field(default_factory=list)
    evaluations: list[Record] = dataclasses.field(default_factory=list)
    skipped: list[Record] = dataclasses.field(default_factory=list)
    stride: int = dataclasses.field(default=1, init=False)
    end: int = dataclasses.field(default=0, init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        given, self.steps, self._points = self.steps, [], 0  # so many of `steps` stand for a whole stride
        for record in given:
            self.add(record)

    @classmethod
    def read(cls, run_dir: str | Path, step: int | None = None, evaluated: int | None = None) -> History:
        """Read a run's `metrics.jsonl`, line by line; a last line cut short (the run was killed) is left out.

        Args:
            run_dir: the run.
            step: stop before the first record of a later step; None: read to the end.
            evaluated: stop before the first evaluation after a later step.

        Raises:
            FileNotFoundError: there is no such file.
            DataError: a line is no JSON object.
        """
        history = cls()
        path = Path(run_dir) / FILE
        with path.open("rb") as file:
            for number, text in enumerate(file, 1):
                if not text.endswith(b"\n"):
                    break
                try:
                    record = json.loads(text)
                    if _after(record, step, evaluated):
                        break
                    history.add(record)
                except (KeyError, TypeError, ValueError) as error:
                    raise DataError(f"{path}, line {number}: not a record of a run ({error})") from None
                history.end += len(text)
        return history

    def add(self, record: Record) -> None:
        """Append a record where it belongs, and keep within `LIMIT`."""
        if "val_loss" in record or "skipped" in record:
            (self.evaluations if "val_loss" in record else self.skipped).append(record)
            return
        if len(self.steps) - self._points == self.stride:
            self._close_point()
        self.steps.append(record)

    def _close_point(self) -> None:
        """The steps after the last point become one; and where there are too many points, each two."""
        self.steps[self._points :] = [merged(self.steps[self._points :])]
        self._points += 1
        if self._points == LIMIT:
            self.steps = thinned(self.steps, LIMIT // 2)
            self._points, self.stride = len(self.steps), 2 * self.stride


def merged(records: Sequence[Record]) -> Record:
    """One record for several: means, weighed by the `steps` that each stands for, and the range of the loss.

    Of the losses 1 and 3 of steps 1 and 2 comes `{"step": 2, "loss": 2.0, "loss_min": 1, "loss_max": 3, "steps": 2}`.
    A step without a finite figure (one that was skipped) has no part in its mean.
    """
    if len(records) == 1:
        return records[0]
    point = dict(records[-1])
    for name in {name: None for record in records for name in record if name not in LAST}:
        values = [(r[name], r.get("steps", 1)) for r in records if _is_figure(r.get(name))]
        if values:
            point[name] = sum(value * weight for value, weight in values) / sum(weight for _, weight in values)
    for name, extreme in (("loss_min", min), ("loss_max", max)):
        losses: list[float] = [value for r in records if _is_figure(value := r.get(name, r.get("loss")))]
        if losses:
            point[name] = extreme(losses)
    point["steps"] = sum(r.get("steps", 1) for r in records)
    return point


def thinned(records: Sequence[Record], most: int) -> list[Record]:
    """At most so many records, neighbours merged: for pictures, which have no more columns."""
    size = max(1, math.ceil(len(records) / most))
    return [merged(records[i : i + size]) for i in range(0, len(records), size)]


def line(record: Record) -> str:
    """A record as a line of `metrics.jsonl`."""
    return json.dumps(record) + "\n"


def _after(record: Record, step: int | None, evaluated: int | None) -> bool:
    """Whether a record is of a later step, or an evaluation after a later one."""
    if step is not None and record["step"] > step:
        return True
    return evaluated is not None and "val_loss" in record and record["step"] > evaluated


def _is_figure(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
