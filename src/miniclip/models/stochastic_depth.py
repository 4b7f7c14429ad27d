"""Stochastic depth (Huang et al. 2016, https://arxiv.org/abs/1603.09382): samples skip residual branches in training.

Letters: B batch, T tokens, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor


def drop_branches(branch: Tensor, rate: float, samples: Tensor | None = None) -> Tensor:
    """Set the residual branch of random samples to 0, and divide that of the others by 1 - rate.

    Args:
        branch: (B, T, D) or (B, D).
        rate: probability of each sample to be dropped, in [0, 1); 0: the branch itself.
        samples: (N,) sample of each token in ascending order, for a branch (1, N, D) of packed tokens.

    Returns:
        Shape of branch. Its mean over the random numbers of torch's global generator is the branch.
    """
    if not rate:
        return branch
    count = branch.shape[0] if samples is None else int(samples[-1]) + 1
    factors = (torch.rand(count, device=branch.device) >= rate).to(branch.dtype) / (1 - rate)
    factors = factors if samples is None else factors[samples][None]
    return branch * factors.view(*factors.shape, *[1] * (branch.ndim - factors.ndim))
