"""Position of a run: how far it has come, saved with every training state."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from miniclip.train.config import TrainConfig


@dataclasses.dataclass
class Progress:
    """Position of a run.

    Attributes:
        step: number of completed steps.
        epoch: number of completed epochs, evaluations included.
        epoch_start: step at which the current epoch began.
        evaluated: step of the last evaluation; -1 before the first.
        closed: step at which the last epoch was closed (evaluated and saved); -1 before the first.
        best: best value of the monitored metric, where greater is better; None before the first evaluation.
        skipped: number of non-finite steps in a row.
        callbacks: states of the callbacks by the name of their class, JSON values.
        best_step: step of the evaluation that gave the best value, whose model is in `best/`; -1 without one.
    """

    step: int = 0
    epoch: int = 0
    epoch_start: int = 0
    evaluated: int = -1
    closed: int = -1
    best: float | None = None
    skipped: int = 0
    callbacks: dict[str, Any] = dataclasses.field(default_factory=dict)
    best_step: int = -1

    def improve(self, value: float) -> bool:
        """Return whether a value of the monitored metric is the best so far, and keep it if it is."""
        is_best = self.best is None or value > self.best
        if is_best:
            self.best, self.best_step = value, self.step
        return is_best


def run_length(config: TrainConfig, progress: Progress, steps_per_epoch: int) -> tuple[int, int]:
    """Return the number of steps and of epochs of the whole run."""
    steps = progress.epoch_start + (config.epochs - progress.epoch) * steps_per_epoch
    steps = min(steps, config.max_steps or steps)
    return steps, progress.epoch + math.ceil((steps - progress.epoch_start) / steps_per_epoch)
