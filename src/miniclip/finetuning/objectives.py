"""Objectives that keep a fine-tuned model near another one, each added to the loss of a batch with its weight.

Letters: B pairs of the batch (of all ranks), E and F embeddings of the student and of the teacher. Vectors are unit
vectors, s the factors on cosines.

- `distillation`: the student's distribution over the batch follows the teacher's, in both directions (the affinity
  mimicking of TinyCLIP, Wu et al. 2023; the contrastive relational distillation of CLIP-KD, Yang et al. 2024).
- `relative_distance`: the weights stay near the starting weights (L2-SP, Li et al. 2018, "Explicit Inductive Bias for
  Transfer Learning with Convolutional Networks"; https://arxiv.org/abs/1802.01483).
- `cosine_distance`: the embeddings stay near those of the starting model.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from miniclip.losses.reference import l2_normalize


def distillation(student: tuple[Tensor, Tensor, Tensor], teacher: tuple[Tensor, Tensor, Tensor | float]) -> Tensor:
    """Kullback-Leibler divergence of the student's distributions over a batch from the teacher's.

    With student logits S = s x y^T and teacher logits T = s' x' y'^T, both (B, B),

        1/2B [ sum_i KL(softmax_j T_ij || softmax_j S_ij) + sum_j KL(softmax_i T_ij || softmax_i S_ij) ].

    Args:
        student: image embeddings (B, E), text embeddings (B, E), of any length, and the factor on their cosines.
        teacher: those of the teacher, (B, F); they get no gradient.

    Returns:
        A scalar, at least 0; 0 if both have the same distributions. Memory grows with B^2.
    """
    with torch.autocast(student[0].device.type, enabled=False):
        logits = student[2] * l2_normalize(student[0]) @ l2_normalize(student[1]).T
        targets = (teacher[2] * l2_normalize(teacher[0]) @ l2_normalize(teacher[1]).T).detach()
        directions = ((logits, targets), (logits.T, targets.T))
        terms = [
            F.kl_div(s.log_softmax(dim=1), t.log_softmax(dim=1), reduction="batchmean", log_target=True)
            for s, t in directions
        ]
        return (terms[0] + terms[1]) / 2


def cosine_distance(embeddings: Tensor, targets: Tensor) -> Tensor:
    """Return the mean of 1 - cosine between embeddings and their targets, both (B, E): a scalar in 0..2."""
    with torch.autocast(embeddings.device.type, enabled=False):
        return 1 - (l2_normalize(embeddings) * l2_normalize(targets)).sum(dim=1).mean()


def relative_distance(weights: Sequence[Tensor], starts: Sequence[Tensor]) -> Tensor:
    """Return |w - w0|^2 / |w0|^2 over all weights together, a scalar: 0.01 if they moved by a tenth of their length.

    The norm of the starting weights makes the size of the model irrelevant.
    """
    moved = [(weight - start).float().square().sum() for weight, start in zip(weights, starts, strict=True)]
    length = [start.float().square().sum() for start in starts]
    return torch.stack(moved).sum() / torch.stack(length).sum()
