"""What happens around the steps: progress, the log, the curve. Write your own by deriving from `Callback`."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any

from miniclip.train import history
from miniclip.train.plots import learning_curve
from miniclip.train.run_dir import CURVE

if TYPE_CHECKING:
    from miniclip.train.history import Record
    from miniclip.train.trainer import Trainer


class Callback:
    """Called by the trainer, in the order in which the callbacks stand. Every method does nothing here."""

    def on_start(self, trainer: Trainer) -> None:
        """Before the first step, of a new run or of one taken up."""

    def on_step(self, trainer: Trainer, record: Record) -> None:
        """For each step, in order, some steps late: they are read from the device `log_every` at a time."""

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


class LearningCurve(Callback):
    """`learning_curve.png`, drawn anew after each epoch, and whenever a state is saved: a long run can be watched."""

    def on_save(self, trainer: Trainer) -> None:
        """Draw what there is."""
        if trainer.history.steps:
            learning_curve(trainer.history, trainer.run_dir / CURVE, title=trainer.run_dir.name)


class Progress(Callback):
    """A bar with loss, log N, recall, pairs a second and time left; plain lines where there is no terminal."""

    def on_start(self, trainer: Trainer) -> None:
        """Show the bar."""
        from tqdm import tqdm

        self._recall = ""
        self._bar: Any = tqdm(
            total=trainer.total_steps,
            initial=trainer.step,
            disable=None,  # where standard error is no terminal
            unit="step",
            bar_format="{desc} {bar} {n_fmt}/{total_fmt} [{elapsed} < {remaining}]{postfix}",
            dynamic_ncols=True,
        )

    def on_step(self, trainer: Trainer, record: Record) -> None:
        """Move the bar."""
        self._bar.set_description_str(f"epoch {record['epoch']}/{trainer.epochs}", refresh=False)
        self._bar.set_postfix_str(
            f"loss {record['loss']:.3f} (log N {record['log_n']:.2f}) {self._recall}"
            f"{record['pairs_per_second']:.0f} pairs/s, {record['waiting']:.0%} waiting for data",
            refresh=False,
        )
        self._bar.update()

    def on_evaluate(self, trainer: Trainer, record: Record) -> None:
        """Print a line that stays."""
        self._recall = f"R@1 {record['text_to_image']['R@1']:.1f} "
        self._say(describe(record, trainer))

    def on_end(self, trainer: Trainer) -> None:
        """Take the bar away."""
        self._bar.close()

    def _say(self, line: str) -> None:
        self._bar.write(line, file=sys.stdout)
        sys.stdout.flush()


def describe(record: Record, trainer: Trainer) -> str:
    """An evaluation in a line."""
    recent = [r["loss"] for r in trainer.history.steps if r["epoch"] == record["epoch"]]
    loss = f"loss {sum(recent) / len(recent):.3f}  " if recent else ""
    waits = [r["waiting"] for r in trainer.history.steps if r["epoch"] == record["epoch"] and "waiting" in r]
    waiting = f"  waiting for data {sum(waits) / len(waits):.1%}" if waits else ""
    return (
        f"epoch {record['epoch']:>3}/{trainer.epochs}  {loss}validation loss {record['val_loss']:.3f} "
        f"(log N {record['val_log_n']:.2f})  R@1 text to image {record['text_to_image']['R@1']:.1f}, "
        f"image to text {record['image_to_text']['R@1']:.1f}{waiting}"
    )


def default_callbacks() -> list[Callback]:
    """What a trainer does unless it is told otherwise."""
    return [MetricsFile(), LearningCurve(), Progress()]
