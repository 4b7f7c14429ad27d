"""Embeddings from two ONNX files of towers, with a model's preprocessing and tokenizer.

Letters: N items, E embedding, S image size, T tokens.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from miniclip.deployment.verification import session
from miniclip.inference.image_items import image_items
from miniclip.inference.images import ImageReader
from miniclip.inference.model import CLIPModel
from miniclip.inference.texts import tokenize
from miniclip.losses.reference import l2_normalize

BATCH = 32


class OnnxEncoder:
    """Two ONNX files of towers, with a model's preprocessing and tokenizer.

    Args:
        model: the model that was exported.
        visual: file of the image tower, from `image` (N, 3, S, S) to `embedding` (N, E).
        textual: file of the text tower, from `text` (N, T) to `embedding` (N, E).
    """

    def __init__(self, model: CLIPModel, visual: Path, textual: Path) -> None:
        self.model = model
        self.visual, self.textual = session(visual), session(textual)

    def encode_image(self, images: Any) -> Tensor:
        """Return unit vectors (N, E) of images, or of pixels (N, 3, S, S)."""
        return encode_images([self], images)[0]

    def encode_text(self, texts: Any) -> Tensor:
        """Return unit vectors (N, E) of strings, or of token ids (N, T)."""
        if not isinstance(texts, Tensor):
            texts = tokenize(self.model, self.model.tokenizer, list(texts))
        return _joined(_run(self.textual, "text", batch) for batch in torch.split(texts.cpu(), BATCH))


def encode_images(encoders: Sequence[OnnxEncoder], images: Any) -> list[Tensor]:
    """Return the unit vectors (N, E) of each encoder; each image is decoded once. All encoders belong to one model."""
    every = pixels_of(encoders[0].model, images)
    batches = [[_run(one.visual, "image", pixels) for one in encoders] for pixels in every]
    return [_joined(column) for column in zip(*batches, strict=True)]


def pixels_of(model: CLIPModel, images: Any) -> Iterator[Tensor]:
    """Yield batches of normalized pixels (n, 3, S, S)."""
    items = image_items(images)
    if isinstance(items, Tensor):
        yield from torch.split(items.float().cpu(), BATCH)
        return
    for batch in ImageReader(items, model.preprocess, BATCH).batches():
        yield model.preprocess.normalise(batch.pixels)


def _run(engine: Any, name: str, batch: Tensor) -> Tensor:
    return torch.from_numpy(engine.run(None, {name: batch.numpy()})[0])


def _joined(batches: Iterable[Tensor]) -> Tensor:
    return l2_normalize(torch.cat(list(batches)))
