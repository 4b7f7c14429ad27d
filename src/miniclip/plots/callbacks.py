"""Callbacks that draw the learning curve, and the similarity matrix and worst confusions of each evaluation."""

from __future__ import annotations

import sys
import time

from miniclip.plots import confusions, similarity
from miniclip.plots.learning_curve import plot_learning_curve
from miniclip.runs.directory import CURVE
from miniclip.runs.history import Record
from miniclip.runs.interrupt import StopAtOnce
from miniclip.train.callbacks import Callback, TrainerProtocol

MAX_TIME_FRACTION = 0.02  # largest share of the run's time per callback
EVALUATION_PLOTS = (similarity.FILE, confusions.FILE)  # file names in the run directory


class PlotCallback(Callback):
    """Base class of callbacks that draw. It skips plots to stay within its time limit, but not the last one."""

    optional = True

    def on_start(self, trainer: TrainerProtocol) -> None:
        """Reset the time limit."""
        self._is_outdated, self._next_time = False, 0.0

    def draw(self, trainer: TrainerProtocol) -> None:
        """Draw the plots."""
        raise NotImplementedError

    def draw_if_due(self, trainer: TrainerProtocol) -> None:
        """Draw now if the time limit allows it; otherwise leave it to a later call."""
        self._is_outdated = True
        start = time.monotonic()
        if start >= self._next_time:
            self.draw(trainer)
            self._is_outdated, end = False, time.monotonic()
            self._next_time = end + (end - start) / MAX_TIME_FRACTION

    def on_end(self, trainer: TrainerProtocol) -> None:
        """Draw what has changed since the last time, unless a second Ctrl-C interrupted the run."""
        if self._is_outdated and not isinstance(sys.exception(), StopAtOnce):
            self.draw(trainer)
            self._is_outdated = False


class LearningCurve(PlotCallback):
    """Plot of `learning_curve.png` after each epoch and whenever a training state is saved."""

    def on_save(self, trainer: TrainerProtocol) -> None:
        """Draw the current history."""
        if trainer.history.steps:
            self.draw_if_due(trainer)

    def draw(self, trainer: TrainerProtocol) -> None:
        """Draw the history."""
        plot_learning_curve(trainer.history, trainer.run_dir / CURVE, title=f"Learning curve of {trainer.run_dir.name}")


class EvaluationPlots(PlotCallback):
    """Plots of `similarities.png` and `confusions.png`, from the embeddings of each evaluation."""

    def on_evaluate(self, trainer: TrainerProtocol, record: Record) -> None:
        """Draw both plots."""
        if trainer.embedded is not None and trainer.val_data is not None:
            self._subtitle = f"validation data, epoch {record['epoch']}, step {record['step']:,}"
            self.draw_if_due(trainer)

    def draw(self, trainer: TrainerProtocol) -> None:
        """Draw the embeddings of the last evaluation."""
        assert trainer.embedded is not None
        assert trainer.val_data is not None
        run_dir, label = trainer.run_dir, f"{trainer.run_dir.name}, {self._subtitle}"
        similarity.plot_similarities(trainer.embedded, run_dir / similarity.FILE, f"Cosine similarities: {label}")
        confusions.plot_confusions(
            trainer.embedded, trainer.val_data, run_dir / confusions.FILE, f"Worst confusions: {label}"
        )
