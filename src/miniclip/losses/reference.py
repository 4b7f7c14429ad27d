"""The losses in their plain form, which is the specification: every faster form is tested against these.

`contrastive_loss` is CLIP's symmetric cross-entropy (Radford et al. 2021, figure 3): with unit vectors x_i, y_j and
s_ij = scale * x_i . y_j over a batch of N pairs, the N pairs of the diagonal are right and the other N^2 - N wrong,

    loss = -1/(2N) sum_i [ log softmax_j(s_ij) at j = i  +  log softmax_j(s_ji) at j = i ].

`sigmoid_loss` is SigLIP's (Zhai et al. 2023, equation 1): each pair alone is a yes or a no,

    loss = -1/N sum_ij log sigmoid( z_ij (s_ij + bias) ),  z_ij = 1 where i = j, else -1.

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
        image_embeddings: (N, E), any length: they are normalised here. Row i belongs to row i of the texts.
        text_embeddings: (N, E).
        logit_scale: the factor on the cosine similarities (not its logarithm), at least 0.
        ids: (N,) integers; rows that share an id (two captions of one picture, say) are not negatives of each other:
            their similarities are left out of the sums. None: all rows are distinct.

    Returns:
        A scalar, at least in float32: log N where all embeddings are equal, near 0 where the pairs stand apart.

    Raises:
        ValueError: the shapes do not fit.
    """
    check_pairs(image_embeddings, text_embeddings, ids)
    with torch.autocast(image_embeddings.device.type, enabled=False):  # a bf16 similarity would lose the small margins
        logits = logit_scale * _cosines(image_embeddings, text_embeddings)  # (N, N)
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
        image_embeddings: (N, E), any length: they are normalised here. Row i belongs to row i of the texts.
        text_embeddings: (N, E).
        logit_scale: the factor on the cosine similarities (not its logarithm), at least 0.
        logit_bias: added to every logit; SigLIP starts at -10, the scale at 10.
        ids: (N,) integers; pairs of different rows that share an id count neither as right nor as wrong.

    Returns:
        A scalar, at least in float32.

    Raises:
        ValueError: the shapes do not fit.
    """
    check_pairs(image_embeddings, text_embeddings, ids)
    with torch.autocast(image_embeddings.device.type, enabled=False):
        logits = logit_scale * _cosines(image_embeddings, text_embeddings) + logit_bias  # (N, N)
        right = torch.eye(len(logits), dtype=torch.bool, device=logits.device)
        loss = -F.logsigmoid(torch.where(right, logits, -logits))
        if ids is not None:
            loss = loss.masked_fill(_repeats(ids), 0.0)
        return loss.sum() / len(logits)


def l2_normalize(x: Tensor) -> Tensor:
    """Rows of length 1, in float32 or finer; a row of zeros stays one.

    The row is divided by its greatest magnitude first, or its length would overflow near 1e19 in float32. That divisor
    needs no gradient: the direction does not depend on it.
    """
    x = x if x.dtype == torch.float64 else x.float()
    greatest = x.detach().abs().amax(dim=-1, keepdim=True)
    x = x / torch.where(greatest > 0, greatest, 1.0)
    return F.normalize(x, dim=-1, eps=0.5)  # the length is at least 1, or 0: there the gradient stays moderate


def check_pairs(image_embeddings: Tensor, text_embeddings: Tensor, ids: Tensor | None) -> None:
    """Check the shapes that a loss is given.

    Raises:
        ValueError: they do not fit.
    """
    if image_embeddings.dim() != 2 or image_embeddings.shape != text_embeddings.shape or not len(image_embeddings):
        raise ValueError(
            f"image embeddings {tuple(image_embeddings.shape)} and text embeddings {tuple(text_embeddings.shape)}: "
            "expected two of the same shape (N, E), N at least 1"
        )
    if ids is not None and ids.shape != image_embeddings.shape[:1]:
        raise ValueError(
            f"ids have the shape {tuple(ids.shape)}; expected one for each of the {len(image_embeddings)} rows"
        )


def _cosines(image_embeddings: Tensor, text_embeddings: Tensor) -> Tensor:
    return l2_normalize(image_embeddings) @ l2_normalize(text_embeddings).T


def _repeats(ids: Tensor) -> Tensor:
    """(N, N), True where two different rows share an id."""
    return (ids[:, None] == ids).fill_diagonal_(False)
