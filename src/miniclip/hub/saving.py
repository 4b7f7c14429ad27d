"""Saving of a model as a checkpoint directory."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from miniclip.checkpoints.native import save_checkpoint


def save(model: nn.Module, path: str | Path) -> None:
    """Write a model to a checkpoint directory that `load` opens.

    The directory holds `model.safetensors`, `config.json` and `tokenizer.json`.

    Args:
        model: a CLIPModel; torch.compile and DataParallel may wrap it or its parts.
        path: directory, created if it does not exist.
    """
    save_checkpoint(model, path)
