"""Saving of a model as a checkpoint directory."""

from __future__ import annotations

from pathlib import Path

from miniclip.checkpoints.native import save_checkpoint
from miniclip.inference.model import CLIPModel


def save(model: CLIPModel, path: str | Path) -> None:
    """Write a model to a checkpoint directory that `load` opens.

    The directory holds `model.safetensors`, `config.json` and `tokenizer.json`.

    Args:
        model: the model.
        path: directory, created if it does not exist.
    """
    save_checkpoint(model, path)
