"""Differences between the data and settings of a run and those it is resumed with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from miniclip.train.config import TrainConfig
from miniclip.utils.option_names import option

Changes = dict[str, tuple[Any, Any]]  # name to (before, now)

# Settings that change how a run is observed and stored, but not its result. `max_steps` is not one of them: the
# learning rate depends on the number of steps.
NEUTRAL = {
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
    """Return the settings that differ."""
    old, new = before.to_dict(), now.to_dict()
    return {name: (old[name], value) for name, value in new.items() if old[name] != value}


def changed_data(before: dict[str, Any], now: dict[str, Any]) -> Changes:
    """Return the datasets ("train data", "val data") whose fingerprints differ."""
    return {
        f"{part} data": (describe_data(before.get(part)), describe_data(value))
        for part, value in now.items()
        if before.get(part) != value
    }


def require_allowed(run_dir: Path, changes: Changes, allow_changes: bool) -> None:
    """Check that changes of the result are allowed.

    Raises:
        ValueError: something that affects the result differs, and `allow_changes` is False.
    """
    differences = [
        f"{name}: started with {before}, now {now}" for name, (before, now) in changes.items() if name not in NEUTRAL
    ]
    if differences and not allow_changes:
        raise ValueError(
            f"{run_dir}: {'; '.join(differences)}; to resume with these differences, whose result is not that of the "
            f"original run, add {option('allow_changes', True)}"
        )


def describe_data(fingerprint: dict[str, Any] | None) -> str:
    """Return a dataset's fingerprint as text."""
    if fingerprint is None:
        return "(none)"
    return f"({fingerprint['images']} images, {fingerprint['captions']} captions, digest {fingerprint['sha256']})"
