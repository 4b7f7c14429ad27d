"""The run in TensorBoard: `tensorboard --logdir runs`. Its files lie in the run directory, below `tensorboard/`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from miniclip.plots.callbacks import PICTURES
from miniclip.train.callbacks import Callback, TrainerProtocol

if TYPE_CHECKING:
    from miniclip.runs.history import Record

FOLDER = "tensorboard"
APART = ("step", "epoch")  # where a figure stands, and no figure


class TensorBoard(Callback):
    """Scalars of every `log_every`-th step, the evaluations and their pictures.

    A run that is taken up writes on in a new file that tells TensorBoard from which step on the old ones do not count.

    Raises:
        ImportError: tensorboard is not installed.
    """

    optional = True

    def __init__(self) -> None:
        try:
            import torch.utils.tensorboard  # noqa: F401  (now, and not at the first step)
        except ImportError:
            raise ImportError('the setting tensorboard needs it: pip install "miniclip[tensorboard]"') from None

    def on_start(self, trainer: TrainerProtocol) -> None:
        """Open a file, and write the settings; what came after the state of a run that is taken up is purged."""
        from torch.utils.tensorboard import SummaryWriter

        history = trainer.history
        taken_up = bool(history.steps or history.evaluations)
        purged = trainer.step if taken_up else None  # this step too, since its evaluation may come again
        self._writer: Any = SummaryWriter(str(trainer.run_dir / FOLDER), purge_step=purged)
        if not taken_up:
            rows = [f"| {name} | {value} |" for name, value in trainer.config.to_dict().items()]
            self._writer.add_text("settings", "\n".join(["| setting | value |", "| --- | --- |", *rows]), 0)
            return
        for record in history.steps[-1:]:
            if record["step"] == trainer.step:
                self.on_step(trainer, record)
        for record in history.evaluations[-1:]:
            if record["step"] == trainer.step:
                self.on_evaluate(trainer, record)

    def on_step(self, trainer: TrainerProtocol, record: Record) -> None:
        """Write a step, if its turn has come."""
        if is_due(trainer, record):
            self._scalars("step", record, record["step"])

    def on_evaluate(self, trainer: TrainerProtocol, record: Record) -> None:
        """Write an evaluation and its pictures."""
        self._scalars("validation", record, record["step"])
        for path in pictures_of(trainer):
            self._writer.add_image(f"pictures/{path.stem}", _pixels(path), record["step"], dataformats="HWC")

    def on_save(self, trainer: TrainerProtocol) -> None:
        """See that it is on the disk."""
        self._writer.flush()

    def on_end(self, trainer: TrainerProtocol) -> None:
        """Close the file."""
        self._writer.close()

    def _scalars(self, group: str, record: Record, step: int) -> None:
        for name, value in scalars(record).items():
            self._writer.add_scalar(f"{group}/{name}", value, step)


def is_due(trainer: TrainerProtocol, record: Record) -> bool:
    """Whether a step is shown elsewhere: every `log_every`-th, and the last. The log keeps all of them."""
    step: int = record["step"]
    return step % trainer.config.log_every == 0 or step in (1, trainer.total_steps)


def scalars(record: Record) -> dict[str, float]:
    """The figures of a record by name; those of `{"text_to_image": {"R@1": 3.0}}` as `text_to_image/R@1`."""
    found: dict[str, float] = {}
    for name, value in record.items():
        if isinstance(value, dict):
            found |= {f"{name}/{part}": figure for part, figure in scalars(value).items()}
        elif isinstance(value, int | float) and name not in APART:
            found[name] = value
    return found


def pictures_of(trainer: TrainerProtocol) -> list[Path]:
    """The pictures that an evaluation leaves in the run directory, but for the curve: others draw their own."""
    return [path for name in PICTURES[1:] if (path := trainer.run_dir / name).exists()]


def _pixels(path: Path) -> Any:
    import numpy as np
    from PIL import Image

    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB"))
