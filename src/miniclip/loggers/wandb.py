"""Weights & Biases logger. With WANDB_MODE=offline its files stay in the run directory.

W&B's own step counter only increases, so a resumed run could not log a step again. Each row therefore carries our step
as the x axis, and `wandb.json` stores the W&B run id and the last logged steps. It is written before a row is logged: a
kill in between loses a point on W&B, and never duplicates one. `metrics.jsonl` has all points. If a resumed run repeats
logged steps with changes that affect the result, its points differ, and it gets a new W&B run.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from miniclip.loggers.selection import is_logged, plot_paths, scalars
from miniclip.runs.changes import NEUTRAL
from miniclip.runs.history import Record
from miniclip.train.callbacks import Callback, TrainerProtocol
from miniclip.utils.atomic import write_atomically
from miniclip.utils.files import parse_json, read_limited

FILE = "wandb.json"


class WandbLogger(Callback):
    """Logger of scalars, plots and settings to Weights & Biases. A resumed run continues its W&B run.

    Args:
        project: W&B project; the W&B run has the name of the run directory.

    Raises:
        ImportError: wandb is not installed.
    """

    optional = True

    def __init__(self, project: str) -> None:
        self.project = project
        try:
            import wandb
        except ImportError:
            raise ImportError('the setting wandb needs the package wandb: pip install "miniclip[wandb]"') from None
        self._wandb: Any = wandb

    def on_start(self, trainer: TrainerProtocol) -> None:
        """Open the W&B run."""
        self._path = trainer.run_dir / FILE
        self._state = _read_state(self._path)  # "id"; "step" and "evaluation": the last ones that were logged
        logged = max(self._state.get("step", 0), self._state.get("evaluation", 0))
        if logged > trainer.step and not trainer.changes.keys() <= NEUTRAL:
            self._state = {}
        self._run = self._wandb.init(
            project=self.project,
            name=trainer.run_dir.name,
            dir=str(trainer.run_dir),
            id=self._state.get("id"),
            resume="allow" if self._state else None,
            config={**trainer.config.to_dict(), "model": trainer.model.config.to_dict(), **trainer.about},
        )
        self._run.define_metric("*", step_metric="step")
        self._update_state(id=self._run.id)

    def on_step(self, trainer: TrainerProtocol, record: Record) -> None:
        """Log every `log_every`-th step once."""
        if is_logged(trainer, record) and self._is_new("step", record):
            self._run.log(_row("train", record))

    def after_evaluate(self, trainer: TrainerProtocol, record: Record) -> None:
        """Log the metrics and plots of an evaluation once."""
        if self._is_new("evaluation", record):
            plots = {f"plots/{path.stem}": self._wandb.Image(str(path)) for path in plot_paths(trainer)}
            self._run.log({**_row("validation", record), **plots})

    def on_end(self, trainer: TrainerProtocol) -> None:
        """Close the W&B run."""
        self._run.finish()

    def _is_new(self, kind: str, record: Record) -> bool:
        """Return whether a record is later than the last logged one, and if so store it as the last one."""
        if record["step"] <= self._state.get(kind, -1):
            return False
        self._update_state(**{kind: record["step"]})
        return True

    def _update_state(self, **values: Any) -> None:
        self._state |= values
        text = json.dumps(self._state)
        write_atomically(self._path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def _row(group: str, record: Record) -> dict[str, Any]:
    metrics = {f"{group}/{name}": value for name, value in scalars(record).items()}
    return {"step": record["step"], "epoch": record["epoch"], **metrics}


def _read_state(path: Path) -> dict[str, Any]:
    """Return the stored state; empty for a new run or a damaged file."""
    try:
        state = parse_json(read_limited(path))
    except (FileNotFoundError, ValueError):
        return {}
    return state if isinstance(state, dict) else {}
