"""Callback that appends every record of a run to `metrics.jsonl`."""

from __future__ import annotations

import os

from miniclip.runs import history
from miniclip.runs.history import Record
from miniclip.train.callbacks import Callback, TrainerProtocol


class MetricsFile(Callback):
    """Writer of `metrics.jsonl`: one line per step, one line per evaluation."""

    def on_start(self, trainer: TrainerProtocol) -> None:
        """Open the file. In a resumed run, drop the lines that are later than the training state."""
        path = trainer.run_dir / history.FILE
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("ab")
        self._file.truncate(min(trainer.history.end, path.stat().st_size))

    def on_step(self, trainer: TrainerProtocol, record: Record) -> None:
        """Append a line."""
        self._write(trainer, record)

    def on_skip(self, trainer: TrainerProtocol, record: Record) -> None:
        """Append a line."""
        self._write(trainer, record)

    def on_evaluate(self, trainer: TrainerProtocol, record: Record) -> None:
        """Append a line."""
        self._write(trainer, record)

    def on_save(self, trainer: TrainerProtocol) -> None:
        """Flush the file to the disk: a training state must never be later than its log."""
        self._file.flush()
        os.fsync(self._file.fileno())

    def on_end(self, trainer: TrainerProtocol) -> None:
        """Close the file."""
        self._file.close()

    def _write(self, trainer: TrainerProtocol, record: Record) -> None:
        trainer.history.end += self._file.write(history.line(record).encode())
