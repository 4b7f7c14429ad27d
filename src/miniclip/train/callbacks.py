"""What happens around the steps: the log, pictures, progress. Write your own by deriving from `Callback`."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from miniclip.runs import history

if TYPE_CHECKING:
    from miniclip.runs.history import Record
    from miniclip.train.config import TrainConfig
    from miniclip.train.trainer import Trainer


class Callback:
    """Called by the trainer, in the order in which the callbacks stand. Every method does nothing here.

    Attributes:
        optional: whether the run goes on where a method raises: True for what only shows how it goes.
        failed: the first method of an optional callback that has raised.
    """

    optional = False
    failed: str | None = None

    def on_start(self, trainer: Trainer) -> None:
        """Before the first step, of a new run or of one taken up."""

    def on_step(self, trainer: Trainer, record: Record) -> None:
        """For each step, in order, some steps late: they are read from the device `log_every` at a time."""

    def on_skip(self, trainer: Trainer, record: Record) -> None:
        """For each step that was not finite and changed nothing; `record["skipped"]` says where it went wrong."""

    def on_evaluate(self, trainer: Trainer, record: Record) -> None:
        """After each evaluation, with its record already in `trainer.history`."""

    def on_save(self, trainer: Trainer) -> None:
        """Before a state is written."""

    def on_end(self, trainer: Trainer) -> None:
        """After the last step, also when the run is interrupted or fails."""


class MetricsFile(Callback):
    """`metrics.jsonl`: a line a step, a line an evaluation."""

    def on_start(self, trainer: Trainer) -> None:
        """Open the file; a run taken up drops what came after its state."""
        path = trainer.run_dir / history.FILE
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("ab")
        self._file.truncate(min(trainer.history.end, path.stat().st_size))

    def on_step(self, trainer: Trainer, record: Record) -> None:
        """Append a line."""
        self._write(trainer, record)

    def on_skip(self, trainer: Trainer, record: Record) -> None:
        """Append a line."""
        self._write(trainer, record)

    def on_evaluate(self, trainer: Trainer, record: Record) -> None:
        """Append a line."""
        self._write(trainer, record)

    def on_save(self, trainer: Trainer) -> None:
        """See that every line is in the file: a state is never ahead of its log."""
        self._file.flush()
        os.fsync(self._file.fileno())

    def on_end(self, trainer: Trainer) -> None:
        """Close the file."""
        self._file.close()

    def _write(self, trainer: Trainer, record: Record) -> None:
        trainer.history.end += self._file.write(history.line(record).encode())


def default_callbacks() -> list[Callback]:
    """What a trainer does unless it is told otherwise."""
    from miniclip.diagnostics.doctor import Doctor
    from miniclip.loggers.console import Progress  # these are callbacks themselves
    from miniclip.plots.callbacks import EvaluationPlots, LearningCurve
    from miniclip.runtime.flops import MFULogger

    return [MFULogger(), MetricsFile(), EvaluationPlots(), LearningCurve(), Progress(), Doctor()]


def sinks(config: TrainConfig) -> list[Callback]:
    """The places that a run shall also be logged to, by its settings.

    Raises:
        ImportError: what they need is not installed.
    """
    found: list[Callback] = []
    if config.tensorboard:
        from miniclip.loggers.tensorboard import TensorBoard

        found.append(TensorBoard())
    if config.wandb is not None:
        from miniclip.loggers.wandb import WeightsAndBiases

        found.append(WeightsAndBiases(config.wandb))
    return found


def call(callbacks: Sequence[Callback], event: str, *arguments: Any) -> None:
    """Call a method of each; of an `optional` one a failure is said, once, and the run goes on."""
    for callback in callbacks:
        if callback.failed == "on_start":
            continue  # it never began
        try:
            getattr(callback, event)(*arguments)
        except Exception as error:
            if not callback.optional:
                raise
            if callback.failed is None:
                callback.failed = event
                name, why = type(callback).__name__, " ".join(str(error).split())
                warnings.warn(
                    f"{name}: {type(error).__name__}: {why}; the run goes on, and {history.FILE} keeps its figures",
                    stacklevel=2,
                )
