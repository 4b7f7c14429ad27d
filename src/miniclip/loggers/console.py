"""Progress of a run on the console: a bar in a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any

from miniclip.runs.history import Record
from miniclip.train.callbacks import Callback, TrainerProtocol
from miniclip.utils.formatting import format_duration

MIN_SECONDS, MIN_FRACTION = 10.0, 0.01  # between two lines: seconds, and fraction of the time since the start


class ConsoleLogger(Callback):
    """Progress bar with loss, recall, speed and remaining time. Without a terminal it prints plain lines.

    The lines become rarer the longer the run lasts: some hundred in a week, and one per evaluation.

    Args:
        clock: returns the time in seconds.
    """

    optional = True  # for example, the reader of a pipe may exit

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock

    def on_start(self, trainer: TrainerProtocol) -> None:
        """Show the bar."""
        from tqdm import tqdm

        self._recall = ""
        self._first_step, self._start, self._last_line = trainer.step, self._clock(), -float("inf")
        self._bar: Any = tqdm(
            total=trainer.total_steps,
            initial=trainer.step,
            disable=None,  # if standard error is not a terminal
            unit="step",
            bar_format="{desc} {bar} {n_fmt}/{total_fmt} [{elapsed} < {remaining}]{postfix}",
            dynamic_ncols=True,
        )
        if trainer.step >= trainer.total_steps:
            self._print(f"all {trainer.total_steps:,} steps are completed: nothing is left to train")

    def on_step(self, trainer: TrainerProtocol, record: Record) -> None:
        """Advance the bar, or print a line if it is due."""
        if self._bar.disable:
            self._print_step(trainer, record)
            return
        self._bar.set_description_str(f"epoch {record['epoch']}/{trainer.epochs}", refresh=False)
        self._bar.set_postfix_str(f"{self._recall}{step_summary(record)}", refresh=False)
        self._bar.update()

    def on_skip(self, trainer: TrainerProtocol, record: Record) -> None:
        """Print a line above the bar."""
        self._bar.update()
        batch = f"; its batch is in skipped/{record['batch']}" if record["batch"] else ""
        self._print(f"step {record['step']} skipped, not finite: {record['skipped']}{batch}")

    def on_evaluate(self, trainer: TrainerProtocol, record: Record) -> None:
        """Print a line above the bar."""
        self._recall = f"R@1 {record['text_to_image']['R@1']:.1f} "
        steps = [step for step in trainer.history.steps if step["epoch"] == record["epoch"]]
        self._print(evaluation_summary(record, steps, trainer.epochs))

    def on_end(self, trainer: TrainerProtocol) -> None:
        """Remove the bar."""
        self._bar.close()

    def _print_step(self, trainer: TrainerProtocol, record: Record) -> None:
        now = self._clock()
        elapsed = now - self._start
        if now - self._last_line < max(MIN_SECONDS, MIN_FRACTION * elapsed):
            return
        self._last_line = now
        done, left = trainer.step - self._first_step, trainer.total_steps - trainer.step  # records arrive later
        remaining = f"  {format_duration(elapsed / done * left)} left" if done and elapsed > 0 else ""
        position = f"step {record['step']:,}/{trainer.total_steps:,}  epoch {record['epoch']}/{trainer.epochs}"
        self._print(f"{position}  {step_summary(record)}{remaining}")

    def _print(self, line: str) -> None:
        self._bar.write(line, file=sys.stdout)
        sys.stdout.flush()


def step_summary(record: Record) -> str:
    """Return the main metrics of a step in half a line; missing ones are left out."""
    parts = []
    if record.get("loss") is not None:
        parts.append(f"loss {record['loss']:.3f} (chance {record['chance_loss']:.2f})")
    if "samples_per_second" in record:
        parts.append(f"{record['samples_per_second']:,.0f} samples/s")
    if "mfu" in record:
        parts.append(f"MFU {record['mfu']:.0%}")
    if "data_wait" in record:
        parts.append(f"data wait {record['data_wait']:.0%}")
    return ", ".join(parts)


def evaluation_summary(record: Record, steps: list[Record], epochs: int) -> str:
    """Return an evaluation in one line, with the mean loss and data wait of its epoch's steps."""
    loss, data_wait = _weighted_mean(steps, "loss"), _weighted_mean(steps, "data_wait")
    return (
        f"epoch {record['epoch']:>3}/{epochs}  {'' if loss is None else f'loss {loss:.3f}  '}"
        f"validation loss {record['val_loss']:.3f} (chance {record['val_chance_loss']:.2f})  "
        f"R@1 text to image {record['text_to_image']['R@1']:.1f}, "
        f"image to text {record['image_to_text']['R@1']:.1f}"
        f"{'' if data_wait is None else f'  data wait {data_wait:.1%}'}"
    )


def _weighted_mean(records: list[Record], name: str) -> float | None:
    """Return the mean of a metric over the steps that have it; a merged record counts for all of its steps."""
    values = [(record[name], record.get("steps", 1)) for record in records if record.get(name) is not None]
    return sum(value * weight for value, weight in values) / sum(weight for _, weight in values) if values else None
