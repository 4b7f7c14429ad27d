"""Faithfulness of the relevance of words: deletion and insertion, as for patches.

The tokens of words are taken out of the text, from the most to the least relevant word. If the relevance is right,
deletion lowers the similarity early, and insertion raises it early. A random order is the baseline.
Letters: W words, T tokens, E embedding.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from miniclip.explanation.faithfulness import STEPS, Faithfulness, require_pairs, scores_of_curves
from miniclip.explanation.relevance import Method
from miniclip.explanation.word_relevance import explain_words, tokens_of, without_words
from miniclip.explanation.words import Word, group_words
from miniclip.inference.model import CLIPModel


@torch.no_grad()
def word_faithfulness(
    model: CLIPModel, images: Sequence[Any], texts: Sequence[str], method: Method | str
) -> Faithfulness:
    """Measure deletion and insertion of words over pairs of images and texts.

    Args:
        model: a CLIPModel with a tokenizer.
        images: images, in any form that `model.encode_image` takes.
        texts: one text for each.
        method: "grad_eclip", "legrad" or "random".

    Raises:
        ValueError: the lists are empty, or their lengths differ, or a text has no words.
    """
    require_pairs(images, texts)
    generator = torch.Generator().manual_seed(0)
    curves: tuple[list[Tensor], list[Tensor]] = ([], [])  # deletion, insertion
    for text, image in zip(texts, model.encode_image(images), strict=True):
        row = tokens_of(model, text)[0]
        if method == "random":
            words = group_words(model.tokenizer, text, row)
            relevance = torch.rand(len(words), generator=generator)
        else:
            words = explain_words(model, text, image[None], method)  # type: ignore[arg-type]
            relevance = torch.tensor([word.relevance for word in words])
        if not words:
            raise ValueError(f"text {text!r}: it has no words")
        ordered = [words[index] for index in relevance.argsort(descending=True, stable=True).tolist()]
        for curve, keep in zip(curves, (False, True), strict=True):
            curve.append(_curve(model, row, ordered, image, keep))
    deletion, insertion = map(torch.stack, curves)
    return scores_of_curves(deletion, insertion)


def _curve(model: CLIPModel, row: Tensor, ordered: list[Word], image: Tensor, keep: bool) -> Tensor:
    """Similarity (STEPS + 1,) while the first words are inserted (keep) or removed, interpolated between the words."""
    counts = range(len(ordered) + 1)
    rows = [without_words(model.tokenizer, row, ordered[count:] if keep else ordered[:count]) for count in counts]
    texts = model.text(torch.stack(rows).to(model.device)).float()
    similarity = F.cosine_similarity(texts, image[None], dim=1).cpu()
    position = torch.linspace(0, len(ordered), STEPS + 1)
    low = position.floor().long().clamp_max(len(ordered) - 1)
    return torch.lerp(similarity[low], similarity[low + 1], position - low)
