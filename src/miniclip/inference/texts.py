"""Embed many texts in few tokens, in the order given. Letters: N texts, T tokens, E embedding."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from miniclip.fast.towers import FastTextTransformer
from miniclip.inference.batching import (
    BATCH_COST,
    GPU_BATCH_COST,
    GPU_MAX_TOKENS,
    MAX_TOKENS,
    device_of,
    plan_batches,
    progress_bar,
    require_rows,
)
from miniclip.models.clip import CLIP
from miniclip.models.text import sequence_lengths
from miniclip.runtime.devices import send
from miniclip.tokenizer import TextTokenizer
from miniclip.utils.items import describe, strings
from miniclip.utils.option_names import option

Texts: TypeAlias = str | Iterable[str] | Tensor | npt.NDArray[Any]

CHUNK = 1 << 14  # texts that are tokenized and sorted at a time


def as_texts(texts: Any) -> list[str] | Tensor:
    """Return texts as strings, or as the tensor of token ids that they are.

    Raises:
        TypeError: they are something else.
    """
    if isinstance(texts, Tensor):
        return texts
    if isinstance(texts, np.ndarray) and texts.dtype.kind in "iu" and texts.ndim == 2:
        return torch.from_numpy(texts.astype(np.int64))
    return strings(texts, "texts")


def embed_texts(
    model: CLIP, tokenizer: TextTokenizer | None, texts: Sequence[str] | Tensor, batch_size: int, progress: bool = False
) -> Tensor:
    """Embed texts, without gradient.

    Args:
        model: its text tower embeds.
        tokenizer: for strings.
        texts: N strings, or token ids (N, T).
        batch_size: maximum number of texts per batch.
        progress: show a progress bar.

    Returns:
        (N, E) float32 on the model's device, not normalized.

    Raises:
        ValueError: the texts are strings and the model has no tokenizer, or an id is not in the vocabulary.
        TypeError: a tensor does not hold token ids.
    """
    if isinstance(texts, Tensor):
        texts = _checked_ids(texts, model.config.text.vocab_size)
    order = [torch.zeros(0, dtype=torch.int64, device="cpu")]
    embeddings = [torch.zeros(0, model.config.embed_dim, dtype=torch.float32, device=device_of(model))]
    with progress_bar(len(texts), " texts", progress) as advance:
        for start in range(0, len(texts), CHUNK):
            chunk = texts[start : start + CHUNK]
            tokens = chunk if isinstance(chunk, Tensor) else tokenize(model, tokenizer, chunk)
            for rows, batch in _embed(model, tokens, batch_size):
                order.append(start + rows)
                embeddings.append(require_rows(batch.float(), len(rows), model.config.embed_dim))
                advance(len(rows))
    return torch.cat(embeddings)[send(torch.cat(order).argsort(), device_of(model))]


def _checked_ids(tokens: Tensor, vocab_size: int) -> Tensor:
    """Return token ids (N, T) of int64 on the CPU, where batches are planned.

    Raises:
        TypeError: the tensor does not hold token ids.
        ValueError: an id is outside of the vocabulary.
    """
    is_integer = not (tokens.is_floating_point() or tokens.is_complex() or tokens.dtype == torch.bool)
    if tokens.dim() != 2 or not is_integer or not tokens.shape[1]:
        hint = ": pass tokens[None] for one text" if is_integer and tokens.dim() == 1 else ""
        raise TypeError(f"texts: found {describe(tokens)}; expected strings, or token ids (N, T) of integers{hint}")
    if not len(tokens):
        return tokens
    if tokens.is_meta:
        raise TypeError(f"texts: found {describe(tokens)} on the meta device, without data; expected token ids")
    tokens = tokens.cpu().long()  # the only wait for a GPU
    lowest, highest = map(int, tokens.aminmax())
    if lowest < 0 or highest >= vocab_size:
        raise ValueError(
            f"texts: found token ids from {lowest} to {highest}; this model has {vocab_size} tokens, 0 to "
            f"{vocab_size - 1}: use model.tokenizer, or pass strings"
        )
    return tokens


def _embed(model: CLIP, tokens: Tensor, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Embed token ids (N, T) in batches; yields row indices and embeddings."""
    config, tower, device = model.config.text, model.text, device_of(model)
    tokens = tokens.cpu().long()  # the plan reads the tokens
    if config.padding == "masked":
        lengths = sequence_lengths(tokens, config.end_id)
    else:
        lengths = torch.full((len(tokens),), tokens.shape[1], device="cpu")
    max_tokens = MAX_TOKENS.get(device.type, GPU_MAX_TOKENS)
    batch_cost = BATCH_COST if device.type == "cpu" else GPU_BATCH_COST
    share_prefix = isinstance(tower, FastTextTransformer) and tower.can_share_prefix()
    for batch in plan_batches(tokens, lengths, batch_size, max_tokens, share_prefix, batch_cost):
        batch_tokens = send(tokens[batch.rows, : batch.width], device)
        if isinstance(tower, FastTextTransformer):
            yield batch.rows, tower.forward_shared(batch_tokens, batch.prefix)
        else:
            yield batch.rows, tower(batch_tokens)


def tokenize(model: CLIP, tokenizer: TextTokenizer | None, texts: Sequence[str]) -> Tensor:
    """Return the token ids (N, T) of N texts; rows are padded in full if the model attends to padding.

    Raises:
        ValueError: the tokenizer is missing, or returns another number of rows.
    """
    if tokenizer is None:
        raise ValueError(
            "this model has no tokenizer: pass token ids (N, T), or load it with one: "
            f"{option('tokenizer', 'tokenizer.json')}"
        )
    config = model.config.text
    tokens = tokenizer(texts, context_length=config.context_length, pad=config.padding == "attended")
    if len(tokens) != len(texts):
        raise ValueError(f"the tokenizer returned {len(tokens)} rows for {len(texts)} texts; expected one for each")
    return tokens
