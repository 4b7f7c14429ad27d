"""Validation: the training loss on held-out data, and retrieval recall, from one pass over images and captions.

Each rank embeds a part of the data, and all ranks gather the embeddings. Letters: B batch, E embedding.
"""

from __future__ import annotations

import math
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils.data import Subset

from miniclip.data.dataset import ImageCaptionDataset
from miniclip.evaluation.retrieval import KS, Embeddings, LazyImages, Recalls, embed, recalls
from miniclip.inference.model import CLIPModel
from miniclip.models.clip import CLIPOutput
from miniclip.runtime import distributed
from miniclip.train.config import Monitor, TrainConfig
from miniclip.train.metrics import chance_loss
from miniclip.train.step import LossFunction
from miniclip.utils.randomness import generator, random_integer

ROUNDS = 5  # passes over the images, each with other captions, so that the mean loss varies less


def validate(
    model: CLIPModel, data: ImageCaptionDataset, loss: LossFunction, config: TrainConfig, batch_size: int
) -> tuple[dict[str, Any], Embeddings]:
    """Measure a model on held-out data.

    Args:
        model: embeds in float32, also if it is trained in bfloat16.
        data: images with captions.
        loss: the training loss.
        config: settings of the run. The seed gives the batches and captions, the same at every evaluation.
        batch_size: rows of a training batch, since the loss depends on it; a smaller dataset is one batch.

    Returns:
        The metrics `val_loss`, `val_chance_loss` (of a model that cannot distinguish the pairs), those of
        `evaluation.retrieval`, and `chance_recall` in the same form; and the embeddings of the data.
    """
    embeddings = _embed(model, data)
    size = min(batch_size, len(data))
    losses = [_loss(model, pairs, loss) for pairs in _batches(embeddings, size, config.seed)]
    metrics = {"val_loss": float(torch.stack(losses).mean()), "val_chance_loss": chance_loss(size, config.loss)}
    counts = [len(group) for group in data.captions]
    return {**metrics, **recalls(embeddings), "chance_recall": chance_recall(counts)}, embeddings


def evaluate_first(trainer: Any) -> None:
    """Evaluate a trainer's model before the first step, if the settings request it, and save that it was done."""
    if trainer.config.evaluate_first and trainer.val_data is not None and trainer.progress.evaluated < 0:
        trainer.evaluate(trainer.val_data)
        trainer.save()


def chance_recall(counts: Sequence[int], ks: Sequence[int] = KS) -> Recalls:
    """Return the expected recall of a random ranking, in percent, in the form of `evaluation.retrieval.recalls`.

    With 4 images of 5 captions, R@1 is 25 in both directions; R@5 is 100 from text to image, since there are only 4
    images, and 80.6 from image to text: an image misses if the first five of 20 captions are not its own.

    Args:
        counts: number of captions of each image.
        ks: values of K.
    """
    images, captions = len(counts), sum(counts)
    to_image = {f"R@{k}": 100 * min(1.0, k / images) for k in ks}
    frequencies = Counter(counts)
    to_text = {}
    for k in ks:
        nearest = min(k, captions)
        missed = {n: math.comb(captions - n, nearest) / math.comb(captions, nearest) for n in frequencies}
        to_text[f"R@{k}"] = 100 * sum(number * (1 - missed[n]) for n, number in frequencies.items()) / images
    return {"image_to_text": to_text, "text_to_image": to_image}


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


def comparable(val_data: ImageCaptionDataset | None) -> ImageCaptionDataset | None:
    """Return the validation data, or None with a warning if they have one image: its caption has no rival."""
    if val_data is None or len(val_data) > 1:
        return val_data
    warnings.warn(
        f"the validation data have {len(val_data)} image{'' if len(val_data) == 1 else 's'}, whose recall is 100% for "
        "any model: the run is not evaluated, and has no best/; give at least two images, better some hundred",
        stacklevel=5,
    )
    return None
