"""AdamW (Loshchilov and Hutter 2019), with weight decay only on the weights of linear layers and patch embeddings."""

from __future__ import annotations

import torch
from torch import nn

from miniclip.models.clip import CLIP
from miniclip.runtime.distributed import is_sharded
from miniclip.train.config import TrainConfig
from miniclip.train.variants.rates import lr_scales


def build_optimizer(model: CLIP, config: TrainConfig) -> torch.optim.Optimizer:
    """Return AdamW over all parameters. Gains, biases, embeddings, positions and the scale do not decay.

    The key "lr_scale" of a group is the factor on the learning rate that `set_learning_rate` applies.
    """
    decayed = {id(m.weight) for m in model.modules() if isinstance(m, nn.Linear | nn.Conv2d)}
    scales = lr_scales(model, config)
    groups: dict[tuple[bool, bool, float], list[nn.Parameter]] = {}
    for parameter in model.parameters():  # the fused kernel takes parameters that are all sharded or all whole
        key = (id(parameter) in decayed, is_sharded(parameter), scales[id(parameter)])
        groups.setdefault(key, []).append(parameter)
    optimizer = torch.optim.AdamW(
        [
            {"params": group, "weight_decay": config.weight_decay * decays, "lr_scale": scale}
            for (decays, _, scale), group in groups.items()
        ],
        lr=config.lr,
        betas=(0.9, config.beta2),
        eps=1e-6,
        fused=next(model.parameters()).device.type in ("cpu", "cuda"),  # several times as fast
    )
    set_learning_rate(optimizer, config.lr)
    return optimizer


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the learning rate of every group: the rate, times the group's factor."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["lr_scale"]
