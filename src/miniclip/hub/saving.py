"""Saving of a model as a checkpoint directory."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from miniclip.checkpoints.files import require_precedence
from miniclip.checkpoints.native import CONFIG, TOKENIZER, WEIGHTS, save_checkpoint
from miniclip.utils.target import require_target


def save(model: nn.Module, path: str | Path, *, overwrite: bool = False) -> None:
    """Write a model to a checkpoint directory that `load` opens.

    The directory holds `model.safetensors`, `config.json` and `tokenizer.json`.

    Args:
        model: a CLIPModel; torch.compile and DataParallel may wrap it or its parts.
        path: directory, created if it does not exist.
        overwrite: allow a directory with files, such as an earlier checkpoint; those of the same names are replaced.

    Raises:
        FileExistsError: the directory has files, or belongs to a run, or the path is a file.
        ValueError: the path has the suffix of a file, or the model's parameters are not those of its configuration.
        TypeError: the model is not a CLIPModel.
        OSError: writing failed, as on a full disk; the files that were there are unchanged.
    """
    path = require_target(path, overwrite)
    require_precedence(path, {WEIGHTS, CONFIG, TOKENIZER})
    save_checkpoint(model, path)
