"""AdamW (Loshchilov and Hutter 2019), with weight decay only on the weights of linear layers and patch embeddings."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from miniclip.checkpoints.names import unwrapped_name
from miniclip.models.clip import CLIP
from miniclip.runtime.distributed import is_sharded
from miniclip.train.config import TrainConfig
from miniclip.train.variants.muon import MATRIX, MuonWithAdamW
from miniclip.train.variants.rates import lr_scales


def build_optimizer(model: CLIP, config: TrainConfig) -> torch.optim.Optimizer:
    """Return AdamW over all parameters. Gains, biases, embeddings, positions and the scale do not decay.

    With the setting `optimizer` "muon", Muon trains the matrices of blocks and of a convolutional stem. The key
    "lr_scale" of a group is the factor on the learning rate that `set_learning_rate` applies.

    Raises:
        ValueError: Muon cannot train the model.
    """
    layers = (module for module in model.modules() if isinstance(module, nn.Linear | nn.Conv2d))
    decayed = {id(p) for layer in layers for p in layer.parameters(recurse=False) if p.dim() > 1}  # no bias
    scales, names = lr_scales(model, config), {id(p): unwrapped_name(name) for name, p in model.named_parameters()}
    groups: dict[tuple[bool, bool, bool, float], list[nn.Parameter]] = {}
    for parameter in model.parameters():  # the fused kernel takes parameters that are all sharded or all whole
        muon = config.optimizer == "muon" and MATRIX.fullmatch(names[id(parameter)]) is not None
        key = (muon, id(parameter) in decayed, is_sharded(parameter), scales[id(parameter)])
        groups.setdefault(key, []).append(parameter)
    parts: tuple[list[dict[str, Any]], list[dict[str, Any]]] = ([], [])  # AdamW, Muon
    for (muon, decays, _, scale), group in groups.items():
        parts[muon].append({"params": group, "weight_decay": config.weight_decay * decays, "lr_scale": scale})
    options: dict[str, Any] = {
        "betas": (0.9, config.beta2),
        "eps": 1e-6,
        "fused": next(model.parameters()).device.type in ("cpu", "cuda"),  # several times as fast
    }
    optimizer: torch.optim.Optimizer
    if config.optimizer == "muon":
        optimizer = MuonWithAdamW(matrices=parts[True], others=parts[False], lr=config.lr, adamw=options)
    else:
        optimizer = torch.optim.AdamW(parts[False], lr=config.lr, **options)
    set_learning_rate(optimizer, config.lr)
    return optimizer


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the learning rate of every group: the rate, times the group's factor."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["lr_scale"]
