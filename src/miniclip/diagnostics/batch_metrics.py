"""Metrics of a training batch besides its loss: embedding geometry, repeated captions and images, loss bounds.

Embedding metrics use the first `ROWS` pairs of the batch, on the CPU in float64: about a millisecond for any batch.
Letters: B batch (n of its rows on this rank), T tokens, S image side.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from miniclip.data.loader import Batch
from miniclip.data.sources.captions import caption_keys, hashes
from miniclip.diagnostics.embedding_metrics import embedding_metrics
from miniclip.diagnostics.loss_floor import loss_floor
from miniclip.losses.reference import l2_normalize
from miniclip.models.clip import CLIPOutput
from miniclip.runs.history import Record
from miniclip.runtime import distributed
from miniclip.train.config import TrainConfig
from miniclip.train.metrics import chance_loss

if TYPE_CHECKING:
    from miniclip.tokenizer import TextTokenizer

ROWS = 128  # pairs of the embedding metrics; also the upper bound of the effective rank
IMAGE_BYTES = 2048  # bytes per image that are compared, evenly spaced


def batch_metrics(
    batch: Batch, output: CLIPOutput, first_row: int, tokenizer: TextTokenizer | None, config: TrainConfig
) -> Record:
    """Return the metrics of a batch for the record of its step. All ranks must call it together.

    Args:
        batch: rows of this rank.
        output: embeddings of these rows, without gradient.
        first_row: index of the first of these rows in the whole batch.
        tokenizer: tokenizer of the model; its end token ends a caption.
        config: the settings.

    Returns:
        The `embedding_metrics`, of the images and the first caption of each; `pairs`, the images of the whole batch;
        `distinct_captions` and `distinct_images` in it; `log_distinct_captions`; `chance_loss`; and `loss_floor`, the
        loss of a model that separates all distinct captions.
    """
    local_rows, captions = slice(0, max(0, ROWS - first_row)), config.captions_per_image
    first_captions = output.text_embeddings[::captions]
    sides = (distributed.all_gather(side[local_rows].contiguous()).cpu() for side in (output[0], first_captions))
    images, texts = (l2_normalize(side.double()) for side in sides)
    caption_rows = caption_keys(batch.tokens, tokenizer).view(-1, captions)
    keys = torch.cat([caption_rows, image_keys(batch.pixels)[:, None]], dim=1)
    keys = distributed.all_gather(keys.to(output[0].device)).cpu()
    text_keys, pixel_keys = keys[:, :-1].tolist(), keys[:, -1].tolist()
    distinct_captions = len({key for row in text_keys for key in row})
    return {
        **embedding_metrics(images, texts),
        "pairs": len(keys),
        "distinct_captions": distinct_captions,
        "log_distinct_captions": math.log(distinct_captions),
        "distinct_images": len(set(pixel_keys)),
        "chance_loss": chance_loss(len(keys), config.loss, captions, config.label_smoothing),
        "loss_floor": loss_floor(text_keys, config),
    }


def learned_fraction(record: Record) -> float | None:
    """Return how far the loss of a record is from the chance loss (0) to the loss floor (1).

    None if the record has no batch metrics, or if the two bounds are equal.
    """
    loss, chance, floor = (record.get(name) for name in ("loss", "chance_loss", "loss_floor"))
    if loss is None or chance is None or floor is None or chance - floor < 1e-6:
        return None
    return float((chance - loss) / (chance - floor))


def image_keys(pixels: Tensor) -> Tensor:
    """Return a hash of about `IMAGE_BYTES` bytes of each image (n, 3, S, S) uint8: (n,) int64."""
    flat = pixels.flatten(1)
    stride = max(1, flat.shape[1] // IMAGE_BYTES) | 1  # odd, so that each row of pixels samples other columns
    return hashes(row.tobytes() for row in flat[:, ::stride].contiguous().cpu().numpy())
