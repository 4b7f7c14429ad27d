"""What differs between a run and what it is to go on with: named, and refused unless it is asked for."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from miniclip.train.config import TrainConfig

Changes = dict[str, tuple[Any, Any]]  # what is other, by name: (before, now)

# These change how a run is watched and stored, not what it computes. `max_steps` is none of them: the learning rate
# follows from how many steps there will be.
HARMLESS = {
    "about",
    "eval_every",
    "save_every",
    "save_minutes",
    "save_in_background",
    "keep_checkpoints",
    "log_every",
    "num_workers",
    "max_nonfinite_steps",
    "tensorboard",
    "wandb",
}


def changed_settings(before: TrainConfig, now: TrainConfig) -> Changes:
    """The settings that differ: name to (before, now)."""
    return {
        field.name: (getattr(before, field.name), getattr(now, field.name))
        for field in dataclasses.fields(TrainConfig)
        if getattr(before, field.name) != getattr(now, field.name)
    }


def changed_data(before: dict[str, Any], now: dict[str, Any]) -> Changes:
    """The data whose fingerprints differ: "train data", "val data" to (before, now)."""
    return {
        f"{part} data": (describe(before.get(part)), describe(value))
        for part, value in now.items()
        if before.get(part) != value
    }


def require_the_word(run_dir: Path, changes: Changes, said: bool) -> None:
    """Check that a run becomes another one only where that is asked for.

    Raises:
        ValueError: it would, and it is not; the message says what differs.
    """
    other = {name: change for name, change in changes.items() if name not in HARMLESS}
    if other and not said:
        raise ValueError(
            f"{run_dir}: {in_words(other)}; to go on all the same, as another run than it would have been, say so: "
            "--allow-changes, or allow_changes=True"
        )


def in_words(changes: Changes) -> str:
    """What changes, in a line."""
    return "; ".join(f"{name}: started with {before}, now {now}" for name, (before, now) in changes.items())


def describe(value: Any) -> str:
    """A fingerprint of data, for a message."""
    if value is None:
        return "(none)"
    return f"({value['pictures']} pictures, {value['captions']} captions, digest {value['sha256']})"
