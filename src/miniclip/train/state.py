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

from miniclip import distributed
from miniclip.checkpoints.tensors import read_tensors, write_tensors
from miniclip.errors import CheckpointError
from miniclip.train.sharded import part_of

FILE = "state.safetensors"
FORMAT = "miniclip state 1"


class State(NamedTuple):
    """What a run goes on from."""

    weights: dict[str, Tensor]
    optimizer: dict[str, Tensor]  # by KEY.NAME
    position: dict[str, Any]  # anything that JSON can hold: steps and epochs done, the best figure


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    """A model's weights, those that are sharded over ranks made whole: every rank must call it, rank 0 gets them."""
    return {name: whole for name, value in model.state_dict().items() for whole in _on_main(value)}


def state_of(model: nn.Module, optimizer: torch.optim.Optimizer, position: dict[str, Any]) -> State:
    """The state as it is now; every rank must call it, rank 0 gets it."""
    moments = {
        f"{key}.{name}": whole
        for name, parameter in model.named_parameters()
        for key, value in optimizer.state.get(parameter, {}).items()
        for whole in _on_main(value)
    }
    return State(weights_of(model), moments, position)


def _on_main(value: Tensor) -> list[Tensor]:
    """The whole tensor on rank 0, in the processor's memory if it was sharded; nothing on the others."""
    tensor = distributed.whole(value)
    return [tensor if tensor is value else tensor.cpu()] if distributed.is_main() else []


def save_state(path: Path, state: State) -> None:
    """Write a state, atomically: the weights as `model.NAME`, the optimizer's as `optimizer.KEY.NAME`."""
    tensors = {f"model.{name}": value for name, value in state.weights.items()}
    tensors |= {f"optimizer.{name}": value for name, value in state.optimizer.items()}
    write_tensors(path, tensors, {"format": FORMAT, "position": json.dumps(state.position)})


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
        parameter = parameters[name]
        single = value.shape != parameter.shape  # the number of steps
        optimizer.state[parameter][kind] = value.to(parameter.device) if single else part_of(value, parameter)
