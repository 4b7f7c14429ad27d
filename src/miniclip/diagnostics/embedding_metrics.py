"""Geometry of a batch of embeddings: alignment, uniformity and effective rank.

For unit vectors x of images and y of their captions (Wang and Isola 2020, https://arxiv.org/abs/2005.10242):

    alignment  = mean_i |x_i - y_i|^2                              0: matching pairs coincide; 2: unrelated
    uniformity = log mean_{i != j} exp(-2 |x_i - x_j|^2)           0: all at one point; -4: spread over many dimensions

For the singular values s of the embeddings of one modality (Roy and Vetterli 2007, "The effective rank"):

    effective rank = exp(-sum_k p_k log p_k),  p_k = s_k / sum s   1: all on one line; min(n, E): all directions used

Letters: n pairs, E embedding.
"""

from __future__ import annotations

import torch
from torch import Tensor

from miniclip.runs.history import Record


def embedding_metrics(images: Tensor, texts: Tensor) -> Record:
    """Return the metrics of matching unit vectors (n, E) by name; empty if an embedding is not finite."""
    if not bool(images.isfinite().all() and texts.isfinite().all()):
        return {}
    return {
        "alignment": alignment(images, texts),
        "uniformity_image": uniformity(images),
        "uniformity_text": uniformity(texts),
        "effective_rank_image": effective_rank(images),
        "effective_rank_text": effective_rank(texts),
    }


def alignment(images: Tensor, texts: Tensor) -> float:
    """Return the mean squared distance of matching unit vectors (n, E), in 0..4; 2 for unrelated vectors."""
    return float((images - texts).square().sum(dim=1).mean())


def uniformity(x: Tensor) -> float:
    """Return the log of the mean of exp(-2 d^2) over all distances d between unit vectors (n, E), in -8..0.

    Two opposite points give -8, two orthogonal ones -4, equal points 0, and a single point 0.
    """
    n = len(x)
    if n < 2:
        return 0.0
    squared = (2 - 2 * (x @ x.T)).clamp(min=0)  # (n, n)
    return float((torch.exp(-2 * squared).sum() - torch.exp(-2 * squared.diagonal()).sum()).div(n * (n - 1)).log())


def effective_rank(x: Tensor) -> float:
    """Return the exponential of the entropy of the normalised singular values of rows (n, E).

    Three rows on one line give 1, two orthogonal rows 2.
    """
    gram = x @ x.T if len(x) < x.shape[1] else x.T @ x  # its eigenvalues are the squared singular values
    values = torch.linalg.eigvalsh(gram).clamp(min=0).sqrt()
    return float(torch.special.entr(values / values.sum()).sum().exp())
