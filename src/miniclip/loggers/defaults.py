"""Callbacks of a trainer: the default ones, and the loggers that the settings add."""

from __future__ import annotations

from collections.abc import Sequence

from miniclip.diagnostics.doctor import Doctor
from miniclip.loggers.console import ConsoleLogger
from miniclip.plots.callbacks import EvaluationPlots, LearningCurve
from miniclip.runs.metrics_file import MetricsFile
from miniclip.runs.progress import Progress
from miniclip.runtime import distributed
from miniclip.train.callbacks import Callback, restore_callbacks
from miniclip.train.config import TrainConfig
from miniclip.utils.items import describe, listed


def default_callbacks() -> list[Callback]:
    """Return the callbacks of a trainer that is given none."""
    return [MetricsFile(), EvaluationPlots(), LearningCurve(), ConsoleLogger(), Doctor()]


def logger_callbacks(config: TrainConfig) -> list[Callback]:
    """Return the loggers that the settings add: TensorBoard, Weights & Biases.

    Raises:
        ImportError: the logger's package is not installed.
    """
    callbacks: list[Callback] = []
    if config.tensorboard:
        from miniclip.loggers.tensorboard import TensorBoardLogger

        callbacks.append(TensorBoardLogger())
    if config.wandb is not None:
        from miniclip.loggers.wandb import WandbLogger

        callbacks.append(WandbLogger(config.wandb))
    return callbacks


def build_callbacks(callbacks: Sequence[Callback] | None, config: TrainConfig, progress: Progress) -> list[Callback]:
    """Return the callbacks, by default `default_callbacks`, and the settings' loggers; ranks other than 0 have none.

    Callbacks of a resumed run get the states that `progress` holds.

    Raises:
        TypeError: the callbacks are one callback, or an item is not one.
    """
    if callbacks is not None:
        callbacks = listed(callbacks, "callbacks", "a list of callbacks, as in [MyCallback()]")
        for callback in callbacks:
            if not isinstance(callback, Callback):
                raise TypeError(f"callbacks: found {describe(callback)} in the list; expected instances of Callback")
    callbacks = [*(default_callbacks() if callbacks is None else callbacks), *logger_callbacks(config)]
    restore_callbacks(callbacks, progress.callbacks)
    return callbacks if distributed.is_main() else []
