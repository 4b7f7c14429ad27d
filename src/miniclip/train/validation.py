"""Validation: the loss as training has it, and retrieval recall, from one pass over the pictures and captions.

Several ranks embed a part of the pictures each, with their captions, and give it to all.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils.data import Subset

from miniclip.data.dataset import ImageCaptionDataset
from miniclip.evaluation.retrieval import Embeddings, LazyImages, embed, recalls
from miniclip.inference.model import CLIPModel
from miniclip.models.clip import CLIPOutput
from miniclip.runtime import distributed
from miniclip.train.config import Monitor
from miniclip.train.step import LossFunction
from miniclip.utils.randomness import generator, random_integer

ROUNDS = 5  # so many times over the pictures, each time with other captions: the mean is steadier


def validate(
    model: CLIPModel, data: ImageCaptionDataset, loss: LossFunction, batch_size: int, seed: int
) -> tuple[dict[str, Any], Embeddings]:
    """Measure a model on held-out data.

    Args:
        model: embeds in float32 whatever training computes in.
        data: pictures with captions.
        loss: as in training.
        batch_size: as in training, since the loss depends on it; a smaller set is one batch.
        seed: of the batches and captions: the same at every evaluation.

    Returns:
        `val_loss`, `val_log_n` (what a model that knows nothing has), and the recalls of `evaluation.retrieval`; and
        the pictures and captions as the model sees them.
    """
    embedded = _embed(model, data)
    size = min(batch_size, len(data))
    losses = [_loss(model, rows, loss) for rows in _batches(embedded, size, seed)]
    log_n = float(torch.tensor(float(size)).log())
    return {"val_loss": float(torch.stack(losses).mean()), "val_log_n": log_n, **recalls(embedded)}, embedded


def monitored(record: Mapping[str, Any], monitor: Monitor) -> float:
    """The figure of an evaluation by which a model is the best so far; greater is better."""
    to_image, to_text = (record[way]["R@1"] for way in ("text_to_image", "image_to_text"))
    figures = {
        "recall": (to_image + to_text) / 2,
        "text_to_image": to_image,
        "image_to_text": to_text,
        "val_loss": -record["val_loss"],
    }
    return float(figures[monitor])


def _embed(model: CLIPModel, data: ImageCaptionDataset) -> Embeddings:
    """All pictures and captions in their order, on every rank; each of them embedded by one rank."""
    mine = distributed.rank_slice(len(data))
    pictures: Any = Subset(cast(Any, data), range(mine.start, mine.stop))  # opened as the model comes to them
    images, texts, image_indices = embed(model, data.captions[mine], LazyImages(pictures))
    return Embeddings(*map(distributed.all_gather, (images, texts, image_indices + mine.start)))


def _batches(embedded: Embeddings, size: int, seed: int) -> list[tuple[Tensor, Tensor]]:
    """Matching rows (size, E) of both sides: every round all pictures in another order, as many as fill batches.

    Of several ranks, each gets its part of the rows.
    """
    mine = distributed.rank_slice(size)
    counts = torch.bincount(embedded.image_indices.cpu(), minlength=len(embedded.images)).tolist()
    first = torch.tensor([0, *counts]).cumsum(0).tolist()
    batches = []
    for turn in range(ROUNDS):
        order = torch.randperm(len(counts), generator=generator(seed, "validation", turn))
        texts = torch.tensor(
            [first[i] + random_integer(seed, "validation", turn, i) % counts[i] for i in order.tolist()]
        )
        for start in range(0, len(order) - size + 1, size):
            rows, captions = order[start : start + size][mine], texts[start : start + size][mine]
            batches.append((embedded.images[rows], embedded.texts[captions]))
    return batches


@torch.no_grad()
def _loss(model: CLIPModel, rows: tuple[Tensor, Tensor], loss: LossFunction) -> Tensor:
    return loss(CLIPOutput(*rows, model.log_scale.exp(), model.logit_bias))
