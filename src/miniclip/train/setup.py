"""Parts of a run, put together from the settings."""

from __future__ import annotations

from collections.abc import Callable

from miniclip.inference.model import CLIPModel
from miniclip.runtime import distributed, flops
from miniclip.train.callbacks import Callback
from miniclip.train.config import TrainConfig


def default_callbacks() -> list[Callback]:
    """Return the callbacks of a trainer that is given none."""
    from miniclip.diagnostics.doctor import Doctor
    from miniclip.loggers.console import ConsoleLogger
    from miniclip.plots.callbacks import EvaluationPlots, LearningCurve
    from miniclip.runs.metrics_file import MetricsFile

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


def mfu_meter(model: CLIPModel, config: TrainConfig) -> Callable[[int, float], float | None]:
    """Return a function of caption length T and samples per second that gives the MFU, in 0..1.

    It gives None on ranks other than 0, and for towers whose FLOPs are not counted.
    """

    def mfu(tokens: int, samples_per_second: float) -> float | None:
        pair = flops.pair_flops(model, tokens, config.patch_dropout) if distributed.is_main() else None
        if pair is None:
            return None
        peak = flops.peak_flops(model.device, config.precision) * distributed.world_size()
        return round(samples_per_second * pair / peak, 4)

    return mfu
