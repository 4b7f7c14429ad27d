"""Measured settings for training and fine-tuning, one TOML file each: `miniclip train --recipe NAME`.

A recipe holds the settings of a run as `miniclip train --config FILE` takes them. Its head is the card: a first line
with its use, then the measurement. A table `[model]` changes the preset, in the names of `CLIPConfig`:

    preset = "bert_vit_small"
    [model.image]
    patch_size = 16
    [model.text]
    layers = 2
    vocab_size = 4000

A recipe for fine-tuning has no preset, since it starts from a pretrained model: `miniclip finetune … --recipe NAME`.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from miniclip.config import CLIPConfig
from miniclip.utils.checks import did_you_mean

FOLDER = Path(__file__).parent


def names() -> list[str]:
    """Return the names of the recipes."""
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


def path_of(name: str) -> Path:
    """Return the file of a recipe.

    Raises:
        ValueError: no recipe has this name.
    """
    if name not in names():
        raise ValueError(f"unknown recipe {name!r}{did_you_mean(name, names())}")
    return FOLDER / f"{name}.toml"


def is_for_tuning(name: str) -> bool:
    """Return whether a recipe is for a pretrained model; one for fresh weights has a preset.

    Raises:
        ValueError: no recipe has this name.
    """
    return "preset" not in tomllib.loads(path_of(name).read_text(encoding="utf-8"))


def card(name: str) -> list[str]:
    """Return the head of a recipe's file, without the comment signs: its use, then its measurement."""
    lines = []
    for line in path_of(name).read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        lines.append(line.lstrip("# "))
    return lines


def changed(config: CLIPConfig, changes: Mapping[str, Any]) -> CLIPConfig:
    """Return an architecture with the values of a recipe's table `[model]`.

    Args:
        config: the preset.
        changes: fields of `CLIPConfig`; `image` and `text` are tables of fields of the towers.

    Raises:
        ValueError: a name is unknown, or a value is out of range.
        TypeError: a value has the wrong type.
    """
    values = config.to_dict()
    for name, change in changes.items():
        tower = values.get(name)
        if isinstance(tower, dict) != isinstance(change, Mapping):
            expected = "a table" if isinstance(tower, dict) else "a value"
            raise TypeError(f"[model]: {name} is {change!r}; expected {expected}")
        values[name] = {**tower, **change} if isinstance(tower, dict) else change
    if "vocab_size" in changes.get("text", {}) and "end_id" not in changes["text"]:
        values["text"]["end_id"] = -1  # the last token of the new vocabulary
    return CLIPConfig.from_dict(values)
