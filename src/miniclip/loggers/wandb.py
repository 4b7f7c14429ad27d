"""The run on Weights & Biases, or in its files where WANDB_MODE=offline. Which run of theirs it is, is kept in ours.

Their own counter of steps only rises, and what a run that is taken up logs again would be dropped or doubled, as the
mode is. So each row carries its step (`step` is the axis), and `wandb.json` says how far was logged; it is written
first. A kill in between loses a point of theirs, and never doubles one; `metrics.jsonl` has all of them.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from miniclip.loggers.tensorboard import is_due, pictures_of, scalars
from miniclip.train.callbacks import Callback, TrainerProtocol
from miniclip.utils.atomic import write_atomically

if TYPE_CHECKING:
    from miniclip.runs.history import Record

FILE = "wandb.json"


class WeightsAndBiases(Callback):
    """Scalars of every `log_every`-th step, the evaluations and their pictures; a run that is taken up stays one run.

    Args:
        project: of theirs; the run is named after its directory.

    Raises:
        ImportError: wandb is not installed.
    """

    optional = True

    def __init__(self, project: str) -> None:
        self.project = project
        try:
            import wandb
        except ImportError:
            raise ImportError('the setting wandb needs it: pip install "miniclip[wandb]"') from None
        self._wandb: Any = wandb

    def on_start(self, trainer: TrainerProtocol) -> None:
        """Open their run, the same one if ours is taken up."""
        self._path = trainer.run_dir / FILE
        self._mark = _read(self._path)  # id; step and evaluation: the last ones that were logged
        self._run = self._wandb.init(
            project=self.project,
            name=trainer.run_dir.name,
            dir=str(trainer.run_dir),
            id=self._mark.get("id"),
            resume="allow" if self._mark else None,
            config={**trainer.config.to_dict(), "model": trainer.model.config.to_dict(), **trainer.about},
        )
        self._run.define_metric("*", step_metric="step")
        self._set(id=self._run.id)

    def on_step(self, trainer: TrainerProtocol, record: Record) -> None:
        """Log a step, if its turn has come and it was not logged before."""
        if is_due(trainer, record) and self._is_new("step", record):
            self._run.log({"step": record["step"], "epoch": record["epoch"], **_named("train", record)})

    def on_evaluate(self, trainer: TrainerProtocol, record: Record) -> None:
        """Log an evaluation and its pictures, if it was not logged before."""
        if self._is_new("evaluation", record):
            pictures = {f"pictures/{path.stem}": self._wandb.Image(str(path)) for path in pictures_of(trainer)}
            row = {"step": record["step"], "epoch": record["epoch"], **_named("validation", record)}
            self._run.log({**row, **pictures})

    def on_end(self, trainer: TrainerProtocol) -> None:
        """Close their run."""
        self._run.finish()

    def _is_new(self, kind: str, record: Record) -> bool:
        """Whether a record is later than the last one logged; if so it is the last one from now on."""
        if record["step"] <= self._mark.get(kind, -1):
            return False
        self._set(**{kind: record["step"]})
        return True

    def _set(self, **values: Any) -> None:
        self._mark |= values
        write_atomically(self._path, lambda temporary: temporary.write_text(json.dumps(self._mark), encoding="utf-8"))


def _named(group: str, record: Record) -> dict[str, float]:
    return {f"{group}/{name}": value for name, value in scalars(record).items()}


def _read(path: Path) -> dict[str, Any]:
    """What was logged; nothing of a new run, or where the file is damaged."""
    try:
        mark = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}
    return mark if isinstance(mark, dict) else {}
