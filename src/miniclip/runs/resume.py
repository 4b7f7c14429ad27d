"""A run taken up: what it was started with, what is other now, and its state of weights and figures."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

from miniclip.checkpoints.reading import InMemoryTensors, fill, own_rows
from miniclip.config import CLIPConfig
from miniclip.data.dataset import ImageCaptionDataset
from miniclip.inference.model import CLIPModel
from miniclip.runs.changes import Changes, changed_data, changed_settings, require_the_word
from miniclip.runs.directory import LAST, fingerprint, read_run
from miniclip.runs.state import State, find_state, read_state
from miniclip.tokenizer import load_tokenizer
from miniclip.train.config import TrainConfig


class Found(NamedTuple):
    """What of a run goes on."""

    config: TrainConfig
    about: dict[str, Any]
    changes: Changes


def compare(
    run_dir: Path,
    data: tuple[ImageCaptionDataset, ImageCaptionDataset | None],
    settings: Mapping[str, Any],
    about: Mapping[str, Any],
    allow_changes: bool,
) -> Found:
    """Hold data and settings against those that a run was started with.

    Args:
        run_dir: the run.
        data: for training, and for validation.
        settings: those that shall be other, by name.
        about: what of the run's `about` is other.
        allow_changes: the word that it may be another run from here on.

    Raises:
        FileNotFoundError: there is no run.
        CheckpointError: its `config.json` is damaged.
        ValueError: something is other, and the word was not said.
    """
    run = read_run(run_dir)
    before, now = TrainConfig.from_dict(run["train"]), TrainConfig.from_dict({**run["train"], **settings})
    found = dict(zip(("train", "val"), map(fingerprint, data), strict=True))
    changes = changed_settings(before, now) | changed_data(run["data"], found)
    require_the_word(run_dir, changes, allow_changes)
    merged = {**run["about"], **about}
    if merged != run["about"]:
        changes["about"] = (run["about"], merged)
    return Found(now, merged, changes)


def restored(run_dir: Path, step: int | None) -> tuple[CLIPModel, State]:
    """The model with the weights of a run's last state, or of that of a step; and the state.

    Raises:
        FileNotFoundError: there is none.
        CheckpointError: it is damaged.
    """
    path = find_state(run_dir, step)
    saved = read_state(path)
    with torch.device("meta"):
        model = CLIPModel(CLIPConfig.from_dict(read_run(run_dir)["model"]), load_tokenizer(run_dir / LAST))
    fill(model, InMemoryTensors(path, saved.weights), own_rows(model.state_dict()))
    return model, saved
