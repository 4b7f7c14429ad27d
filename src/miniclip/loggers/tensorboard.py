"""TensorBoard logger: `tensorboard --logdir runs`. Its files are in the run directory, in `tensorboard/`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from miniclip.loggers.selection import is_logged, plot_paths, scalars
from miniclip.runs.history import Record
from miniclip.train.callbacks import Callback, TrainerProtocol

FOLDER = "tensorboard"


class TensorBoardLogger(Callback):
    """Writer of scalars, plots and settings for TensorBoard.

    A resumed run writes a new file; it tells TensorBoard to discard the steps of older files from its first step on.

    Raises:
        ImportError: tensorboard is not installed.
    """

    optional = True

    def __init__(self) -> None:
        try:
            import torch.utils.tensorboard  # noqa: F401  (fails before the run starts, not at the first step)
        except ImportError:
            raise ImportError(
                'the setting tensorboard needs the package tensorboard: pip install "miniclip[tensorboard]"'
            ) from None

    def on_start(self, trainer: TrainerProtocol) -> None:
        """Open a file. A new run writes its settings, a resumed one the records of its current step again."""
        from torch.utils.tensorboard import SummaryWriter

        history = trainer.history
        is_resumed = bool(history.steps or history.evaluations)
        purge_step = trainer.step if is_resumed else None  # this step included: its evaluation may be repeated
        self._writer: Any = SummaryWriter(str(trainer.run_dir / FOLDER), purge_step=purge_step)
        if not is_resumed:
            rows = [f"| {name} | {value} |" for name, value in trainer.config.to_dict().items()]
            self._writer.add_text("settings", "\n".join(["| setting | value |", "| --- | --- |", *rows]), 0)
            return
        for record in history.steps[-1:]:
            if record["step"] == trainer.step:
                self.on_step(trainer, record)
        for record in history.evaluations[-1:]:
            if record["step"] == trainer.step:
                self.after_evaluate(trainer, record)

    def on_step(self, trainer: TrainerProtocol, record: Record) -> None:
        """Write the metrics of every `log_every`-th step."""
        if is_logged(trainer, record):
            self._write_scalars("step", record)

    def after_evaluate(self, trainer: TrainerProtocol, record: Record) -> None:
        """Write the metrics and plots of an evaluation."""
        self._write_scalars("validation", record)
        for path in plot_paths(trainer):
            self._writer.add_image(f"plots/{path.stem}", _read_pixels(path), record["step"], dataformats="HWC")

    def on_save(self, trainer: TrainerProtocol) -> None:
        """Flush the file to the disk."""
        self._writer.flush()

    def on_end(self, trainer: TrainerProtocol) -> None:
        """Close the file."""
        self._writer.close()

    def _write_scalars(self, group: str, record: Record) -> None:
        for name, value in scalars(record).items():
            self._writer.add_scalar(f"{group}/{name}", value, record["step"])


def _read_pixels(path: Path) -> Any:
    import numpy as np
    from PIL import Image

    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))
