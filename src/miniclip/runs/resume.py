"""Resumption of a run: comparison with the original, and its model, optimizer, EMA, position and history."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from miniclip.checkpoints.key_maps import identity_rows
from miniclip.checkpoints.reading import assign_weights
from miniclip.checkpoints.weights import InMemoryWeights
from miniclip.config import CLIPConfig
from miniclip.data.dataset import ImageCaptionDataset
from miniclip.errors import CheckpointError
from miniclip.inference.model import CLIPModel
from miniclip.runs.changes import (
    NEUTRAL,
    Changes,
    ScheduleChange,
    changed_callbacks,
    changed_data,
    changed_numerics,
    changed_settings,
    require_allowed,
    require_same_parts,
)
from miniclip.runs.directory import LAST, fingerprint, read_run, require_writable
from miniclip.runs.history import FILE, History
from miniclip.runs.progress import Progress
from miniclip.runs.state import State, find_state, read_state, restore_ema, restore_optimizer
from miniclip.runs.structure import restore_adapters, restore_structure
from miniclip.tokenizer import load_tokenizer
from miniclip.train.callbacks import Callback
from miniclip.train.config import TrainConfig
from miniclip.train.ema import EMA


class ResumedRun(NamedTuple):
    """A run to continue.

    Attributes:
        model: the model of the state.
        config: the settings.
        about: the user's facts.
        changes: differences from the original run.
        state: the state.
        parts: foreign parts that the model must have before it is trained; empty if changes are allowed.
        is_branch: whether the state is not the newest, or a change affects the result.
        forgets_best: whether the next evaluation is the best one with any value.
    """

    model: CLIPModel
    config: TrainConfig
    about: dict[str, Any]
    changes: Changes
    state: State
    parts: Sequence[str]
    is_branch: bool
    forgets_best: bool


class ResumeOptions(NamedTuple):
    """Options of a resumed run.

    Attributes:
        settings: settings to change, by name.
        about: entries of the run's `about` to change.
        callbacks: the callbacks that the user gave.
        allow_changes: allow changes that affect the result.
        step: the state's step; None: the newest state.
    """

    settings: Mapping[str, Any]
    about: Mapping[str, Any]
    callbacks: Sequence[Callback] = ()
    allow_changes: bool = False
    step: int | None = None


def load_run(
    run_dir: Path, train_data: ImageCaptionDataset, val_data: ImageCaptionDataset | None, options: ResumeOptions
) -> ResumedRun:
    """Load a run, after a comparison of data and settings with those of the original run.

    Args:
        run_dir: the run.
        train_data: training data.
        val_data: validation data.
        options: changes, and whether they may affect the result.

    Raises:
        FileNotFoundError: the directory holds no run, or no state of that step.
        CheckpointError: a file is damaged.
        OSError: the directory cannot be written.
        ValueError: a change affects the result and is not allowed.
    """
    run = read_run(run_dir)
    require_writable(run_dir)
    path = find_state(run_dir, options.step)
    saved = read_state(path)
    before, now = TrainConfig.from_dict(run["train"]), TrainConfig.from_dict({**run["train"], **options.settings})
    changes = changed_settings(before, now)
    require_same_parts(run_dir, changes)
    changes |= changed_data(run["data"], {"train": fingerprint(train_data), "val": fingerprint(val_data)})
    changes |= changed_numerics(run.get("numerics", {}))
    changes |= changed_callbacks(saved.progress.callbacks, options.callbacks)
    about = {**run["about"], **options.about}
    if about != run["about"]:
        changes["about"] = (run["about"], about)
    if not options.allow_changes:
        schedule = ScheduleChange(before, now, saved.progress, train_data)
        require_allowed(run_dir, changes, schedule, about, options.step)
    parts = () if options.allow_changes else saved.structure.foreign
    is_branch = options.step is not None or not changes.keys() <= NEUTRAL
    forgets_best = not is_comparable(changes, now)
    forgets_best |= options.step is not None and not is_in_best(run_dir, saved.progress)
    model = load_model(run_dir, run["model"], path, saved)
    return ResumedRun(model, now, about, changes, saved, parts, is_branch, forgets_best)


def is_comparable(changes: Changes, config: TrainConfig) -> bool:
    """Return whether changes leave the monitored metric comparable with its earlier values."""
    of_loss = {"batch_size", "loss", "seed"} if config.monitor == "val_loss" else set()
    return not changes.keys() & {"monitor", "val data", *of_loss}


def is_in_best(run_dir: Path, progress: Progress) -> bool:
    """Return whether `best/` still holds the best model of a state, and not that of a later evaluation."""
    try:
        newest = read_state(find_state(run_dir)).progress
    except (CheckpointError, FileNotFoundError):
        return False
    return (newest.best, newest.best_step) == (progress.best, progress.best_step)


def load_model(run_dir: Path, config: dict[str, Any], path: Path, saved: State) -> CLIPModel:
    """Return the model of a training state, its parts adapted, frozen, tied and in the modes of the run.

    Args:
        run_dir: the run; the tokenizer is in its `last/`.
        config: the model's configuration.
        path: the file of the state, for error messages.
        saved: the state.

    Raises:
        CheckpointError: the state's weights or the names of its parts are not those of the model.
    """
    with torch.device("meta"):
        model = CLIPModel(CLIPConfig.from_dict(config), load_tokenizer(run_dir / LAST))
        restore_adapters(model, saved.structure, path)
    assign_weights(model, InMemoryWeights(path, saved.weights), identity_rows(model.state_dict()))
    restore_structure(model, saved.structure, path)
    return model


def restore(
    run: ResumedRun, run_dir: Path, model: CLIPModel, optimizer: torch.optim.Optimizer, ema: EMA | None
) -> tuple[Progress, History]:
    """Restore optimizer and EMA, and return the position of the run and its history up to there.

    Other training data, batch size or seed restart the epoch.
    """
    restore_optimizer(optimizer, model, run.state.optimizer)
    if ema is not None:
        restore_ema(ema, model, run.state.ema)
    progress = dataclasses.replace(run.state.progress)
    records = History()
    if (run_dir / FILE).exists():
        records = History.read(run_dir, progress.step, progress.evaluated)
    states = progress.callbacks.items()  # without those that the user left out
    progress.callbacks = {name: state for name, state in states if f"callback {name}" not in run.changes}
    if run.changes.keys() & {"train data", "batch_size", "seed"}:
        progress.epoch_start = progress.step
    if run.forgets_best:
        progress.best, progress.best_step = None, -1
    return progress, records
