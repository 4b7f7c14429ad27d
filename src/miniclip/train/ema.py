"""Exponential moving average (EMA) of the trained weights; Polyak and Juditsky 1992.

    average <- average + (1 - d) (weights - average),    d = min(decay, (1 + t) / (10 + t))   after step t

The smaller d of the first steps, when the weights change fast, is that of TensorFlow's ExponentialMovingAverage.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from miniclip.runtime.distributed import is_sharded


class EMA:
    """Moving average of a model's parameters, on their devices and sharded as they are.

    Args:
        model: the average starts at its weights.
        decay: the maximum d, in [0, 1).

    Attributes:
        values: names of trained parameters to averages. Frozen ones are their own average, and need no memory.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.values = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Average in the weights after a step; the first step is 1."""
        average = get_ema_multi_avg_fn(min(self.decay, (1 + step) / (10 + step)))  # type: ignore[no-untyped-call]
        groups: dict[bool, list[tuple[Any, Any]]] = {}  # one call cannot mix sharded and whole tensors
        for name, parameter in model.named_parameters():
            if parameter.requires_grad and name not in self.values:  # unfrozen by a callback
                self.values[name] = parameter.detach().clone()
            if name in self.values:
                groups.setdefault(is_sharded(parameter), []).append((self.values[name], parameter.detach()))
        for pairs in groups.values():
            values, weights = map(list, zip(*pairs, strict=True))
            average(values, weights, step)

    @contextmanager
    def applied_to(self, model: nn.Module) -> Iterator[None]:
        """Give a model the averages as weights inside the context."""
        self._swap(model)
        try:
            yield
        finally:
            self._swap(model)

    @torch.no_grad()
    def _swap(self, model: nn.Module) -> None:
        """Swap the values and not the tensors, so that references to parameters stay valid."""
        for name, parameter in model.named_parameters():
            if name not in self.values:
                continue
            average, weight = local_rows(self.values[name]), local_rows(parameter.detach())
            copy = average.clone()
            average.copy_(weight)
            weight.copy_(copy)


def local_rows(x: Tensor) -> Tensor:
    """Return the rows of a tensor that this rank holds, as a view."""
    return x.to_local() if is_sharded(x) else x  # type: ignore[attr-defined]
