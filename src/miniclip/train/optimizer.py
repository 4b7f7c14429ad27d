"""AdamW (Loshchilov and Hutter 2019), with weight decay only on the weights of linear layers and patch embeddings."""

from __future__ import annotations

import torch
from torch import nn

from miniclip.runtime.distributed import is_sharded
from miniclip.train.config import TrainConfig


def build_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.AdamW:
    """Return AdamW over all parameters. Gains, biases, embeddings, positions and the scale do not decay."""
    decayed = {id(m.weight) for m in model.modules() if isinstance(m, nn.Linear | nn.Conv2d)}
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for parameter in model.parameters():  # the fused kernel takes parameters that are all sharded or all whole
        groups.setdefault((id(parameter) in decayed, is_sharded(parameter)), []).append(parameter)
    return torch.optim.AdamW(
        [{"params": group, "weight_decay": config.weight_decay * decays} for (decays, _), group in groups.items()],
        lr=config.lr,
        betas=(0.9, config.beta2),
        eps=1e-6,
        fused=next(model.parameters()).device.type in ("cpu", "cuda"),  # several times as fast
    )
