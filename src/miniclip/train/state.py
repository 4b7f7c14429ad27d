"""All that a run needs to go on to the same bit, in one file: weights, optimizer, position, best figure.

One file, so that a kill between two writes cannot leave halves that do not belong together. There is no random state in
it: every draw is a function of the seed and the step (`randomness.py`).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from miniclip.checkpoints.tensors import read_tensors, write_tensors
from miniclip.errors import CheckpointError

FILE = "state.safetensors"
FORMAT = "miniclip state 1"


def save_state(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, position: dict[str, Any]) -> None:
    """Write the training state, atomically.

    Args:
        path: the file.
        model: its weights are written as `model.NAME`.
        optimizer: its state of each parameter is written as `optimizer.KEY.NAME`.
        position: anything that JSON can hold: steps and epochs done, the best figure.
    """
    tensors: dict[str, Tensor] = {f"model.{name}": value for name, value in model.state_dict().items()}
    for name, parameter in model.named_parameters():
        for key, value in optimizer.state.get(parameter, {}).items():
            tensors[f"optimizer.{key}.{name}"] = value
    write_tensors(path, tensors, {"format": FORMAT, "position": json.dumps(position)})


class State(NamedTuple):
    """What `save_state` wrote."""

    weights: dict[str, Tensor]
    optimizer: dict[str, Tensor]  # by KEY.NAME
    position: dict[str, Any]


def read_state(path: Path) -> State:
    """Read a training state.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: the file is damaged, or is something else.
    """
    tensors, metadata = read_tensors(path)
    if metadata.get("format") != FORMAT:
        raise CheckpointError(
            f"{path}: found format {metadata.get('format')!r}, expected {FORMAT!r}: not a run's state"
        )
    parts: dict[str, dict[str, Tensor]] = {"model": {}, "optimizer": {}}
    for key, value in tensors.items():
        part, name = key.split(".", 1)
        parts[part][name] = value
    return State(parts["model"], parts["optimizer"], json.loads(metadata["position"]))


def restore_optimizer(optimizer: torch.optim.Optimizer, model: nn.Module, saved: dict[str, Tensor]) -> None:
    """Give an optimizer the state that it had, parameter by parameter."""
    parameters = dict(model.named_parameters())
    for key, value in saved.items():
        kind, name = key.split(".", 1)
        optimizer.state[parameters[name]][kind] = value.to(parameters[name].device)
