"""What a run has logged: `metrics.jsonl`, a line a step and a line an evaluation, and the same in memory."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from miniclip.errors import DataError

FILE = "metrics.jsonl"

Record = dict[str, Any]


@dataclasses.dataclass
class History:
    """The records of a run, oldest first.

    Attributes:
        steps: one a step: `step`, `epoch`, `loss`, `log_n`, `lr`, `logit_scale`, `grad_norm`.
        evaluations: one an evaluation: `step`, `epoch`, `val_loss`, `val_log_n`, `image_to_text`, `text_to_image`
            (the recalls, in percent).
    """

    steps: list[Record] = dataclasses.field(default_factory=list)
    evaluations: list[Record] = dataclasses.field(default_factory=list)

    @classmethod
    def read(cls, run_dir: str | Path) -> History:
        """Read a run's `metrics.jsonl`; a last line cut short (the run was killed while it wrote) is left out.

        Raises:
            FileNotFoundError: there is no such file.
            DataError: a line is no JSON object.
        """
        path = Path(run_dir) / FILE
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        history = cls()
        for number, line in enumerate(lines, 1):
            if not line.endswith("\n"):
                break
            try:
                record = json.loads(line)
                history.add(record)
            except (TypeError, ValueError) as error:
                raise DataError(f"{path}, line {number}: not a record of a run ({error})") from None
        return history

    def add(self, record: Record) -> None:
        """Append a record where it belongs."""
        (self.evaluations if "val_loss" in record else self.steps).append(record)

    def until(self, step: int, epoch: int) -> History:
        """The records of the first `step` steps and of the evaluations of the first `epoch` epochs."""
        return History(
            [record for record in self.steps if record["step"] <= step],
            [record for record in self.evaluations if record["epoch"] <= epoch],
        )

    def lines(self) -> str:
        """The records as `metrics.jsonl` holds them, an evaluation after the steps before it."""
        records = sorted([*self.steps, *self.evaluations], key=lambda record: (record["step"], "val_loss" in record))
        return "".join(map(line, records))


def line(record: Record) -> str:
    """A record as a line of `metrics.jsonl`."""
    return json.dumps(record) + "\n"
