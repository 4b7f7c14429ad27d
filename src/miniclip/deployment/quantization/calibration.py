"""Calibration data as inputs of the files of two towers. Letters: S image size, T tokens."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from miniclip.data.given import as_dataset
from miniclip.data.subset import Subset
from miniclip.deployment.quantization.encoder import BATCH, pixels_of
from miniclip.deployment.verification import Arrays
from miniclip.evaluation.retrieval import LazyImages
from miniclip.inference.model import CLIPModel
from miniclip.inference.texts import tokenize
from miniclip.models.text import sequence_lengths

MAX_IMAGES = 256  # images that calibrate


class Samples(NamedTuple):
    """Images that calibrate the image tower, and texts that calibrate the text tower."""

    images: Sequence[Any]
    texts: list[str]


def draw_samples(data: Any) -> Samples:
    """Return up to 256 images of an image-caption dataset, evenly spaced, and all their captions."""
    data = as_dataset(data)
    count = min(len(data), MAX_IMAGES)
    chosen = Subset(data, [number * len(data) // count for number in range(count)])
    return Samples(LazyImages(chosen), [caption for group in chosen.captions for caption in group])


def pixel_batches(model: CLIPModel, images: Any) -> Iterator[Arrays]:
    """Yield normalized pixels (n, 3, S, S) of images, or of such pixels, as inputs of an image tower."""
    for pixels in pixels_of(model, images):
        yield {"image": pixels.numpy()}


def token_batches(model: CLIPModel, texts: Sequence[str] | Tensor) -> Iterator[Arrays]:
    """Yield token ids (n, T) of equal lengths as inputs of a text tower, without padding that is masked.

    Args:
        model: its tokenizer is for strings.
        texts: N strings, or token ids (N, T).
    """
    tokens = texts if isinstance(texts, Tensor) else tokenize(model, model.tokenizer, texts)
    config = model.config.text
    lengths = torch.full((len(tokens),), tokens.shape[1], device="cpu")
    if config.padding == "masked":
        lengths = sequence_lengths(tokens, config.end_id)
    for length in sorted(set(lengths.tolist())):
        for batch in torch.split(tokens[lengths == length][:, :length], BATCH):
            yield {"text": batch.numpy()}
