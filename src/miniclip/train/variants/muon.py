"""Muon on the matrices of the blocks and of the convolutional stem's layers, and AdamW on all other parameters.

Muon replaces the averaged gradient of a matrix by the nearest matrix whose singular values are all equal, up to the
accuracy of five Newton-Schulz steps (Jordan 2024, https://kellerjordan.github.io/posts/muon/). Its update is scaled to
the mean square of AdamW's, so that it takes AdamW's learning rate and weight decay (Liu et al. 2025,
https://arxiv.org/abs/2502.16982). A convolution is one matrix, with a row for each output channel. Input and output
layers stay with AdamW, as Jordan advises: embeddings, positions, patches, projections, the attention pool, and all
vectors.

torch's Muon works in bfloat16 also on float32 weights. It takes the matrix of queries, keys and values as one. On a
CPU, and for convolutions, which torch's refuses, `GramMuon` makes the same update in float32 with fewer products.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from miniclip.runtime.distributed import is_sharded

MATRIX = re.compile(
    r"((image|text)\.blocks\.\d+\.(attention\.(qkv|out)|mlp\.(up|down))|image\.patches\.layers\.\d+\.conv)\.weight"
)
MOMENTUM, STEPS, EPS = 0.95, 5, 1e-7  # torch's defaults
COEFFICIENTS = (3.4445, -4.775, 2.0315)


class GramMuon(torch.optim.Optimizer):
    """`torch.optim.Muon` in float32, with the Newton-Schulz steps on the smaller square matrix: for a CPU.

    A step multiplies a matrix X from the left by a polynomial of X X^T. The product of these polynomials is built from
    X X^T, and X is multiplied once, at the end: for a matrix of 4D x D that is a third of the products.

    Args:
        params: weights of linear layers and of convolutions, or groups of them.
        lr: learning rate.
        weight_decay: of each group that has none of its own.
    """

    def __init__(self, params: Iterable[Any], lr: float, weight_decay: float = 0.1) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """Update the weights; a closure is not supported, and weights without a gradient stay."""
        for group in self.param_groups:
            for weight in (p for p in group["params"] if p.grad is not None):
                if not self.state[weight]:
                    self.state[weight]["momentum_buffer"] = torch.zeros_like(weight)
                momentum = self.state[weight]["momentum_buffer"]
                momentum.lerp_(weight.grad, 1 - MOMENTUM)
                direction = weight.grad.lerp(momentum, MOMENTUM).flatten(1)
                direction = direction.to(torch.promote_types(direction.dtype, torch.float32))  # bfloat16 would diverge
                update = orthogonalized(direction, COEFFICIENTS, STEPS, EPS)
                weight.mul_(1 - group["lr"] * group["weight_decay"])
                scale = 0.2 * math.sqrt(max(update.shape))  # to the mean square of AdamW's
                weight.add_(update.reshape(weight.shape), alpha=-group["lr"] * scale)


def orthogonalized(matrix: Tensor, coefficients: Sequence[float], steps: int, eps: float) -> Tensor:
    """Return an (M, N) matrix with its singular values brought near 1, by Newton-Schulz steps."""
    if matrix.size(0) > matrix.size(1):
        return orthogonalized(matrix.T, coefficients, steps, eps).T
    a, b, c = coefficients
    norm = matrix.norm().clamp(min=eps)
    gram = torch.mm(matrix, matrix.T) / norm.square()
    product: Tensor = torch.eye(len(gram), dtype=gram.dtype, device=gram.device) / norm
    for step in range(steps):
        polynomial = torch.addmm(gram, gram, gram, beta=b, alpha=c)
        polynomial.diagonal().add_(a)
        product = polynomial @ product
        if step < steps - 1:
            gram = polynomial @ gram @ polynomial
    return product @ matrix


class MuonWithAdamW(torch.optim.Optimizer):
    """Muon and AdamW as one optimizer, with the groups and the states of both.

    Args:
        matrices: parameter groups of Muon.
        others: parameter groups of AdamW.
        lr: learning rate.
        adamw: further options of AdamW.

    Raises:
        ValueError: there are no matrices, or they are sharded: each rank has only some of their rows.
    """

    def __init__(
        self, matrices: list[dict[str, Any]], others: list[dict[str, Any]], *, lr: float, adamw: Mapping[str, Any]
    ) -> None:
        if not matrices:
            raise ValueError("optimizer 'muon' trains the matrices of the blocks, and the model has none: use 'adamw'")
        if any(is_sharded(parameter) for group in matrices for parameter in group["params"]):
            raise ValueError("optimizer 'muon' needs whole matrices, and fsdp shards them: use 'adamw', or no fsdp")
        weights = [parameter for group in matrices for parameter in group["params"]]
        own = weights[0].device.type == "cpu" or any(weight.dim() > 2 for weight in weights)
        self.muon = GramMuon(matrices, lr) if own else torch.optim.Muon(matrices, lr, adjust_lr_fn="match_rms_adamw")
        self.adamw = torch.optim.AdamW(others, lr=lr, **adamw)
        groups = [*self.muon.param_groups, *self.adamw.param_groups]
        super().__init__(groups, {"lr": lr})
        self.param_groups = groups

    def __getstate__(self) -> dict[str, Any]:
        """State of copies and pickles, with both optimizers."""
        return {**super().__getstate__(), "muon": self.muon, "adamw": self.adamw}

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """Update the weights; a closure is not supported."""
        if closure is not None:
            raise ValueError("MuonWithAdamW.step takes no closure: compute the gradients before the step")
        count = len(self.muon.param_groups)
        for part, groups in ((self.muon, self.param_groups[:count]), (self.adamw, self.param_groups[count:])):
            part.param_groups, part.state = groups, self.state  # a restored state replaces these objects
            part.step()
