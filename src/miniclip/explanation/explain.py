"""Explanation of the similarity of one image and one text: a heat map over the image, and the relevance of the words.

Letters: S image side, P patches, E embedding.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from miniclip.explanation.patches import heat_map_of, keep_patches, to_unit_range, top_patches
from miniclip.explanation.relevance import Method, image_relevance
from miniclip.explanation.word_relevance import explain_words, tokens_of
from miniclip.explanation.words import Word
from miniclip.inference.images import normalised_pixels, read_pixels
from miniclip.inference.model import CLIPModel

TOP_FRACTION = 0.2  # share of the patches that `similarity_without_top` removes


@dataclass(frozen=True)
class Explanation:
    """Relevance of an image's parts and of a text's words for their similarity.

    Attributes:
        heat_map: (S, S) float32 in 0..1, over the image as the model takes it, after resizing and cropping.
        patches: (rows, columns) float32 in 0..1; the heat map before interpolation.
        words: the text's words with their relevance in 0..1.
        similarity: cosine of image and text.
        similarity_without_top: the same after the most relevant fifth of the patches is painted over with the mean
            color.
        image: (3, S, S) uint8, the image as the model takes it.
        text: the text.
        method: "grad_eclip" or "legrad".
    """

    heat_map: Tensor
    patches: Tensor
    words: list[Word]
    similarity: float
    similarity_without_top: float
    image: Tensor
    text: str
    method: Method


def explain(model: CLIPModel, image: Any, text: str, *, method: Method = "legrad") -> Explanation:
    """Explain which patches and words carry the similarity of an image and a text.

    Args:
        model: a CLIPModel with a tokenizer.
        image: one image, in any form that `model.encode_image` takes.
        text: a text.
        method: "legrad" (arXiv 2404.03214) or "grad_eclip" (arXiv 2502.18816).

    Raises:
        TypeError: the model is not a CLIPModel, or the text is not a string.
        ValueError: the method does not exist, the text is empty, or the model has no tokenizer.
        DataError: the image cannot be read.
    """
    if method not in get_args(Method):
        raise ValueError(f"method {method!r}: expected {' or '.join(map(repr, get_args(Method)))}")
    if not isinstance(model, CLIPModel):
        raise TypeError(f"model: found a {type(model).__name__}, expected a CLIPModel, as miniclip.load returns")
    if not isinstance(text, str):
        raise TypeError(f"text: found a {type(text).__name__}, expected one string")
    if not text.strip():
        raise ValueError("text: it is empty; expected a description of the image")
    config: Any = model.config.image
    grid = config.grid  # before the image is read: towers without patches raise
    seen = read_pixels(image, model.preprocess)
    pixels = normalised_pixels(model, model.preprocess, seen[None])
    tokens = tokens_of(model, text)
    with torch.no_grad():
        image_embedding, text_embedding = model.image(pixels).float(), model.text(tokens.to(model.device)).float()
        if not (image_embedding.isfinite().all() and text_embedding.isfinite().all()):
            raise ValueError("the embeddings of image or text are NaN or infinite; the model cannot be explained")
        relevance = image_relevance(model.image, pixels, text_embedding, method)
        top = top_patches(relevance, TOP_FRACTION)
        without_top = model.image(keep_patches(pixels, top, config.patch_size, keep=False)).float()
    patches = to_unit_range(relevance)[0].view(grid, grid).cpu()
    return Explanation(
        heat_map=heat_map_of(patches, config.patch_size, config.image_size),
        patches=patches,
        words=explain_words(model, text, image_embedding, method),
        similarity=float(F.cosine_similarity(image_embedding, text_embedding)),
        similarity_without_top=float(F.cosine_similarity(without_top, text_embedding)),
        image=seen,
        text=text,
        method=method,
    )
