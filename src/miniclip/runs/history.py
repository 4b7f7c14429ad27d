"""History of a run: the records of `metrics.jsonl`, in memory with bounded size.

The file keeps every step. In memory, beyond `LIMIT` points, each point stands for two steps, later for four, and so on.
A point has the mean of their metrics, and the minimum and maximum of the loss.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeGuard

from miniclip.errors import DataError
from miniclip.utils.files import open_regular, parse_json

FILE = "metrics.jsonl"
LIMIT = 10_000  # points in memory, besides the latest steps, which do not fill a point yet
LAST = ("step", "epoch", "lr", "chance_loss")  # a point has the last step's value of these, and the mean of others

Record = dict[str, Any]


@dataclasses.dataclass
class History:
    """Records of a run, oldest first.

    Attributes:
        steps: one record per step: `step`, `epoch`, `loss`, `chance_loss`, `lr`, `logit_scale`, `grad_norm`, and more.
            After `LIMIT` steps, one point for `stride` steps (`merged`), and the latest steps themselves.
        evaluations: one record per evaluation: `step`, `epoch`, `val_loss`, `val_chance_loss`, the recalls in percent,
            `image_to_text` and `text_to_image`, and those of a random ranking, `chance_recall`.
        skipped: one record per non-finite step: `step`, `epoch`, `chance_loss`, `lr`, `skipped` (the cause), `batch`
            (the file that keeps it).
        stride: number of steps in a point, a power of two.
        end: size in bytes of these records in `metrics.jsonl`.
    """

    steps: list[Record] = dataclasses.field(default_factory=list)
    evaluations: list[Record] = dataclasses.field(default_factory=list)
    skipped: list[Record] = dataclasses.field(default_factory=list)
    stride: int = dataclasses.field(default=1, init=False)
    end: int = dataclasses.field(default=0, init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        records, self.steps, self._points = self.steps, [], 0  # number of full points at the start of `steps`
        for record in records:
            self.add(record)

    @classmethod
    def read(cls, run_dir: str | Path, step: int | None = None, evaluated: int | None = None) -> History:
        """Read a run's `metrics.jsonl`. An incomplete last line, which a killed run leaves, is ignored.

        Args:
            run_dir: the run.
            step: stop before the first record of a later step; None: read to the end.
            evaluated: stop before the first evaluation of a later step.

        Raises:
            FileNotFoundError: the file does not exist.
            DataError: a line is not a record.
        """
        history = cls()
        path = Path(run_dir) / FILE
        with open_regular(path) as file:
            for number, text in enumerate(file, 1):
                if not text.endswith(b"\n"):
                    break
                try:
                    record = parse_json(text)
                    if _after(record, step, evaluated):
                        break
                    history.add(record)
                except (KeyError, TypeError, ValueError) as error:
                    raise DataError(f"{path}, line {number}: not a record of a run ({error})") from None
                history.end += len(text)
        return history

    def add(self, record: Record) -> None:
        """Append a record, and keep the number of points within `LIMIT`."""
        if "val_loss" in record or "skipped" in record:
            (self.evaluations if "val_loss" in record else self.skipped).append(record)
            return
        if len(self.steps) - self._points == self.stride:
            self._close_point()
        self.steps.append(record)

    def _close_point(self) -> None:
        """Merge the steps after the last point into a point; at the limit, merge the points in pairs."""
        self.steps[self._points :] = [merged(self.steps[self._points :])]
        self._points += 1
        if self._points == LIMIT:
            self.steps = thinned(self.steps, LIMIT // 2)
            self._points, self.stride = len(self.steps), 2 * self.stride


def merged(records: Sequence[Record]) -> Record:
    """Merge records into one: means weighted by the number of steps in each, and the range of the loss.

    Losses 1 and 3 at steps 1 and 2 give `{"step": 2, "loss": 2.0, "loss_min": 1, "loss_max": 3, "steps": 2}`. Values
    that are not finite are left out of the means.
    """
    if len(records) == 1:
        return records[0]
    point = dict(records[-1])
    for name in {name: None for record in records for name in record if name not in LAST}:
        values = [(r[name], r.get("steps", 1)) for r in records if _is_finite(r.get(name))]
        if values:
            point[name] = sum(value * weight for value, weight in values) / sum(weight for _, weight in values)
    for name, extreme in (("loss_min", min), ("loss_max", max)):
        losses: list[float] = [value for r in records if _is_finite(value := r.get(name, r.get("loss")))]
        if losses:
            point[name] = extreme(losses)
    point["steps"] = sum(r.get("steps", 1) for r in records)
    return point


def thinned(records: Sequence[Record], most: int) -> list[Record]:
    """Merge neighbours until at most `most` records are left, for plots."""
    size = max(1, math.ceil(len(records) / most))
    return [merged(records[i : i + size]) for i in range(0, len(records), size)]


def line(record: Record) -> str:
    """Return a record as a line of `metrics.jsonl`."""
    return json.dumps(record) + "\n"


def _after(record: Record, step: int | None, evaluated: int | None) -> bool:
    """Return whether a record is later than a step, or an evaluation later than `evaluated`."""
    if step is not None and record["step"] > step:
        return True
    return evaluated is not None and "val_loss" in record and record["step"] > evaluated


def _is_finite(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
