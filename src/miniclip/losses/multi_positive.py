"""The losses with any number of positives per row, and with label smoothing, in their plain form: a specification.

Image i and text j are positives, p_ij = 1, if they share a label. Image i has P_i = sum_j p_ij positives, text j has
Q_j = sum_i p_ij. With s_ij = scale * x_i . y_j, the contrastive loss is the mean of both directions of

    mean over i with P_i > 0 of  -sum_j t_ij log softmax_j(s_ij),    t_ij = (1 - e) p_ij / P_i + e / M,

which is L_out of Khosla et al. 2020 (https://arxiv.org/abs/2004.11362, equation 2) for e = 0, and smooths labels as
`torch.nn.functional.cross_entropy` does. The other direction exchanges i and j, P and Q, M and N. A row without a
positive, such as an additional wrong caption, has no term of its own; it is a negative of the others.

The sigmoid loss is a binary cross-entropy of every element, as in SigLIP with several captions an image (FFF, Bulat et
al. 2024, https://arxiv.org/abs/2405.10286), divided by the number of positives, as SigLIP's is for pairs:

    -1 / (sum_ij p_ij) sum_ij [ t_ij log sigmoid(z_ij) + (1 - t_ij) log sigmoid(-z_ij) ],   z_ij = s_ij + bias,

where t_ij = (1 - e) p_ij + e / 2: smoothing over two classes.

Letters: N images, M texts, E embedding, L labels of an image, e label smoothing.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from miniclip.losses.inputs import LossInputs
from miniclip.losses.reference import l2_normalize


def loss(inputs: LossInputs) -> Tensor:
    """Return the contrastive loss, or the sigmoid loss if the inputs have a bias: a scalar, at least float32."""
    with torch.autocast(inputs.images.device.type, enabled=False):
        scale, *bias = inputs.scalars
        logits = scale * l2_normalize(inputs.images) @ l2_normalize(inputs.texts).T  # (N, M)
        positives, left_out = inputs.positives()
        if bias:
            return _sigmoid_loss(logits + bias[0], positives, left_out, inputs.label_smoothing)
        from_images = _direction(logits, positives, left_out, inputs.label_smoothing)
        return (from_images + _direction(logits.T, positives.T, left_out.T, inputs.label_smoothing)) / 2


def _direction(logits: Tensor, positives: Tensor, left_out: Tensor, smoothing: float) -> Tensor:
    """Mean cross-entropy of the rows that have a positive; an element that is left out is not a class."""
    logits = logits.masked_fill(left_out, -torch.inf)
    shares, classes = positives.to(logits.dtype), (~left_out).to(logits.dtype)
    targets = (1 - smoothing) * shares / shares.sum(dim=1, keepdim=True).clamp(min=1)
    targets = targets + smoothing * classes / classes.sum(dim=1, keepdim=True)
    row_losses = -(targets * logits.log_softmax(dim=1).masked_fill(left_out, 0.0)).sum(dim=1)
    has_positive = positives.any(dim=1)  # a sum and not an index, which would wait for a GPU
    return torch.where(has_positive, row_losses, 0.0).sum() / has_positive.sum()


def _sigmoid_loss(logits: Tensor, positives: Tensor, left_out: Tensor, smoothing: float) -> Tensor:
    targets = (1 - smoothing) * positives.to(logits.dtype) + smoothing / 2
    losses = F.binary_cross_entropy_with_logits(logits, targets, reduction="none").masked_fill(left_out, 0.0)
    return losses.sum() / positives.sum()
