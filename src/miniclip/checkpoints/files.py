"""Files of a checkpoint directory or a repository: the weights to read, the files beside them, and its subfolders."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Collection
from pathlib import Path

from miniclip.checkpoints.formats import open_clip, openai, transformers
from miniclip.checkpoints.native import CONFIG, TOKENIZER, WEIGHTS
from miniclip.errors import CheckpointError
from miniclip.utils.option_names import option

# Weights with their configuration. Safetensors come before pickles, and a project's own files before a conversion's.
CANDIDATES = (
    (open_clip.WEIGHTS, open_clip.CONFIG),
    ("open_clip_pytorch_model.safetensors", open_clip.CONFIG),
    (WEIGHTS, CONFIG),
    ("model.safetensors.index.json", CONFIG),
    (WEIGHTS, open_clip.CONFIG),
    ("open_clip_pytorch_model.bin", open_clip.CONFIG),
    ("open_clip_pytorch_model.pt", open_clip.CONFIG),
    ("pytorch_model.bin", CONFIG),
    ("pytorch_model.bin.index.json", CONFIG),
    (openai.WEIGHTS, openai.WEIGHTS),  # without a configuration
)
OPTIONAL_FILES = (
    CONFIG, open_clip.CONFIG, transformers.PREPROCESSOR, transformers.PROCESSOR, TOKENIZER,
    "tokenizer_config.json", "special_tokens_map.json", "vocab.json", "merges.txt",
)  # fmt: skip
ADAPTER_CONFIG = "adapter_config.json"  # file name of the peft library
# transformers' variants, such as model.fp16.safetensors, and the indexes of shards, with or without a variant
VARIANT = re.compile(r"model\.\w+\.safetensors|pytorch_model\.\w+\.bin")
INDEX = re.compile(r"(model|pytorch_model)\.(safetensors|bin)\.index(?:\.(\w+))?\.json")
SHARD = re.compile(r"(model|pytorch_model)(\.\w+)?-\d+-of-\d+(\.\w+)?\.(safetensors|bin)")
NOT_WEIGHTS = re.compile(
    r"(?:training_args|optimizer|scheduler|scaler|rng_state|random_states)\w*\.\w+|state\.safetensors"
)
PICKLE_ENDINGS = (".bin", ".pt", ".pth", ".ckpt")
WEIGHTS_ENDINGS = (".safetensors", *PICKLE_ENDINGS)

RUN_CHECKPOINTS = ("best", "last")  # subfolders of a run directory; the first that exists is loaded
TRAINER_CHECKPOINT = re.compile(r"checkpoint-(\d+)")  # subfolders of the Trainer of transformers
SENTENCE_TRANSFORMERS = re.compile(r"0_CLIP\w*")  # subfolder of sentence-transformers
DENSE = re.compile(r"\d+_Dense")


def find_weights(path: Path) -> Path:
    """Return the file of weights at a path: the file itself, or the best one of a directory.

    Raises:
        FileNotFoundError: the path has no weights.
        CheckpointError: the directory holds a peft adapter, or several files of which none is preferred.
    """
    if not path.is_dir():
        if os.path.lexists(path):
            refuse_adapter(str(path), [ADAPTER_CONFIG] if (path.parent / ADAPTER_CONFIG).exists() else [])
            return path
        raise FileNotFoundError(f"{path}: no such file or directory")
    names = {file.name for file in path.iterdir() if not file.is_dir()}
    refuse_adapter(str(path), names)
    weights = best_weights(names, str(path))
    if weights is None:
        expected = ", ".join(f"{weights} with {config}" for weights, config in CANDIDATES[:-1])
        raise FileNotFoundError(f"{path}: no checkpoint in it; expected one of: {expected}")
    return path / weights


def refuse_adapter(place: str, names: Collection[str]) -> None:
    """Raise `CheckpointError` if a directory's or repository's files are a peft adapter, with or without its base."""
    if ADAPTER_CONFIG in names:
        raise CheckpointError(
            f"{place}: found {ADAPTER_CONFIG}, a peft adapter, which is not a whole model: if miniclip wrote it, load "
            f"its base with {option('adapter', place)}; else apply it to its base with peft, merge it with "
            "merge_and_unload(), and save the merged model"
        )


def best_weights(names: Collection[str], place: str = "") -> str | None:
    """Return the file of weights to read among a directory's names; None if there is none.

    Raises:
        CheckpointError: there are several files, of which none is preferred; `place` is named.
    """
    usual = next((weights for weights, config in CANDIDATES if weights in names and config in names), None)
    if usual is not None:
        return usual
    if open_clip.CONFIG in names:  # beside it, open_clip reads weights of any name
        for endings in (WEIGHTS_ENDINGS[:1], PICKLE_ENDINGS):
            files = [name for name in names if name.endswith(endings) and not NOT_WEIGHTS.fullmatch(name)]
            if files:
                return _only(files, place)
    variants = [name for name in names if VARIANT.fullmatch(name) or INDEX.fullmatch(name)]
    for ending in ("safetensors", ""):
        if CONFIG in names and (files := [name for name in variants if ending in name]):
            return _only(files, place)
    return None


def require_precedence(path: Path, written: Collection[str]) -> None:
    """Check that the files that will be written to a directory are those that `load` opens there.

    Raises:
        CheckpointError: the directory holds a peft adapter.
        FileExistsError: it holds weights that come before the new ones, or a configuration of others.
    """
    names = {file.name for file in path.iterdir()} if path.is_dir() else set()
    refuse_adapter(str(path), names)
    weights = best_weights({*names, *written}, str(path))
    if weights is not None and weights not in written:
        raise FileExistsError(
            f"{path} holds {weights}, which would be opened in place of the new weights: choose another directory"
        )
    if openai.WEIGHTS in written and open_clip.CONFIG in names:  # OpenAI's layout has no configuration of its own
        raise FileExistsError(
            f"{path} holds {open_clip.CONFIG}, which would be used with the new weights: choose another directory"
        )


def _only(files: list[str], place: str) -> str:
    if len(files) > 1:
        raise CheckpointError(
            f"{place}: several files of weights, {', '.join(sorted(files))}: load one of them by its path"
        )
    return files[0]


def files_to_download(names: Collection[str], place: str = "") -> list[str]:
    """Return the files of a repository, or of a subfolder, that opening it needs; none if it has no checkpoint."""
    weights = best_weights([name for name in names if "/" not in name], place)
    if weights is None:
        return []
    shards = [name for name in names if _is_shard(name, weights)]
    return [weights, *shards, *(name for name in names if name in OPTIONAL_FILES)]


def is_checkpoint_file(name: str) -> bool:
    """Return whether `load` reads files of this name beside a checkpoint or as one: weights, settings, a tokenizer."""
    usual = {name for candidate in CANDIDATES for name in candidate}
    return name in usual.union(OPTIONAL_FILES) or any(kind.fullmatch(name) for kind in (VARIANT, INDEX, SHARD))


def _is_shard(name: str, index: str) -> bool:
    match = INDEX.fullmatch(index)
    if match is None:
        return False
    stem, ending, variant = match.groups()
    return name.startswith((f"{stem}-", f"{stem}.{variant}-")) and name.endswith(f".{ending}")


def checkpoint_folder(names: Collection[str], is_checkpoint: Callable[[str], bool]) -> str | None:
    """Return the subfolder of a directory or repository that holds its checkpoint; "" is the directory itself.

    A run has `best/` and `last/`, the Trainer of transformers `checkpoint-N/`, of which the last counts, and
    sentence-transformers `0_CLIPModel/`.

    Args:
        names: of the files and folders in it.
        is_checkpoint: whether a subfolder holds a checkpoint.

    Returns:
        The subfolder, or None.

    Raises:
        CheckpointError: sentence-transformers has a layer after the model.
    """
    numbered = {int(match[1]): name for name in names if (match := TRAINER_CHECKPOINT.fullmatch(name))}
    steps = [numbered[step] for step in sorted(numbered, reverse=True)]
    modules = [name for name in names if SENTENCE_TRANSFORMERS.fullmatch(name)]
    for name in ("", *RUN_CHECKPOINTS, *modules, *steps):
        if (not name or name in names) and is_checkpoint(name):
            if name in modules and (dense := [other for other in names if DENSE.fullmatch(other)]):
                raise CheckpointError(
                    f"{dense[0]}: a layer after {name}, which a CLIP does not have: load {name} itself"
                )
            return name
    return None
