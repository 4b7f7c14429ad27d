"""Embed many texts in few tokens, in the order given. Letters: N texts, T tokens, E embedding."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from miniclip.fast.towers import FastTextTransformer
from miniclip.inference.batching import MAX_TOKENS, device_of, plan_batches, progress_bar
from miniclip.models.clip import CLIP
from miniclip.models.text import sequence_lengths
from miniclip.tokenizer import TextTokenizer

CHUNK = 1 << 14  # texts that are tokenized and sorted at a time


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
        ValueError: the texts are strings and there is no tokenizer.
        TypeError: a tensor does not hold token ids.
    """
    embeddings = torch.empty(len(texts), model.config.embed_dim, device=device_of(model))
    with progress_bar(len(texts), " texts", progress) as advance:
        for start in range(0, len(texts), CHUNK):
            chunk = texts[start : start + CHUNK]
            tokens = chunk if isinstance(chunk, Tensor) else _tokenize(model, tokenizer, chunk)
            for rows, batch in _embed(model, tokens, batch_size):
                embeddings[(start + rows).to(device_of(model))] = batch.float()
                advance(len(rows))
    return embeddings


def _embed(model: CLIP, tokens: Tensor, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Embed token ids (N, T) in batches; yields row indices and embeddings."""
    if tokens.dim() != 2 or tokens.is_floating_point():
        raise TypeError(
            f"texts: found a tensor {tuple(tokens.shape)} of {tokens.dtype}; expected strings, or token ids (N, T)"
        )
    config, tower, device = model.config.text, model.text, device_of(model)
    tokens = tokens.cpu()  # the plan reads the tokens
    if config.padding == "masked":
        lengths = sequence_lengths(tokens, config.end_id)
    else:
        lengths = torch.full((len(tokens),), tokens.shape[1])
    max_tokens = MAX_TOKENS.get(device.type, batch_size * tokens.shape[1])
    share_prefix = isinstance(tower, FastTextTransformer) and tower.can_share_prefix()
    for batch in plan_batches(tokens, lengths, batch_size, max_tokens, share_prefix):
        batch_tokens = tokens[batch.rows, : batch.width].to(device)
        if isinstance(tower, FastTextTransformer):
            yield batch.rows, tower.forward_shared(batch_tokens, batch.prefix)
        else:
            yield batch.rows, tower(batch_tokens)


def _tokenize(model: CLIP, tokenizer: TextTokenizer | None, texts: Sequence[str]) -> Tensor:
    if tokenizer is None:
        raise ValueError(
            "this model has no tokenizer: pass token ids (N, T), or load it with one, as in "
            "miniclip.load(..., tokenizer='tokenizer.json')"
        )
    config = model.config.text
    return tokenizer(texts, context_length=config.context_length, pad=config.padding == "attended")
