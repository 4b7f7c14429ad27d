"""Setup of a run: device, precision, data, memory, sharding, loss, optimizer and loggers, in order of dependence."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from miniclip.checkpoints.native import require_plain
from miniclip.data.cache.reading import require_pixels
from miniclip.data.dataset import ImageCaptionDataset
from miniclip.data.given import as_dataset
from miniclip.data.loader import Batch, ImageCaptionLoader
from miniclip.data.options import LoaderOptions
from miniclip.data.skipping import SkipLog
from miniclip.data.subset import readable_subset
from miniclip.diagnostics.batch_metrics import batch_metrics
from miniclip.diagnostics.doctor import Doctor
from miniclip.inference.model import CLIPModel
from miniclip.loggers.console import ConsoleLogger
from miniclip.models.clip import CLIPOutput
from miniclip.plots.callbacks import EvaluationPlots, LearningCurve
from miniclip.runs.checkpointer import Checkpointer
from miniclip.runs.directory import fingerprint, next_run_dir, require_no_run, require_same_data
from miniclip.runs.history import Record
from miniclip.runs.metrics_file import MetricsFile
from miniclip.runs.nonfinite import NonFiniteSteps
from miniclip.runs.progress import Progress
from miniclip.runs.resume import ResumedRun, restore
from miniclip.runtime import distributed, fsdp
from miniclip.runtime.compilation import compile_blocks
from miniclip.runtime.devices import select_device
from miniclip.runtime.memory import checkpoint_blocks, find_micro_batch_size, synthetic_step
from miniclip.runtime.precision import Precision, resolve
from miniclip.tokenizer import TextTokenizer
from miniclip.train.callbacks import Callback
from miniclip.train.config import TrainConfig
from miniclip.train.ema import EMA
from miniclip.train.metrics import MetricsBuffer, mfu_function
from miniclip.train.optimizer import build_optimizer
from miniclip.train.step import LossFunction, StepOptions
from miniclip.train.step_arguments import InputPreparation, loss_function, step_options
from miniclip.utils.items import describe, listed
from miniclip.utils.option_names import option


@dataclasses.dataclass(frozen=True)
class Setup:
    """Parts of a run.

    Attributes:
        config: the settings, with precision and micro batch size resolved.
        run_dir: the run directory.
        facts: content of `config.json`: settings, model, fingerprints of the data, and the user's facts.
        train_data: the training images.
        val_data: the validation images that can be read, or None.
        loader: batches of the training data.
        truncated_captions: number of training captions that are longer than the context.
        prepare: function that makes the model's inputs from a batch.
        loss: the loss.
        step_options: options of a step.
        optimizer: the optimizer.
        ema: the moving average of the weights, or None.
        checkpointer: writer of the checkpoints.
        metrics: metrics and history.
        progress: position of the run.
    """

    config: TrainConfig
    run_dir: Path
    facts: dict[str, Any]
    train_data: ImageCaptionDataset
    val_data: ImageCaptionDataset | None
    loader: ImageCaptionLoader
    truncated_captions: int
    prepare: InputPreparation
    loss: LossFunction
    step_options: StepOptions
    optimizer: torch.optim.Optimizer
    ema: EMA | None
    checkpointer: Checkpointer
    metrics: MetricsBuffer
    progress: Progress


def set_up(
    model: CLIPModel,
    train_data: ImageCaptionDataset,
    val_data: ImageCaptionDataset | None,
    config: TrainConfig,
    run_dir: str | Path | None,
    device: str | torch.device | None,
    about: Mapping[str, Any],
    resumed: ResumedRun | None,
) -> Setup:
    """Join the other ranks, place the model on its device, and make the parts of a run. Nothing is written.

    The arguments are those of `Trainer`.
    """
    require_types(model, config)
    require_trainable(model)
    train_data, val_data = as_dataset(train_data), None if val_data is None else as_dataset(val_data)
    device = select_device(device)
    distributed.init(device)
    data = {"train": fingerprint(train_data), "val": fingerprint(val_data)}
    require_same_data(data)
    path, precision = distributed.on_main(lambda: choose(config, run_dir, device, resumed is None))  # for all ranks
    config = dataclasses.replace(config, precision=precision)
    require_pixels(val_data, model)  # now, not after an epoch
    distributed.broadcast_weights(model.to(device))
    if val_data is not None and config.on_error == "skip":  # now, not at the first evaluation
        val_data = readable_subset(val_data, SkipLog("skip", config.max_skip_fraction))
    truncated = getattr(model.tokenizer, "truncated", 0)
    loader = build_loader(model, train_data, config)
    truncated = getattr(model.tokenizer, "truncated", 0) - truncated
    config = fit_into_memory(model, config, loader.rows.stop - loader.rows.start)
    if config.fsdp:
        fsdp.require_even(loader.batch_size, skips_samples=config.on_error == "skip")
        fsdp.shard(model)
    loss, optimizer = loss_function(config, model), build_optimizer(model, config)
    ema = None if config.ema_decay is None else EMA(model, config.ema_decay)
    metrics, progress = build_metrics(model, loader, train_data, config, path), Progress()
    if resumed is not None:
        progress, metrics.history = restore(resumed, path, model, optimizer, ema)
    if config.compile:
        compile_blocks(model)
    return Setup(
        config=config,
        run_dir=path,
        facts={"train": config.to_dict(), "model": model.config.to_dict(), "data": data, "about": dict(about)},
        train_data=train_data,
        val_data=val_data,
        loader=loader,
        truncated_captions=truncated,
        prepare=InputPreparation(model, config, loader.batch_size),
        loss=loss,
        step_options=step_options(config, device),
        optimizer=optimizer,
        ema=ema,
        checkpointer=Checkpointer(path, model, optimizer, ema, config),
        metrics=metrics,
        progress=progress,
    )


def require_types(model: Any, config: Any) -> None:
    """Raise TypeError if the arguments of a trainer are a name, a dict, or something else of another type."""
    if not isinstance(model, torch.nn.Module):
        raise TypeError(
            f"model: found {describe(model)}; expected a CLIPModel, as miniclip.load(name) and "
            "CLIPModel(config, tokenizer) return"
        )
    if not isinstance(config, TrainConfig):
        raise TypeError(
            f"config: found {describe(config)}; expected a TrainConfig, as TrainConfig(epochs=3) or, from a dict, "
            "TrainConfig.from_dict(values)"
        )


def require_trainable(model: CLIPModel) -> None:
    """Check, before anything is trained, that the checkpoints of a run can be loaded again.

    Raises:
        TypeError: the model is another module, or is wrapped.
        ValueError: its modules or parameters are not those of its configuration.
    """
    if not isinstance(model, CLIPModel):
        raise TypeError(
            f"model: found {describe(model)}; expected a CLIPModel without wrappers and adapters: pass the "
            "model inside of torch.compile (TrainConfig(compile=True) compiles it) or DataParallel (torchrun uses all "
            "GPUs), and the result of merge_and_unload() of a peft model"
        )
    require_plain(model, model.state_dict())
    for name, tower in (("image", model.image), ("text", model.text)):
        if not hasattr(tower, "blocks"):  # torch.compile passes attributes on
            raise TypeError(f"model.{name} is a {type(tower).__name__}; expected the tower inside of it")


def choose(
    config: TrainConfig, run_dir: str | Path | None, device: torch.device, is_new: bool
) -> tuple[Path, Precision]:
    """Return the run directory and the precision; a new run must not overwrite another."""
    path = next_run_dir("runs/clip") if run_dir is None else Path(run_dir)
    if is_new:
        require_no_run(path)
    return path, resolve(config.precision, device)


def build_loader(model: CLIPModel, data: ImageCaptionDataset, config: TrainConfig) -> ImageCaptionLoader:
    """Return the loader of the training data for a model."""
    options = LoaderOptions(
        batch_size=config.batch_size,
        context_length=model.config.text.context_length,
        seed=config.seed,
        num_workers=config.num_workers,
        pad=model.config.text.padding == "attended",
        reduced_decoding=config.reduced_decoding,
        on_error=config.on_error,
        max_skip_fraction=config.max_skip_fraction,
    )
    return ImageCaptionLoader(data, require_tokenizer(model), model.preprocess, options)


def require_tokenizer(model: CLIPModel) -> TextTokenizer:
    """Return the model's tokenizer.

    Raises:
        ValueError: the model has no tokenizer.
    """
    if model.tokenizer is None:
        raise ValueError(
            "the model has no tokenizer: make one with Tokenizer.train(captions, vocab_size), save it, and load the "
            f"model with {option('tokenizer', 'tokenizer.json')}"
        )
    return model.tokenizer


def fit_into_memory(model: CLIPModel, config: TrainConfig, rows: int) -> TrainConfig:
    """Switch gradient checkpointing, and replace a micro batch size of "auto" with the largest that fits.

    Args:
        model: on its device.
        config: the settings, with precision resolved.
        rows: rows of a batch on this rank.
    """
    checkpoint_blocks(model, config.gradient_checkpointing)
    if config.micro_batch_size != "auto":
        return config
    trial = synthetic_step(model, config.precision, config.patch_dropout)
    return dataclasses.replace(config, micro_batch_size=find_micro_batch_size(model, rows, trial))


def build_metrics(
    model: CLIPModel, loader: ImageCaptionLoader, data: ImageCaptionDataset, config: TrainConfig, run_dir: Path
) -> MetricsBuffer:
    """Return the buffer of the run's metrics, with an empty history."""

    def metrics_of(batch: Batch, output: CLIPOutput) -> Record:
        return batch_metrics(batch, output, loader.rows.start, model.tokenizer, config.loss)

    nonfinite = NonFiniteSteps(run_dir, loader, data, config.max_nonfinite_steps)
    return MetricsBuffer(loader, nonfinite, mfu_function(model, config), metrics_of)


def run_length(config: TrainConfig, progress: Progress, steps_per_epoch: int) -> tuple[int, int]:
    """Return the number of steps and of epochs of the whole run."""
    steps = progress.epoch_start + (config.epochs - progress.epoch) * steps_per_epoch
    steps = min(steps, config.max_steps or steps)
    return steps, progress.epoch + math.ceil((steps - progress.epoch_start) / steps_per_epoch)


def build_callbacks(callbacks: Sequence[Callback] | None, config: TrainConfig) -> list[Callback]:
    """Return the callbacks, by default `default_callbacks`, and the settings' loggers; ranks other than 0 have none.

    Raises:
        TypeError: the callbacks are one callback, or an item is not one.
    """
    if callbacks is not None:
        callbacks = listed(callbacks, "callbacks", "a list of callbacks, as in [MyCallback()]")
        for callback in callbacks:
            if not isinstance(callback, Callback):
                raise TypeError(f"callbacks: found {describe(callback)} in the list; expected instances of Callback")
    callbacks = [*(default_callbacks() if callbacks is None else callbacks), *logger_callbacks(config)]
    return callbacks if distributed.is_main() else []


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
