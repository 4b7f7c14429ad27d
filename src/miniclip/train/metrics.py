"""The figures of steps: left on the device as they are made, and read together at a look, with the speed in between."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from miniclip.data.loader import ImageCaptionLoader
from miniclip.runs.history import Record
from miniclip.runs.nonfinite import finite_rows
from miniclip.train.step import StepResult


class StepMetrics(NamedTuple):
    """A step's figures, read."""

    record: Record  # with them, where they are finite
    figures: dict[str, float]
    rows: Tensor  # (2, n), whose embeddings were finite

    @property
    def finite(self) -> bool:
        """Whether the step has changed the weights."""
        return math.isfinite(self.figures["loss"]) and math.isfinite(self.figures["grad_norm"])


class MetricsBuffer:
    """Steps whose figures are still on the device, and the clock.

    Args:
        loader: counts the time in which batches were waited for.
    """

    def __init__(self, loader: ImageCaptionLoader, mfu: Callable[[int, float], float | None]) -> None:
        self.loader, self.mfu = loader, mfu
        self._unread: list[tuple[Record, dict[str, Tensor], Tensor]] = []
        self.start_the_clock()

    def start_the_clock(self) -> None:
        """From here on it is counted how fast the steps are, and how long they wait for data."""
        self._since, self.loader.wait_seconds = time.perf_counter(), 0.0

    def add(self, record: Record, result: StepResult) -> None:
        """Note a step; `record` is what is known of it on the CPU."""
        self._unread.append((record, result.figures, finite_rows(result.seen)))

    def read(self) -> list[StepMetrics]:
        """Fetch what was noted since the last time; this waits for the device."""
        if not self._unread:
            return []
        unread, self._unread = self._unread, []
        values = torch.stack([torch.stack(list(figures.values())) for _, figures, _ in unread]).tolist()
        seconds = time.perf_counter() - self._since
        pace = {
            "samples_per_second": round(len(unread) * self.loader.batch_size / seconds, 1),
            "data_wait": round(min(1.0, self.loader.wait_seconds / seconds), 4),
        }
        self.start_the_clock()
        readings = []
        for (record, figures, rows), numbers in zip(unread, values, strict=True):
            found = dict(zip(figures, numbers, strict=True))
            reading = StepMetrics(record, found, rows)
            if reading.finite:
                record.update(found | pace)
                if (mfu := self.mfu(record["tokens"], pace["samples_per_second"])) is not None:
                    record["mfu"] = mfu
            readings.append(reading)
        return readings
