"""Relevance of a text's words, and texts without some of their words.

Letters: T tokens, E embedding.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from miniclip.explanation.patches import to_unit_range
from miniclip.explanation.relevance import Method, text_relevance
from miniclip.explanation.words import Word, group_words
from miniclip.inference.model import CLIPModel


def tokens_of(model: CLIPModel, text: str) -> Tensor:
    """Return the token ids of a text: (1, T)."""
    if model.tokenizer is None:
        raise ValueError("the model has no tokenizer, so it cannot explain a text: set model.tokenizer")
    config = model.config.text
    return model.tokenizer(text, config.context_length, pad=config.padding == "attended")


def explain_words(model: CLIPModel, text: str, image: Tensor, method: Method) -> list[Word]:
    """Return the words of a text with their relevance in 0..1 for the similarity with an image.

    Args:
        model: a CLIPModel with a tokenizer.
        text: a text.
        image: (1, E) image embedding.
        method: "grad_eclip" or "legrad".
    """
    tokens = tokens_of(model, text)
    words = group_words(model.tokenizer, text, tokens[0])
    if not words:
        return []
    items = torch.zeros_like(tokens, dtype=torch.bool)
    items[0, [position for word in words for position in word.positions]] = True
    relevance = text_relevance(model.text, tokens.to(model.device), items.to(model.device), image, method)[0].cpu()
    totals = torch.stack([relevance[list(word.positions)].sum() for word in words])
    return [word._replace(relevance=float(value)) for word, value in zip(words, to_unit_range(totals), strict=True)]


def without_words(tokenizer: Any, row: Tensor, removed: Sequence[Word]) -> Tensor:
    """Return a row of token ids (T,) without the tokens of some words; padding takes their place."""
    kept = torch.ones_like(row, dtype=torch.bool)
    kept[[position for word in removed for position in word.positions]] = False
    padding = row.new_full((len(row) - int(kept.sum()),), tokenizer.pad_id)
    return torch.cat([padding, row[kept]] if tokenizer.pad_left else [row[kept], padding])
