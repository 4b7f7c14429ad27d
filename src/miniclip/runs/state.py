"""All that a run needs to go on to the same bit, in one file: weights, optimizer, position, best figure.

One file, so that a kill between two writes cannot leave halves that do not belong together. There is no random state in
it: every draw is a function of the seed and the step (`randomness.py`).
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from miniclip.checkpoints.formats.safetensors import read_tensors, write_tensors
from miniclip.errors import CheckpointError
from miniclip.runs.progress import Progress
from miniclip.runtime import distributed
from miniclip.runtime.fsdp import part_of
from miniclip.train.ema import EMA
from miniclip.utils.atomic import write_atomically

FILE = "state.safetensors"
KEPT = "states"  # the folder of those that are kept besides the newest
FORMAT = "miniclip state 2"


class State(NamedTuple):
    """What a run goes on from."""

    weights: dict[str, Tensor]
    optimizer: dict[str, Tensor]  # by KEY.NAME
    progress: Progress
    average: dict[str, Tensor]  # the moving average of the weights, where there is one

    def mapped(self, function: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> State:
        """The same with other tensors."""
        return State(function(self.weights), function(self.optimizer), self.progress, function(self.average))


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    """A model's weights, those that are sharded over ranks made whole: every rank must call it, rank 0 gets them."""
    return {name: whole for name, value in model.state_dict().items() for whole in _on_main(value)}


def state_of(model: nn.Module, optimizer: torch.optim.Optimizer, progress: Progress, average: EMA | None) -> State:
    """The state as it is now; every rank must call it, rank 0 gets it."""
    moments = {
        f"{key}.{name}": whole
        for name, parameter in model.named_parameters()
        for key, value in optimizer.state.get(parameter, {}).items()
        for whole in _on_main(value)
    }
    averaged = {} if average is None else {n: whole for n, v in average.values.items() for whole in _on_main(v)}
    return State(weights_of(model), moments, dataclasses.replace(progress), averaged)


def _on_main(value: Tensor) -> list[Tensor]:
    """The whole tensor on rank 0, in the processor's memory if it was sharded; nothing on the others."""
    tensor = distributed.full_tensor(value)
    return [tensor if tensor is value else tensor.cpu()] if distributed.is_main() else []


def save_state(path: Path, state: State, keep: int = 1) -> None:
    """Write a state, atomically: the weights as `model.NAME`, the optimizer's as `optimizer.KEY.NAME`.

    Args:
        path: the file.
        state: all of it, on this rank.
        keep: how many states stay: this one, and the latest before it, in the folder `states/` beside it.
    """
    tensors = {f"model.{name}": value for name, value in state.weights.items()}
    tensors |= {f"optimizer.{name}": value for name, value in state.optimizer.items()}
    tensors |= {f"average.{name}": value for name, value in state.average.items()}
    write_tensors(path, tensors, {"format": FORMAT, "progress": json.dumps(dataclasses.asdict(state.progress))})
    keep_only(path, state.progress.step, keep)


def keep_only(path: Path, step: int, keep: int) -> None:
    """Keep the state at `path`, of that step, under its own name too, and of those in `states/` the last `keep_checkpoints`."""
    folder = path.parent / KEPT
    if keep > 1:
        folder.mkdir(exist_ok=True)
        _give_name(path, folder / f"step-{step:08d}.safetensors")
    kept = kept_states(path.parent)
    before = [file for at, file in kept.items() if at <= step]
    later = [file for at, file in kept.items() if at > step]  # of a run that went back
    for file in [*later, *before[: max(0, len(before) - (keep if keep > 1 else 0))]]:
        file.unlink(missing_ok=True)
    if keep == 1 and folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()


def kept_states(run_dir: Path) -> dict[int, Path]:
    """The states in `states/`, by their steps, earliest first."""
    found = {}
    for path in (run_dir / KEPT).glob("step-*.safetensors"):
        if match := re.fullmatch(r"step-([0-9]+)\.safetensors", path.name):
            found[int(match[1])] = path
    return dict(sorted(found.items()))


def _give_name(path: Path, name: Path) -> None:
    """Let the file be found under a second name, which costs no space; where the disk cannot, copy it."""

    def link(temporary: Path) -> None:
        try:
            os.link(path, temporary)
        except OSError:
            shutil.copyfile(path, temporary)

    write_atomically(name, link)


def find_state(run_dir: Path, step: int | None = None) -> Path:
    """The state to go on from: the newest, or the one of a step.

    Raises:
        FileNotFoundError: there is none, or none of that step; the message names those that there are.
    """
    if step is None:
        if not (run_dir / FILE).is_file():
            raise FileNotFoundError(
                f"{run_dir}: no {FILE}: the run was stopped before its first state; start it anew, there or elsewhere"
            )
        return run_dir / FILE
    kept = kept_states(run_dir)
    if step not in kept:
        there = ", ".join(map(str, kept)) or "none: the setting `keep_checkpoints` is 1"
        raise FileNotFoundError(f"{run_dir / KEPT}: no state of step {step}; there are those of {there}")
    return kept[step]


def require_finite(state: State, run_dir: Path) -> None:
    """Check that a state is one to go on from.

    Raises:
        FloatingPointError: a weight is not finite.
    """
    for name, value in state.weights.items():
        if not value.isfinite().all():
            raise FloatingPointError(
                f"the weights are not finite ({name}): nothing is written, and {run_dir} keeps the state of before"
            )


def read_state(path: Path) -> State:
    """Read a training state.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: the file is damaged, or is something else.
    """
    try:
        tensors, metadata = read_tensors(path)
    except CheckpointError as error:
        kept = list(kept_states(path.parent)) if path.name == FILE else []
        if not kept:
            raise
        *others, last = kept
        rest = f", or one of {', '.join(map(str, others))}" if others else ""
        raise CheckpointError(f"{error}; go back with --step {last}{rest}") from None
    if metadata.get("format") != FORMAT:
        raise CheckpointError(
            f"{path}: found format {metadata.get('format')!r}, expected {FORMAT!r}: not a run's state"
        )
    parts: dict[str, dict[str, Tensor]] = {"model": {}, "optimizer": {}, "average": {}}
    for key, value in tensors.items():
        part, name = key.split(".", 1)
        parts[part][name] = value
    return State(parts["model"], parts["optimizer"], Progress(**json.loads(metadata["progress"])), parts["average"])


def restore_optimizer(optimizer: torch.optim.Optimizer, model: nn.Module, saved: dict[str, Tensor]) -> None:
    """Give an optimizer the state that it had, parameter by parameter."""
    parameters = dict(model.named_parameters())
    for key, value in saved.items():
        kind, name = key.split(".", 1)
        parameter = parameters[name]
        single = value.shape != parameter.shape  # the number of steps
        optimizer.state[parameter][kind] = value.to(parameter.device) if single else part_of(value, parameter)


def restore_average(average: EMA, model: nn.Module, saved: dict[str, Tensor]) -> None:
    """Give a moving average the values that it had; where it is new to the run, it starts from the weights."""
    for name, parameter in model.named_parameters():
        if name in saved:
            average.values[name] = part_of(saved[name], parameter).clone()
