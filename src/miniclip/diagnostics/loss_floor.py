"""Lowest loss of a batch in which captions repeat: identical captions have identical embeddings.

Such a model gives each distinct caption u, of which the batch has k_u copies, one logit per image. The loss is lowest
if the probabilities of the model are the mean targets of the copies.

Letters: N images, C captions per image, M = N C captions, e label smoothing.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from miniclip.train.config import TrainConfig
from miniclip.train.metrics import binary_entropy


def loss_floor(captions: Sequence[Sequence[int]], config: TrainConfig) -> float:
    """Return the lowest loss of any model on a batch.

    Args:
        captions: the captions of each image, N rows of C keys; equal keys are equal captions.
        config: the settings.
    """
    rows = [Counter(row) for row in captions]  # n_iu: how often image i has caption u
    copies = Counter(u for row in captions for u in row)  # k_u
    if config.loss == "sigmoid":
        return _sigmoid_floor(rows, copies, config)
    return (_image_floor(rows, copies, config) + _text_floor(rows, copies, config)) / 2


def _image_floor(rows: Sequence[Counter[int]], copies: Counter[int], config: TrainConfig) -> float:
    """Return the mean entropy of the images' targets, in which the copies of a caption have equal parts."""
    e, m, total = config.label_smoothing, copies.total(), 0.0
    for row in rows:
        shared = sum(copies[u] for u in row)
        for u, count in row.items():
            part = copies[u] / shared if config.positives == "all" else count / row.total()
            mass = (1 - e) * part + e * copies[u] / m
            total -= mass * math.log(mass / copies[u])
        total -= (m - shared) * _p_log_p(e / m)
    return total / len(rows)


def _text_floor(rows: Sequence[Counter[int]], copies: Counter[int], config: TrainConfig) -> float:
    """Return the mean entropy of the captions' targets, each the mean over the copies of the caption."""
    e, n, total = config.label_smoothing, len(rows), 0.0
    images = Counter(u for row in rows for u in row)  # images that have a caption
    for row in rows:
        for u, count in row.items():
            part = 1 / images[u] if config.positives == "all" else count / copies[u]
            total -= copies[u] * _p_log_p((1 - e) * part + e / n)
    for u, count in copies.items():
        total -= count * (n - images[u]) * _p_log_p(e / n)
    return total / copies.total()


def _sigmoid_floor(rows: Sequence[Counter[int]], copies: Counter[int], config: TrainConfig) -> float:
    """Return the sum of the entropies of the targets, per positive."""
    e, m, total, positives = config.label_smoothing, copies.total(), 0.0, 0
    for row in rows:
        for u, count in row.items():
            of_copies = copies[u] if config.positives == "all" else count  # positives among the copies
            total += copies[u] * binary_entropy((1 - e) * of_copies / copies[u] + e / 2)
            positives += of_copies
        total += (m - sum(copies[u] for u in row)) * binary_entropy(e / 2)
    return total / positives


def _p_log_p(p: float) -> float:
    return p * math.log(p) if p > 0 else 0.0
