"""The clock of a budget: CPU seconds of the training process, or the time of its steps on a GPU.

CPU seconds are those of all threads of the process (`time.process_time`), so that other work on the machine does not
decide. There are no worker processes: the images are decoded once, before the clock starts. On a GPU the clock counts
the steps with their data on the host ready, up to the end of the device's work.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch


class Clock:
    """Seconds of training so far; compilation, warm-up and evaluation happen outside `counting`."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.seconds = device, 0.0

    @property
    def counts_batches(self) -> bool:
        """Whether the making of batches counts: on a CPU it takes the time of training; beside a GPU it does not."""
        return self.device.type == "cpu"

    @contextmanager
    def counting(self) -> Iterator[None]:
        started = self._now()
        yield
        self.seconds += self._now() - started

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            return time.perf_counter()
        return time.process_time()
