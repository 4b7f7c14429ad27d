"""Recent metrics of a run, as the rules receive them, and the form of a rule."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Literal

from miniclip.diagnostics.batch_metrics import learned_fraction
from miniclip.runs.history import Record

MIN_VALUES = 3  # values of `other_cores`
MIN_RECORDS, MIN_STEPS = 10, 100  # records with batch metrics in a full window, and the steps that they span


@dataclasses.dataclass(frozen=True)
class Rule:
    """Detector of one training problem, with an explanation.

    Attributes:
        name: name of the problem.
        detect: returns an observation with numbers, or None if the problem is absent.
        meaning: effect on training.
        advice: suggested remedy.
        severity: "warning" if the user should act, otherwise "note".
    """

    name: str
    detect: Callable[[RunWindow], str | None]
    meaning: str
    advice: str
    severity: Literal["note", "warning"] = "warning"


@dataclasses.dataclass(frozen=True)
class RunFacts:
    """Constants of a run that rules need."""

    steps: int  # steps in the whole run
    warmup_steps: int
    max_logit_scale: float
    trained_towers: tuple[str, ...] = ("image", "text")
    captions: int = 0  # in the training data
    truncated_captions: int = 0
    captions_per_image: int = 1
    repeats_are_positives: bool = False
    threads: int = 1  # number for an operation on the CPU; 1 on a GPU
    cores: int = 0  # available to this process; 0: not known
    ranks: int = 1  # on this machine, each with these threads and cores
    threads_sleep: bool = False  # soon, while they wait for each other


@dataclasses.dataclass
class RunWindow:
    """Recent records of a run.

    Attributes:
        facts: constants of the run.
        first: the first record with batch metrics.
        batch_records: the last records with batch metrics.
        steps: records of the steps since the first of `batch_records`.
        evaluations: records of all evaluations.
        skipped: record of the last non-finite step.
        other_cores: the last values of this metric, which not every record has.
    """

    facts: RunFacts
    first: Record | None = None
    batch_records: list[Record] = dataclasses.field(default_factory=list)
    steps: list[Record] = dataclasses.field(default_factory=list)
    evaluations: list[Record] = dataclasses.field(default_factory=list)
    skipped: Record | None = None
    other_cores: list[float] = dataclasses.field(default_factory=list)

    def add(self, record: Record) -> None:
        """Add a record and drop those that have left the window."""
        if "val_loss" in record:
            self.evaluations.append(record)
            return
        if "skipped" in record:
            self.skipped = record
            return
        self.steps.append(record)
        if "loss_floor" in record:
            self.first = self.first or record
            self.batch_records.append(record)
            if "other_cores" in record:  # the records between two of these repeat the value
                self.other_cores = [*self.other_cores, record["other_cores"]][-MIN_VALUES:]
            while len(self.batch_records) > MIN_RECORDS and record["step"] - self.batch_records[1]["step"] >= MIN_STEPS:
                start = self.batch_records.pop(0)["step"]
                self.steps = [step for step in self.steps if step["step"] > start]

    @property
    def is_full(self) -> bool:
        """True if the window has enough records to average."""
        records = self.batch_records
        return len(records) >= MIN_RECORDS and records[-1]["step"] - records[0]["step"] >= MIN_STEPS

    @property
    def is_past_warmup(self) -> bool:
        """True if the window is full and starts after the warmup, in which every model is stuck and collapsed."""
        return self.is_full and bool(self.batch_records[0]["step"] > self.facts.warmup_steps)

    def mean(self, name: str) -> float | None:
        """Return the mean of a metric over the batch records; None if it is missing or not finite in any of them."""
        return mean([record.get(name) for record in self.batch_records])

    def learned_fraction(self) -> float | None:
        """Return the mean of `learned_fraction` over the batch records."""
        return mean([learned_fraction(record) for record in self.batch_records])


def mean(values: Sequence[float | None]) -> float | None:
    """Return the mean; None if the list is empty or a value is missing or not finite."""
    finite = [value for value in values if value is not None and math.isfinite(value)]
    return sum(finite) / len(finite) if finite and len(finite) == len(values) else None
