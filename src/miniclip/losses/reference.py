"""Contrastive and sigmoid loss in their plain form. Every faster form is tested against these.

`contrastive_loss` is CLIP's symmetric cross-entropy (Radford et al. 2021, figure 3). With unit vectors x_i, y_j and
s_ij = scale * x_i . y_j over a batch of N matching pairs,

    loss = -1/(2N) sum_i [ log softmax_j(s_ij) at j = i  +  log softmax_j(s_ji) at j = i ].

`sigmoid_loss` is SigLIP's (Zhai et al. 2023, equation 1), a binary classification of every pair:

    loss = -1/N sum_ij log sigmoid( z_ij (s_ij + bias) ),  z_ij = 1 if i = j, else -1.

Letters: N pairs of the batch, E embedding.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def contrastive_loss(
    image_embeddings: Tensor, text_embeddings: Tensor, logit_scale: Tensor | float, ids: Tensor | None = None
) -> Tensor:
    """CLIP's loss over a batch of matching pairs.

    Args:
        image_embeddings: (N, E) of any length; they are normalized here. Row i matches row i of the texts.
        text_embeddings: (N, E).
        logit_scale: factor on the cosine similarities (not its logarithm), at least 0.
        ids: (N,) integers. Rows with equal ids, such as two captions of one image, are not used as each other's
            negatives. None: all ids differ.

    Returns:
        Scalar, at least float32: log N if all embeddings are equal, near 0 if each pair is by far the closest.

    Raises:
        ValueError: the shapes do not fit.
    """
    check_shapes(image_embeddings, text_embeddings, ids)
    with torch.autocast(image_embeddings.device.type, enabled=False):  # bfloat16 would round small differences away
        logits = logit_scale * l2_normalize(image_embeddings) @ l2_normalize(text_embeddings).T  # (N, N)
        if ids is not None:
            logits = logits.masked_fill(_repeats(ids), -torch.inf)
        target = torch.arange(len(logits), device=logits.device)
        return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def sigmoid_loss(
    image_embeddings: Tensor,
    text_embeddings: Tensor,
    logit_scale: Tensor | float,
    logit_bias: Tensor | float,
    ids: Tensor | None = None,
) -> Tensor:
    """SigLIP's loss over a batch of matching pairs.

    Args:
        image_embeddings: as in `contrastive_loss`, and so are the other arguments and errors.
        text_embeddings: (N, E).
        logit_scale: SigLIP starts at 10.
        logit_bias: added to every logit. SigLIP starts at -10.
        ids: (N,) integers; pairs of different rows with equal ids are left out.
    """
    check_shapes(image_embeddings, text_embeddings, ids)
    with torch.autocast(image_embeddings.device.type, enabled=False):
        logits = logit_scale * l2_normalize(image_embeddings) @ l2_normalize(text_embeddings).T + logit_bias  # (N, N)
        matches = torch.eye(len(logits), dtype=torch.bool, device=logits.device)
        loss = -F.logsigmoid(torch.where(matches, logits, -logits))
        if ids is not None:
            loss = loss.masked_fill(_repeats(ids), 0.0)
        return loss.sum() / len(logits)


def l2_normalize(x: Tensor) -> Tensor:
    """Divide rows by their length, in float32 or finer; rows of zeros stay zero."""
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    largest = x.detach().abs().amax(dim=-1, keepdim=True)
    x = x / torch.where(largest > 0, largest, 1.0)  # else the length could overflow; the direction stays the same
    return F.normalize(x, dim=-1, eps=0.5)  # the length is at least 1, or 0; for rows of zeros eps bounds the gradient


def check_shapes(image_embeddings: Tensor, text_embeddings: Tensor, ids: Tensor | None) -> None:
    """Raise ValueError if the shapes of a loss's inputs do not fit."""
    if image_embeddings.dim() != 2 or image_embeddings.shape != text_embeddings.shape or not len(image_embeddings):
        raise ValueError(
            f"image embeddings {tuple(image_embeddings.shape)} and text embeddings {tuple(text_embeddings.shape)}: "
            "expected two of the same shape (N, E), N at least 1"
        )
    if ids is not None and ids.shape != image_embeddings.shape[:1]:
        raise ValueError(f"ids have the shape {tuple(ids.shape)}; expected ({len(image_embeddings)},), one per pair")


def _repeats(ids: Tensor) -> Tensor:
    """(N, N), True for two different rows with equal ids."""
    return (ids[:, None] == ids).fill_diagonal_(False)
