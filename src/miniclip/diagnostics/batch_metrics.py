"""Metrics of a training batch besides its loss: embedding geometry, repeated captions and images, loss bounds.

Embedding metrics use the first `ROWS` pairs of the batch, on the CPU in float64: about a millisecond for any batch.
Letters: B batch (n of its rows on this rank), T tokens, S image side.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from miniclip.data.loader import Batch
from miniclip.diagnostics.embedding_metrics import embedding_metrics
from miniclip.losses.reference import l2_normalize
from miniclip.models.clip import CLIPOutput
from miniclip.runs.history import Record
from miniclip.runtime import distributed
from miniclip.train.config import Loss
from miniclip.train.metrics import chance_loss

if TYPE_CHECKING:
    from miniclip.tokenizer import TextTokenizer

ROWS = 128  # pairs of the embedding metrics; also the upper bound of the effective rank
IMAGE_BYTES = 2048  # bytes per image that are compared, evenly spaced


def batch_metrics(
    batch: Batch, output: CLIPOutput, first_row: int, tokenizer: TextTokenizer | None, loss: Loss
) -> Record:
    """Return the metrics of a batch for the record of its step. All ranks must call it together.

    Args:
        batch: rows of this rank.
        output: embeddings of these rows, without gradient.
        first_row: index of the first of these rows in the whole batch.
        tokenizer: tokenizer of the model; its end token ends a caption.
        loss: name of the loss.

    Returns:
        The `embedding_metrics`; `pairs`, the size of the whole batch; `distinct_captions` and `distinct_images` in it;
        `log_distinct_captions`; `chance_loss`; and `loss_floor`, the loss of a model that separates all distinct
        captions.
    """
    local_rows = slice(0, max(0, ROWS - first_row))
    sides = (distributed.all_gather(side[local_rows].contiguous()).cpu() for side in output[:2])
    images, texts = (l2_normalize(side.double()) for side in sides)
    keys = torch.stack([caption_keys(batch.tokens, tokenizer), image_keys(batch.pixels)], dim=1)
    text_keys, pixel_keys = distributed.all_gather(keys.to(output[0].device)).T.tolist()
    caption_counts = Counter[int](text_keys)
    n = caption_counts.total()
    return {
        **embedding_metrics(images, texts),
        "pairs": n,
        "distinct_captions": len(caption_counts),
        "log_distinct_captions": math.log(len(caption_counts)),
        "distinct_images": len(set(pixel_keys)),
        "chance_loss": chance_loss(n, loss),
        "loss_floor": sum(count * chance_loss(count, loss) for count in caption_counts.values()) / n,
    }


def learned_fraction(record: Record) -> float | None:
    """Return how far the loss of a record is from the chance loss (0) to the loss floor (1).

    None if the record has no batch metrics, or if the two bounds are equal.
    """
    loss, chance, floor = (record.get(name) for name in ("loss", "chance_loss", "loss_floor"))
    if loss is None or chance is None or floor is None or chance - floor < 1e-6:
        return None
    return float((chance - loss) / (chance - floor))


def caption_keys(tokens: Tensor, tokenizer: TextTokenizer | None) -> Tensor:
    """Return a hash of each caption's tokens (n, T), independent of padding: (n,) int64."""
    end_id = None if tokenizer is None else tokenizer.end_id
    if end_id is None:
        lengths = torch.full((len(tokens),), tokens.shape[1])
    else:
        lengths = (tokens == end_id).int().argmax(dim=1).add(1)
    rows = tokens.cpu().numpy()
    return _hashes(row[:length].tobytes() for row, length in zip(rows, lengths.tolist(), strict=True))


def image_keys(pixels: Tensor) -> Tensor:
    """Return a hash of about `IMAGE_BYTES` bytes of each image (n, 3, S, S) uint8: (n,) int64."""
    flat = pixels.flatten(1)
    stride = max(1, flat.shape[1] // IMAGE_BYTES) | 1  # odd, so that each row of pixels samples other columns
    return _hashes(row.tobytes() for row in flat[:, ::stride].contiguous().cpu().numpy())


def _hashes(rows: Iterable[bytes]) -> Tensor:
    digests = [hashlib.blake2b(row, digest_size=8).digest() for row in rows]
    return torch.tensor([int.from_bytes(digest, "big", signed=True) for digest in digests], dtype=torch.int64)
