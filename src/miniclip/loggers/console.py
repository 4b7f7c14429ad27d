"""What a person sees of a run: a bar in a terminal, and elsewhere plain lines, fewer the longer the run lasts."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from miniclip.train.callbacks import Callback, TrainerProtocol

if TYPE_CHECKING:
    from miniclip.runs.history import Record

LEAST, SHARE = 10.0, 0.01  # between two lines pass so many seconds, and such a share of the time since the start


class Progress(Callback):
    """A bar with loss, log N, recall, pairs a second and time left; plain lines where there is no terminal.

    Of a run of a week these are some hundred lines, and one an evaluation.

    Args:
        clock: tells the seconds.
    """

    optional = True  # a pipe that nobody reads any more

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock

    def on_start(self, trainer: TrainerProtocol) -> None:
        """Show the bar."""
        from tqdm import tqdm

        self._recall = ""
        self._first, self._started, self._said = trainer.step, self._clock(), -float("inf")
        self._bar: Any = tqdm(
            total=trainer.total_steps,
            initial=trainer.step,
            disable=None,  # where standard error is no terminal
            unit="step",
            bar_format="{desc} {bar} {n_fmt}/{total_fmt} [{elapsed} < {remaining}]{postfix}",
            dynamic_ncols=True,
        )

    def on_step(self, trainer: TrainerProtocol, record: Record) -> None:
        """Move the bar, or say a line where it is time to."""
        if self._bar.disable:
            self._say_step(trainer, record)
            return
        self._bar.set_description_str(f"epoch {record['epoch']}/{trainer.epochs}", refresh=False)
        self._bar.set_postfix_str(f"{self._recall}{in_brief(record)}", refresh=False)
        self._bar.update()

    def on_skip(self, trainer: TrainerProtocol, record: Record) -> None:
        """Print a line that stays."""
        self._bar.update()
        batch = f"; its batch is in skipped/{record['batch']}" if record["batch"] else ""
        self._say(f"step {record['step']} skipped, not finite: {record['skipped']}{batch}")

    def on_evaluate(self, trainer: TrainerProtocol, record: Record) -> None:
        """Print a line that stays."""
        self._recall = f"R@1 {record['text_to_image']['R@1']:.1f} "
        self._say(describe(record, trainer))

    def on_end(self, trainer: TrainerProtocol) -> None:
        """Take the bar away."""
        self._bar.close()

    def _say_step(self, trainer: TrainerProtocol, record: Record) -> None:
        now = self._clock()
        if now - self._said < max(LEAST, SHARE * (now - self._started)):
            return
        self._said = now
        done, left = trainer.step - self._first, trainer.total_steps - trainer.step  # the records come in later
        rest = f"  {in_time((now - self._started) / done * left)} left" if done and now > self._started else ""
        steps = f"step {record['step']:,}/{trainer.total_steps:,}  epoch {record['epoch']}/{trainer.epochs}"
        self._say(f"{steps}  {in_brief(record)}{rest}")

    def _say(self, line: str) -> None:
        self._bar.write(line, file=sys.stdout)
        sys.stdout.flush()


def in_brief(record: Record) -> str:
    """A step's figures in half a line, those that it has."""
    parts = []
    if record.get("loss") is not None:
        parts.append(f"loss {record['loss']:.3f} (log N {record['log_n']:.2f})")
    if "samples_per_second" in record:
        parts.append(f"{record['samples_per_second']:,.0f} pairs/s")
    if "mfu" in record:
        parts.append(f"{record['mfu']:.0%} of peak")
    if "data_wait" in record:
        parts.append(f"waiting {record['data_wait']:.0%}")
    return ", ".join(parts)


def describe(record: Record, trainer: TrainerProtocol) -> str:
    """An evaluation in a line, with the means of its epoch's steps."""
    epoch = [r for r in trainer.history.steps if r["epoch"] == record["epoch"]]
    loss, waiting = _mean(epoch, "loss"), _mean(epoch, "data_wait")
    return (
        f"epoch {record['epoch']:>3}/{trainer.epochs}  {'' if loss is None else f'loss {loss:.3f}  '}"
        f"validation loss {record['val_loss']:.3f} "
        f"(log N {record['val_log_n']:.2f})  R@1 text to image {record['text_to_image']['R@1']:.1f}, "
        f"image to text {record['image_to_text']['R@1']:.1f}"
        f"{'' if waiting is None else f'  waiting for data {waiting:.1%}'}"
    )


def _mean(records: list[Record], name: str) -> float | None:
    """Of a figure, over those that have it; a record that stands for several steps counts as many times."""
    found = [(r[name], r.get("steps", 1)) for r in records if r.get(name) is not None]
    return sum(value * weight for value, weight in found) / sum(weight for _, weight in found) if found else None


def in_time(seconds: float) -> str:
    """A duration in its two largest units: `in_time(7500)` is `2 h 5 min`."""
    if seconds < 10:
        return f"{seconds:.2g} s"
    seconds = round(seconds)
    for unit, size, smaller, part in (("d", 86400, "h", 3600), ("h", 3600, "min", 60), ("min", 60, "s", 1)):
        if seconds >= size:
            rest = seconds % size // part
            return f"{seconds // size:,} {unit}" + (f" {rest} {smaller}" if rest else "")
    return f"{seconds} s"
