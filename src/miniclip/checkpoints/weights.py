"""Weights of a checkpoint file as the conversion reads them: tensors by name, with their shapes and data types."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from miniclip.checkpoints.operations import Shape


class Weights(Protocol):
    """Tensors of a file, read one at a time."""

    path: Path
    shapes: dict[str, Shape]
    dtypes: dict[str, torch.dtype]

    def get(self, key: str) -> Tensor:
        """Return a tensor for the model to keep, without a copy if the file allows it."""

    def take(self, key: str) -> Tensor:
        """Return a tensor that the caller copies; its memory is freed after the caller drops it."""


class InMemoryWeights:
    """Weights that are in memory already.

    Args:
        path: the file that they came from, for messages.
        tensors: plain tensors by name.
    """

    def __init__(self, path: Path, tensors: Mapping[str, Tensor]) -> None:
        self.path = path
        self._tensors = dict(tensors)
        self.shapes: dict[str, Shape] = {key: tuple(value.shape) for key, value in tensors.items()}
        self.dtypes = {key: value.dtype for key, value in tensors.items()}

    def get(self, key: str) -> Tensor:
        """Return a tensor."""
        return self._tensors[key]

    def take(self, key: str) -> Tensor:
        """Return a tensor and forget it."""
        return self._tensors.pop(key)


class RenamedWeights:
    """Some of the weights of a file, under other names.

    Args:
        weights: of the file.
        names: the file's name of each weight, by its new name.
    """

    def __init__(self, weights: Weights, names: Mapping[str, str]) -> None:
        self.path = weights.path
        self._weights, self._names = weights, dict(names)
        self.shapes: dict[str, Shape] = {name: weights.shapes[key] for name, key in names.items()}
        self.dtypes = {name: weights.dtypes[key] for name, key in names.items()}

    def get(self, key: str) -> Tensor:
        """Return a tensor."""
        return self._weights.get(self._names[key])

    def take(self, key: str) -> Tensor:
        """Return a tensor that the caller copies."""
        return self._weights.take(self._names[key])
