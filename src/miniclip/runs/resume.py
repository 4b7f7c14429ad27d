"""Resumption of a run: comparison with the original, and its model, optimizer, EMA, position and history."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

from miniclip.checkpoints.key_maps import identity_rows
from miniclip.checkpoints.reading import assign_weights
from miniclip.checkpoints.weights import InMemoryWeights
from miniclip.config import CLIPConfig
from miniclip.data.dataset import ImageCaptionDataset
from miniclip.inference.model import CLIPModel
from miniclip.runs.changes import Changes, changed_data, changed_settings, require_allowed
from miniclip.runs.directory import LAST, fingerprint, read_run
from miniclip.runs.history import FILE, History
from miniclip.runs.progress import Progress
from miniclip.runs.state import State, find_state, read_state, restore_ema, restore_frozen, restore_optimizer
from miniclip.tokenizer import load_tokenizer
from miniclip.train.config import TrainConfig
from miniclip.train.ema import EMA


class ResumedRun(NamedTuple):
    """A run to continue."""

    model: CLIPModel
    config: TrainConfig
    about: dict[str, Any]
    changes: Changes
    state: State


def load_run(
    run_dir: Path,
    data: tuple[ImageCaptionDataset, ImageCaptionDataset | None],
    settings: Mapping[str, Any],
    about: Mapping[str, Any],
    allow_changes: bool,
    step: int | None,
) -> ResumedRun:
    """Load a run, after a comparison of data and settings with those of the original run.

    Args:
        run_dir: the run.
        data: training and validation data.
        settings: settings to change, by name.
        about: entries of the run's `about` to change.
        allow_changes: allow changes that affect the result.
        step: the state's step; None: the newest state.

    Raises:
        FileNotFoundError: the directory holds no run, or no state of that step.
        CheckpointError: a file is damaged.
        ValueError: a change affects the result and is not allowed.
    """
    run = read_run(run_dir)
    before, now = TrainConfig.from_dict(run["train"]), TrainConfig.from_dict({**run["train"], **settings})
    fingerprints = dict(zip(("train", "val"), map(fingerprint, data), strict=True))
    changes = changed_settings(before, now) | changed_data(run["data"], fingerprints)
    require_allowed(run_dir, changes, allow_changes)
    merged = {**run["about"], **about}
    if merged != run["about"]:
        changes["about"] = (run["about"], merged)
    path = find_state(run_dir, step)
    saved = read_state(path)
    return ResumedRun(load_model(run_dir, run["model"], path, saved), now, merged, changes, saved)


def load_model(run_dir: Path, config: dict[str, Any], path: Path, saved: State) -> CLIPModel:
    """Return the model of a training state; parameters that were frozen in the run are frozen.

    Args:
        run_dir: the run; the tokenizer is in its `last/`.
        config: the model's configuration.
        path: the file of the state, for error messages.
        saved: the state.

    Raises:
        CheckpointError: the state's weights or frozen parameters are not those of the model.
    """
    with torch.device("meta"):
        model = CLIPModel(CLIPConfig.from_dict(config), load_tokenizer(run_dir / LAST))
    assign_weights(model, InMemoryWeights(path, saved.weights), identity_rows(model.state_dict()))
    restore_frozen(model, saved.frozen, path)
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
    if run.changes.keys() & {"train data", "batch_size", "seed"}:
        progress.epoch_start = progress.step
    if "monitor" in run.changes:  # the best value is that of another metric
        progress.best = None
    return progress, records
