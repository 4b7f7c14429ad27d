"""Muon on the matrices of the blocks, and AdamW on all other parameters, as one optimizer.

Muon replaces the averaged gradient of a matrix by the nearest matrix whose singular values are all equal, up to the
accuracy of five Newton-Schulz steps (Jordan 2024, https://kellerjordan.github.io/posts/muon/). Its update is scaled to
the mean square of AdamW's, so that it takes AdamW's learning rate and weight decay (Liu et al. 2025,
https://arxiv.org/abs/2502.16982). Input and output layers stay with AdamW, as Jordan advises: embeddings, positions,
patches or the convolutional stem, projections, the attention pool, and all vectors.

torch's Muon works in bfloat16 also on float32 weights. It takes the matrix of queries, keys and values as one.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import torch

from miniclip.runtime.distributed import is_sharded

MATRIX = re.compile(r"(image|text)\.blocks\.\d+\.(attention\.(qkv|out)|mlp\.(up|down))\.weight")


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
        self.muon = torch.optim.Muon(matrices, lr=lr, adjust_lr_fn="match_rms_adamw")
        self.adamw = torch.optim.AdamW(others, lr=lr, **adamw)
        groups = [*self.muon.param_groups, *self.adamw.param_groups]
        super().__init__(groups, {"lr": lr})
        self.param_groups = groups

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """Update the weights; a closure is not supported."""
        if closure is not None:
            raise ValueError("MuonWithAdamW.step takes no closure: compute the gradients before the step")
        count = len(self.muon.param_groups)
        for part, groups in ((self.muon, self.param_groups[:count]), (self.adamw, self.param_groups[count:])):
            part.param_groups, part.state = groups, self.state  # a restored state replaces these objects
            part.step()  # type: ignore[no-untyped-call]
