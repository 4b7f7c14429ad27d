"""The callbacks that draw: the learning curve; at each evaluation the similarity matrix and the worst confusions."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from miniclip.plots import confusions
from miniclip.plots import similarity as similarities
from miniclip.plots.learning_curve import learning_curve
from miniclip.runs.directory import CURVE
from miniclip.train.callbacks import Callback, TrainerProtocol

if TYPE_CHECKING:
    from miniclip.runs.history import Record

SHARE = 0.04  # of a run's time, at most, goes to its pictures, and to each of the two callbacks the half
PICTURES = (CURVE, similarities.FILE, confusions.FILE)  # in the run directory


class Drawing(Callback):
    """What draws when something is new, but spends its share of the time alone; and once more at the end."""

    optional = True

    def on_start(self, trainer: TrainerProtocol) -> None:
        """Nothing is new yet."""
        self._new, self._next = False, 0.0

    def draw(self, trainer: TrainerProtocol) -> None:
        """Draw."""
        raise NotImplementedError

    def draw_if_due(self, trainer: TrainerProtocol) -> None:
        """Draw, or leave it to the next time."""
        self._new = True
        start = time.monotonic()
        if start >= self._next:
            self.draw(trainer)
            self._new, end = False, time.monotonic()
            self._next = end + (end - start) / (SHARE / 2)

    def on_end(self, trainer: TrainerProtocol) -> None:
        """Draw what is new since the last time."""
        if self._new:
            self.draw(trainer)
            self._new = False


class LearningCurve(Drawing):
    """`learning_curve.png`, drawn anew after each epoch, and when a state is saved: a long run can be watched.

    Where that is every few seconds it is drawn less often.
    """

    def on_save(self, trainer: TrainerProtocol) -> None:
        """Draw what there is."""
        if trainer.history.steps:
            self.draw_if_due(trainer)

    def draw(self, trainer: TrainerProtocol) -> None:
        """Draw the history."""
        learning_curve(trainer.history, trainer.run_dir / CURVE, title=trainer.run_dir.name)


class EvaluationPlots(Drawing):
    """`similarities.png` and `confusions.png`, drawn anew at each evaluation, from the embeddings that it made.

    Where that is every few seconds they are drawn less often.
    """

    def on_evaluate(self, trainer: TrainerProtocol, record: Record) -> None:
        """Draw both."""
        if trainer.embedded is not None and trainer.val_data is not None:
            self._about = f"validation pictures after epoch {record['epoch']}, step {record['step']:,}"
            self.draw_if_due(trainer)

    def draw(self, trainer: TrainerProtocol) -> None:
        """Draw what the last evaluation saw."""
        assert trainer.embedded is not None
        assert trainer.val_data is not None
        run = trainer.run_dir
        title = f"{run.name}: {self._about}"
        similarities.draw_similarities(trainer.embedded, run / similarities.FILE, title)
        confusions.draw_confusions(trainer.embedded, trainer.val_data, run / confusions.FILE, title)
