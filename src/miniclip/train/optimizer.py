"""AdamW (Loshchilov and Hutter 2019), its decay on matrices that multiply activations and on nothing else."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from miniclip.runtime.distributed import is_sharded
from miniclip.train.config import TrainConfig


def build_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.AdamW:
    """AdamW: the weights of linear layers and patches decay; gains, biases, embeddings and the scale do not."""
    decayed = {id(m.weight) for m in model.modules() if isinstance(m, nn.Linear | nn.Conv2d)}
    parameters = list(model.parameters())
    groups = [
        {"params": [p for p in parameters if id(p) in decayed], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if id(p) not in decayed and not is_sharded(p)], "weight_decay": 0.0},
        {"params": [p for p in parameters if id(p) not in decayed and is_sharded(p)], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    # One kernel for the parameters of a group, which therefore are all sharded or all not, where torch has it: several
    # times the speed of the loop, on the CPU too.
    fused = next(model.parameters()).device.type in ("cpu", "cuda")
    return torch.optim.AdamW(groups, lr=config.lr, betas=(0.9, config.beta2), eps=1e-6, fused=fused)


def step_where(optimizer: torch.optim.Optimizer, allowed: Tensor) -> None:
    """Do the optimizer's step if `allowed` () is true; else leave weights, moments and the count of steps as they are.

    The fused kernels look at it on the device (it is what a gradient scaler passes to them), so nothing waits for it.
    """
    if optimizer.defaults.get("fused") and not any(is_sharded(p) for g in optimizer.param_groups for p in g["params"]):
        optimizer.found_inf = (~allowed).float()  # type: ignore[attr-defined]
        optimizer.step()
    elif allowed:
        optimizer.step()
