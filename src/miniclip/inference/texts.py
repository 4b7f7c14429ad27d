"""Many texts embedded in passes that the device likes, in the order given. Letters: N texts, T tokens, E embedding."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from miniclip.inference.batching import plan
from miniclip.models.text import lengths

if TYPE_CHECKING:
    from miniclip.models.clip import CLIP

BLOCK = 1 << 14  # texts that are tokenized and put in order at a time
MOST_TOKENS = {"cpu": 2048}  # of a pass: what is wider than the processor's cache is slower; a GPU takes what there is


def embed_texts(model: CLIP, texts: Sequence[str] | Tensor, batch_size: int, progress: bool = False) -> Tensor:
    """Embed texts, without gradient.

    Args:
        model: its text tower, and its tokenizer for strings.
        texts: strings, or token ids (N, T).
        batch_size: texts of a pass at most.
        progress: show a bar.

    Returns:
        (N, E) float32 on the model's device, not normalised.

    Raises:
        ValueError: strings were passed to a model without a tokenizer.
        TypeError: a tensor that is none of token ids.
    """
    embeddings = torch.empty(len(texts), model.config.embed_dim, device=model.device)
    passes: Iterator[tuple[Tensor, Tensor]] = chain.from_iterable(
        _embedded(model, texts[start : start + BLOCK], start, batch_size) for start in range(0, len(texts), BLOCK)
    )
    for rows, embedded in _with_bar(passes, len(texts)) if progress else passes:
        embeddings[rows.to(model.device)] = embedded.float()
    return embeddings


def _embedded(
    model: CLIP, texts: Sequence[str] | Tensor, start: int, batch_size: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Passes over some of the texts, the first of which is number `start`: their numbers, and their embeddings."""
    config = model.config.text
    tokens = texts if isinstance(texts, Tensor) else _tokenized(model, texts)
    if tokens.dim() != 2 or tokens.is_floating_point():
        raise TypeError(
            f"texts: found a tensor {tuple(tokens.shape)} of {tokens.dtype}; expected strings, or token ids (N, T)"
        )
    tokens = tokens.cpu()  # where it costs nothing to look at them
    if config.padding == "masked":
        long = lengths(tokens, config.end_id)
    else:
        long = torch.full((len(tokens),), tokens.shape[1])
    most_tokens = MOST_TOKENS.get(model.device.type, batch_size * tokens.shape[1])
    shareable = config.causal and config.pooling != "first"  # which is among what is shared
    for one in plan(tokens, long, batch_size, most_tokens, shareable):
        sharing = {"shared": one.shared} if one.shared else {}  # a tower of somebody's own need not know it
        yield start + one.rows, model.text(tokens[one.rows, : one.longest].to(model.device), **sharing)


def _tokenized(model: CLIP, texts: Sequence[str]) -> Tensor:
    if model.tokenizer is None:
        raise ValueError(
            "this model has no tokenizer: pass token ids (N, T), or give it one, as in "
            "miniclip.load(…, tokenizer='tokenizer.json')"
        )
    text = model.config.text
    return model.tokenizer(texts, context_length=text.context_length, pad=text.padding == "attended")


def _with_bar(passes: Iterator[tuple[Tensor, Tensor]], total: int) -> Iterator[tuple[Tensor, Tensor]]:
    from tqdm import tqdm

    with tqdm(total=total, unit=" texts") as bar:
        for rows, embedded in passes:
            yield rows, embedded
            bar.update(len(rows))
