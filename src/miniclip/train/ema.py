"""The moving average of the weights (EMA): steadier than the weights of any one step, and often better held out.

    average <- average + (1 - d) (weights - average),    d = min(decay, (1 + t) / (10 + t))   after step t,

so that early on, when the weights change fast, the average forgets faster (as TensorFlow's ExponentialMovingAverage
does). Polyak and Juditsky 1992, "Acceleration of stochastic approximation by averaging".
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from miniclip.runtime.distributed import is_sharded


class EMA:
    """The average of a model's parameters, each where its parameter is, and sharded as it is.

    Args:
        model: its parameters are where the average starts.
        decay: the greatest d, in [0, 1).
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.values = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Take in the weights after a step, the first of which is 1."""
        decay = min(self.decay, (1 + step) / (10 + step))
        kinds: tuple[list[tuple[Any, Any]], list[tuple[Any, Any]]] = ([], [])  # apart: one operation takes one kind
        for name, parameter in model.named_parameters():
            kinds[is_sharded(parameter)].append((self.values[name], parameter.detach()))
        for pairs in filter(None, kinds):
            averages, weights = zip(*pairs, strict=True)
            torch._foreach_lerp_(averages, weights, 1 - decay)

    @contextmanager
    def in_place(self, model: nn.Module) -> Iterator[None]:
        """A context in which the model has the average for its weights."""
        self._exchange(model)
        try:
            yield
        finally:
            self._exchange(model)

    @torch.no_grad()
    def _exchange(self, model: nn.Module) -> None:
        """Swap the numbers, not the tensors: what holds a reference to a parameter keeps it."""
        for name, parameter in model.named_parameters():
            mine, theirs = _own_rows(self.values[name]), _own_rows(parameter.detach())
            kept = mine.clone()
            mine.copy_(theirs)
            theirs.copy_(kept)


def _own_rows(x: Tensor) -> Tensor:
    """The numbers that this rank holds, to be changed in place."""
    return x.to_local() if is_sharded(x) else x  # type: ignore[attr-defined]
