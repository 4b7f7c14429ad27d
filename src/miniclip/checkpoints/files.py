"""Files of a checkpoint directory or a repository: the weights to read, and the files beside them."""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path

from miniclip.checkpoints.formats import open_clip, openai, transformers
from miniclip.checkpoints.formats.safetensors import INDEX
from miniclip.checkpoints.native import CONFIG, TOKENIZER, WEIGHTS
from miniclip.errors import CheckpointError

# Weights with their configuration. Safetensors come before pickles, and a project's own files before a conversion's.
CANDIDATES = (
    (open_clip.WEIGHTS, open_clip.CONFIG),
    ("open_clip_pytorch_model.safetensors", open_clip.CONFIG),
    (WEIGHTS, CONFIG),
    (f"model{INDEX}", CONFIG),
    (WEIGHTS, open_clip.CONFIG),
    ("open_clip_pytorch_model.bin", open_clip.CONFIG),
    ("open_clip_pytorch_model.pt", open_clip.CONFIG),
    ("pytorch_model.bin", CONFIG),
    (openai.WEIGHTS, openai.WEIGHTS),  # without a configuration
)
OPTIONAL_FILES = (
    CONFIG, open_clip.CONFIG, transformers.PREPROCESSOR, transformers.PROCESSOR, TOKENIZER,
    "tokenizer_config.json", "special_tokens_map.json", "vocab.json", "merges.txt",
)  # fmt: skip
ADAPTER_CONFIG = "adapter_config.json"  # file name of the peft library


def find_weights(path: Path) -> Path:
    """Return the file of weights at a path: the file itself, or the best one of a directory.

    Raises:
        FileNotFoundError: there is none.
        CheckpointError: the directory holds a peft adapter.
    """
    if not path.is_dir():
        if os.path.lexists(path):
            return path
        raise FileNotFoundError(f"{path}: no such file or directory")
    names = {file.name for file in path.iterdir() if not file.is_dir()}
    refuse_adapter(str(path), names)
    weights = best_weights(names)
    if weights is None:
        expected = ", ".join(f"{weights} with {config}" for weights, config in CANDIDATES[:-1])
        raise FileNotFoundError(f"{path}: no checkpoint in it; expected one of: {expected}")
    return path / weights


def refuse_adapter(place: str, names: Collection[str]) -> None:
    """Raise `CheckpointError` if a directory's or repository's files are a peft adapter, with or without its base."""
    if ADAPTER_CONFIG in names:
        raise CheckpointError(
            f"{place}: found {ADAPTER_CONFIG}, a peft adapter, which miniclip does not read: apply the adapter to "
            "the base model with peft, merge it with merge_and_unload(), and save the merged model"
        )


def best_weights(names: Collection[str]) -> str | None:
    """Return the file of weights to read among a directory's names; None if there is none."""
    return next((weights for weights, config in CANDIDATES if weights in names and config in names), None)


def files_to_download(names: list[str]) -> list[str]:
    """Return the files of a repository that opening it needs; none if it has no checkpoint."""
    weights = best_weights(names)
    if weights is None:
        return []
    shards = [name for name in names if weights.endswith(INDEX) and _is_shard(name, weights)]
    return [weights, *shards, *(name for name in names if name in OPTIONAL_FILES)]


def _is_shard(name: str, index: str) -> bool:
    stem = index.removesuffix(INDEX)
    return name.startswith(f"{stem}-") and name.endswith(".safetensors")
