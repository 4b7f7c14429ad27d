"""What differs between a run and what it is to go on with: named, and refused unless it is asked for."""

from __future__ import annotations

import dataclasses
from typing import Any

from miniclip.train.settings import TrainConfig

# These change how a run is watched, stored and computed, not what it computes.
HARMLESS = {
    "max_steps",
    "eval_every",
    "save_every",
    "save_minutes",
    "save_in_background",
    "keep",
    "log_every",
    "workers",
    "max_skipped",
}


def changed_settings(before: TrainConfig, now: TrainConfig) -> dict[str, tuple[Any, Any]]:
    """The settings that would make another run of it: name to (before, now)."""
    return {
        field.name: (getattr(before, field.name), getattr(now, field.name))
        for field in dataclasses.fields(TrainConfig)
        if field.name not in HARMLESS and getattr(before, field.name) != getattr(now, field.name)
    }


def changed_data(before: dict[str, Any], now: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """The data whose fingerprints differ: "train data", "val data" to (before, now)."""
    return {
        f"{part} data": (describe(before.get(part)), describe(value))
        for part, value in now.items()
        if before.get(part) != value
    }


def in_words(changes: dict[str, tuple[Any, Any]]) -> str:
    """What changes, in a line."""
    return "; ".join(f"{name}: started with {before}, now {now}" for name, (before, now) in changes.items())


def describe(value: Any) -> str:
    """A fingerprint of data, for a message."""
    if value is None:
        return "(none)"
    return f"({value['pictures']} pictures, {value['captions']} captions, digest {value['sha256']})"
