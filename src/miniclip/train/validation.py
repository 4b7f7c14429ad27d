"""Validation: the training loss on held-out data, and retrieval recall, from one pass over images and captions.

Each rank embeds a part of the data, and all ranks gather the embeddings. Letters: B batch, E embedding.
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

ROUNDS = 5  # passes over the images, each with other captions, so that the mean loss varies less


def validate(
    model: CLIPModel, data: ImageCaptionDataset, loss: LossFunction, batch_size: int, seed: int
) -> tuple[dict[str, Any], Embeddings]:
    """Measure a model on held-out data.

    Args:
        model: embeds in float32, also if it is trained in bfloat16.
        data: images with captions.
        loss: the training loss.
        batch_size: that of training, since the loss depends on it; a smaller dataset is one batch.
        seed: seed of the batches and captions, which are the same at every evaluation.

    Returns:
        The metrics `val_loss`, `val_log_n` (the loss of an untrained model) and those of `evaluation.retrieval`; and
        the embeddings of the data.
    """
    embeddings = _embed(model, data)
    size = min(batch_size, len(data))
    losses = [_loss(model, pairs, loss) for pairs in _batches(embeddings, size, seed)]
    log_n = float(torch.tensor(float(size)).log())
    return {"val_loss": float(torch.stack(losses).mean()), "val_log_n": log_n, **recalls(embeddings)}, embeddings


def monitored(record: Mapping[str, Any], monitor: Monitor) -> float:
    """Return the value of the monitored metric in an evaluation's record, such that greater is better."""
    to_image, to_text = record["text_to_image"]["R@1"], record["image_to_text"]["R@1"]
    values = {
        "recall": (to_image + to_text) / 2,
        "text_to_image": to_image,
        "image_to_text": to_text,
        "val_loss": -record["val_loss"],
    }
    return float(values[monitor])


def _embed(model: CLIPModel, data: ImageCaptionDataset) -> Embeddings:
    """Return the embeddings of all images and captions, in order, on every rank."""
    part = distributed.rank_slice(len(data))
    images: Any = Subset(cast(Any, data), range(part.start, part.stop))
    image_embeddings, text_embeddings, image_indices = embed(model, data.captions[part], LazyImages(images))
    local = (image_embeddings, text_embeddings, image_indices + part.start)
    return Embeddings(*map(distributed.all_gather, local))


def _batches(embeddings: Embeddings, size: int, seed: int) -> list[tuple[Tensor, Tensor]]:
    """Return this rank's rows of batches of matching embeddings, each (B, E).

    Every round draws another order of the images and another caption of each, and leaves out the last partial batch.
    """
    part = distributed.rank_slice(size)
    counts = torch.bincount(embeddings.image_indices.cpu(), minlength=len(embeddings.images)).tolist()
    first = torch.tensor([0, *counts]).cumsum(0).tolist()  # row of each image's first caption
    batches = []
    for turn in range(ROUNDS):
        order = torch.randperm(len(counts), generator=generator(seed, "validation", turn))
        choices = [random_integer(seed, "validation", turn, i) % counts[i] for i in order.tolist()]
        captions = torch.tensor([first[i] + choice for i, choice in zip(order.tolist(), choices, strict=True)])
        for start in range(0, len(order) - size + 1, size):
            rows = slice(start, start + size)
            batches.append((embeddings.images[order[rows][part]], embeddings.texts[captions[rows][part]]))
    return batches


@torch.no_grad()
def _loss(model: CLIPModel, pairs: tuple[Tensor, Tensor], loss: LossFunction) -> Tensor:
    return loss(CLIPOutput(*pairs, model.log_scale.exp(), model.logit_bias))
