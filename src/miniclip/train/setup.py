"""Setup of a run: device, precision, data, memory, sharding, loss, optimizer and loggers, in order of dependence."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch

from miniclip.data.dataset import ImageCaptionDataset
from miniclip.data.given import as_dataset
from miniclip.data.loader import Batch, ImageCaptionLoader
from miniclip.data.options import LoaderOptions
from miniclip.data.replay import Replay, ReplayLoader
from miniclip.data.skipping import SkipLog
from miniclip.data.subset import readable_subset
from miniclip.diagnostics.batch_metrics import batch_metrics
from miniclip.finetuning.anchoring import BatchLoss, RunPlace
from miniclip.finetuning.cached_tower import FrozenTowers, frozen_towers, prepare_inputs
from miniclip.finetuning.towers import apply as tune_towers
from miniclip.inference.model import CLIPModel
from miniclip.loggers.defaults import build_callbacks, logger_callbacks
from miniclip.models.clip import CLIPOutput
from miniclip.runs.changes import Changes, numerics
from miniclip.runs.checkpointer import Checkpointer
from miniclip.runs.directory import choose_directory, fingerprint, require_same_data
from miniclip.runs.history import Record
from miniclip.runs.nonfinite import NonFiniteSteps
from miniclip.runs.progress import Progress, run_length
from miniclip.runs.resume import ResumedRun, restore
from miniclip.runtime import distributed, fsdp
from miniclip.runtime.compilation import compile_blocks
from miniclip.runtime.cores import OtherPrograms
from miniclip.runtime.devices import select_device
from miniclip.runtime.memory import fit_into_memory
from miniclip.runtime.precision import resolve
from miniclip.train.callbacks import Callback
from miniclip.train.config import TrainConfig
from miniclip.train.ema import EMA
from miniclip.train.metrics import MetricsBuffer, chance_loss, mfu_function
from miniclip.train.optimizer import build_optimizer
from miniclip.train.requirements import require_tokenizer, require_trainable, require_types
from miniclip.train.step import Inputs, LossFunction, StepOptions
from miniclip.train.step_arguments import InputPreparation, TrainingLoss, loss_function, step_options
from miniclip.train.validation import comparable


@dataclasses.dataclass(frozen=True)
class RunOptions:
    """Arguments of a `Trainer` besides model and data, as it takes them."""

    config: TrainConfig | None = None
    run_dir: str | Path | None = None
    device: str | torch.device | None = None
    about: Mapping[str, Any] | None = None
    resumed: ResumedRun | None = None
    callbacks: Sequence[Callback] | None = None


@dataclasses.dataclass(frozen=True)
class Setup:
    """Parts of a run.

    Attributes:
        config: the settings, with precision and micro batch size resolved.
        run_dir: the run directory.
        facts: content of `config.json`: settings, model, fingerprints of the data, and the user's facts.
        changes: differences of a resumed run from the original.
        train_data: the training images.
        val_data: the validation images that can be read, or None.
        loader: batches of the training data.
        truncated_captions: number of training captions that are longer than the context.
        prepare: function that makes the model's inputs from a batch.
        towers: the model; with `cache_frozen`, its frozen towers return kept embeddings.
        loss: the loss.
        loss_of: function from a batch to its loss with the objectives of the settings.
        step_options: options of a step.
        optimizer: the optimizer.
        ema: the moving average of the weights, or None.
        checkpointer: writer of the checkpoints.
        metrics: metrics and history.
        progress: position of the run.
        total_steps: number of steps of the whole run.
        epochs: number of epochs of the whole run.
        callbacks: the callbacks with those of the settings, on rank 0.
    """

    config: TrainConfig
    run_dir: Path
    facts: dict[str, Any]
    changes: Changes
    train_data: ImageCaptionDataset
    val_data: ImageCaptionDataset | None
    loader: ImageCaptionLoader
    truncated_captions: int
    prepare: Callable[[Batch, int], Sequence[Inputs]]
    towers: CLIPModel
    loss: TrainingLoss
    loss_of: Callable[[Batch], LossFunction]
    step_options: StepOptions
    optimizer: torch.optim.Optimizer
    ema: EMA | None
    checkpointer: Checkpointer
    metrics: MetricsBuffer
    progress: Progress
    total_steps: int
    epochs: int
    callbacks: list[Callback]


def set_up(
    model: CLIPModel, train_data: ImageCaptionDataset, val_data: ImageCaptionDataset | None, options: RunOptions
) -> Setup:
    """Join the other ranks, place the model on its device, and make the parts of a run. Nothing is written."""
    resumed, config = options.resumed, options.config or TrainConfig()
    require_types(model, config)
    train_data, val_data = as_dataset(train_data), None if val_data is None else as_dataset(val_data)
    device = select_device(options.device)
    distributed.init(device)
    require_trainable(model, train_data, val_data, config)
    logger_callbacks(config)  # their packages must be there
    data = {"train": fingerprint(train_data), "val": fingerprint(val_data)}
    require_same_data(data)
    path = distributed.on_main(lambda: choose_directory(options.run_dir, is_new=resumed is None))  # for all ranks
    precision = distributed.on_main(lambda: resolve(config.precision, device))
    config = dataclasses.replace(config, precision=precision)
    if resumed is None:  # a resumed model has its parts from the state
        tune_towers(model, config)
    distributed.broadcast_weights(model.to(device))
    val_data = held_out(val_data, config)
    towers = frozen_towers(model, train_data, loader_options(model, config), config, path)
    loader = build_loader(model, train_data, config, towers)
    config = fit_into_memory(model, config, loader.rows.stop - loader.rows.start)
    if config.fsdp:
        fsdp.shard(model)
    loss, optimizer = loss_function(config, model), build_optimizer(model, config)
    ema = None if config.ema_decay is None else EMA(model, config.ema_decay)
    checkpointer = Checkpointer(path, model, optimizer, ema, config)
    metrics, progress = build_metrics(model, loader, train_data, config, path), Progress()
    if resumed is not None:
        progress, metrics.history = restore(resumed, path, model, optimizer, ema)
        checkpointer.parts, checkpointer.is_new, checkpointer.is_branch = resumed.parts, False, resumed.is_branch
    total_steps, epochs = run_length(config, progress, loader.steps)
    prepare = InputPreparation(model, config, loader.batch_size, total_steps)
    if config.compile:
        compile_blocks(model)
    return Setup(
        config=config,
        run_dir=path,
        facts=facts_of(config, model, data, options.about or {}),
        changes={} if resumed is None else resumed.changes,
        train_data=train_data,
        val_data=val_data,
        loader=loader,
        truncated_captions=loader.captions.truncated,
        prepare=prepare_inputs(prepare, towers, loader.captions.rows),
        towers=model if towers is None else cast(CLIPModel, towers),
        loss=loss,
        loss_of=BatchLoss(model, config, loader, loss, RunPlace(path, progress, resumed is not None, train_data)),
        step_options=step_options(config, device),
        optimizer=optimizer,
        ema=ema,
        checkpointer=checkpointer,
        metrics=metrics,
        progress=progress,
        total_steps=total_steps,
        epochs=epochs,
        callbacks=build_callbacks(options.callbacks, config, progress),
    )


def facts_of(config: TrainConfig, model: CLIPModel, data: dict[str, Any], about: Mapping[str, Any]) -> dict[str, Any]:
    """Return the content of `config.json` that a resumed run is compared with."""
    facts = {"train": config.to_dict(), "model": model.config.to_dict(), "data": data}
    return {**facts, "about": dict(about), "numerics": numerics()}


def held_out(val_data: ImageCaptionDataset | None, config: TrainConfig) -> ImageCaptionDataset | None:
    """Return the validation data that can be read and compared; images are read now, not at the first evaluation."""
    if val_data is not None and config.on_error == "skip":
        val_data = readable_subset(val_data, SkipLog("skip", config.max_skip_fraction))
    return comparable(val_data)


def build_loader(
    model: CLIPModel, data: ImageCaptionDataset, config: TrainConfig, towers: FrozenTowers | None = None
) -> ImageCaptionLoader:
    """Return the loader of the training data.

    It reads embeddings in place of pixels for a frozen tower that is encoded once.
    """
    options = loader_options(model, config)
    if towers is not None:
        options = dataclasses.replace(options, source=towers.source)
    tokenizer = require_tokenizer(model)
    if isinstance(data, Replay):
        return ReplayLoader(data, tokenizer, model.preprocess, options)
    return ImageCaptionLoader(data, tokenizer, model.preprocess, options)


def loader_options(model: CLIPModel, config: TrainConfig) -> LoaderOptions:
    """Return the options of the loader of the training data."""
    return LoaderOptions(
        batch_size=config.batch_size,
        context_length=model.config.text.context_length,
        seed=config.seed,
        num_workers=config.num_workers,
        pad=model.config.text.padding == "attended",
        reduced_decoding=config.reduced_decoding,
        on_error=config.on_error,
        max_skip_fraction=config.max_skip_fraction,
        device=model.device,
        captions_per_image=config.captions_per_image,
        word_dropout=config.word_dropout,
        swap_left_right=config.swap_left_right,
    )


def build_metrics(
    model: CLIPModel, loader: ImageCaptionLoader, data: ImageCaptionDataset, config: TrainConfig, run_dir: Path
) -> MetricsBuffer:
    """Return the buffer of the run's metrics, with an empty history."""

    def metrics_of(batch: Batch, output: CLIPOutput) -> Record:
        return batch_metrics(batch, output, loader.rows.start, model.tokenizer, config)

    nonfinite = NonFiniteSteps(run_dir, loader, data, config.max_nonfinite_steps)
    chance = chance_loss(loader.batch_size, config.loss, config.captions_per_image, config.label_smoothing)
    is_measured = model.device.type == "cpu" and distributed.is_main()  # the other ranks write no log
    other_programs = OtherPrograms() if is_measured else None
    return MetricsBuffer(loader, nonfinite, mfu_function(model, config), metrics_of, chance, other_programs)
