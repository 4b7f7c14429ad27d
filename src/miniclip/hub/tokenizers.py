"""Tokenizer of a loaded checkpoint: a given one, the one beside the weights, or one that is fetched on first use."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from miniclip.checkpoints.reading import CheckpointReader
from miniclip.errors import CheckpointError
from miniclip.hub.download import fetch
from miniclip.hub.registry import OPENAI_REPO
from miniclip.hub.text_tower import require_same_words
from miniclip.inference.model import CLIPModel
from miniclip.tokenizer import find_tokenizer, load_tokenizer
from miniclip.utils.items import describe
from miniclip.utils.option_names import option

if TYPE_CHECKING:
    from miniclip.tokenizer import TextTokenizer

OPENAI_VOCAB_SIZE = 49408
MAX_EAGER_BYTES = 8 << 20  # a larger tokenizer.json takes seconds to read, and encoding images does not need it


def open_tokenizer(tokenizer: str | Path | TextTokenizer | None) -> TextTokenizer | None:
    """Return a tokenizer as it is, or read it from a path.

    Raises:
        TypeError: it is something else.
    """
    if tokenizer is not None and not isinstance(tokenizer, str | Path) and not hasattr(tokenizer, "vocab_size"):
        expected = "a path, or a tokenizer, as Tokenizer.load returns"
        raise TypeError(f"tokenizer: found {describe(tokenizer)}; expected {expected}")
    return load_tokenizer(tokenizer) if isinstance(tokenizer, str | Path) else tokenizer


def attach_tokenizer(
    model: CLIPModel,
    checkpoint: CheckpointReader,
    tokenizer: str | Path | TextTokenizer | None,
    cache_dir: str | Path | None,
) -> None:
    """Give a model the tokenizer that is passed, else that of its checkpoint, else a function that fetches one."""
    options = {**checkpoint.plan.tokenizer_options, "use_config": not checkpoint.is_native}
    path = find_tokenizer(checkpoint.directory)
    if tokenizer is not None:
        given = open_tokenizer(tokenizer)
        model.tokenizer = given
        assert given is not None
        require_same_words(given, model, _readable(path, options))
    elif path is not None:
        model.tokenizer_source = functools.partial(load_tokenizer, path, **options)
        if checkpoint.is_native and path.stat().st_size <= MAX_EAGER_BYTES:
            _ = model.tokenizer  # a damaged file raises while loading, not at the first text
    elif repo := _tokenizer_repo(model, checkpoint):
        model.tokenizer_source = functools.partial(
            _fetch, repo, checkpoint.plan.tokenizer_options, checkpoint.weights_path, cache_dir
        )


def _readable(path: Path | None, options: dict[str, Any]) -> TextTokenizer | None:
    """Return the checkpoint's own tokenizer; None if there is none, or it is damaged."""
    try:
        return None if path is None else load_tokenizer(path, **options)
    except (CheckpointError, ImportError):
        return None


def _tokenizer_repo(model: CLIPModel, checkpoint: CheckpointReader) -> str | None:
    """Repository of the tokenizer that the settings name, or OpenAI's if the vocabulary is OpenAI's."""
    if checkpoint.is_native:
        return None  # the model was saved without a tokenizer
    text = model.config.text
    is_openai = text.vocab_size == OPENAI_VOCAB_SIZE and text.end_id in (None, OPENAI_VOCAB_SIZE - 1)
    return checkpoint.plan.tokenizer_repo or (OPENAI_REPO if is_openai else None)


def _fetch(repo: str, options: Mapping[str, Any], weights: Path, cache_dir: str | Path | None) -> TextTokenizer:
    try:
        folder = fetch(repo, _tokenizer_files, cache_dir=cache_dir)
    except (ConnectionError, FileNotFoundError, PermissionError) as error:
        raise type(error)(
            f"{weights} has no tokenizer, and that of {repo} could not be fetched: {error}. To use a local one, load "
            f"the model with {option('tokenizer', 'tokenizer.json')}; images and token ids need no tokenizer"
        ) from None
    return load_tokenizer(folder, **options)


def _tokenizer_files(names: list[str]) -> list[str]:
    needed = ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"]
    if "tokenizer.json" not in names:
        needed += ["vocab.json", "merges.txt"]
    return [name for name in names if name in needed]
