"""Training state in one file: weights, optimizer, EMA, progress, structure of the model.

A resumed run continues from it bit for bit. One file, so that a kill between two writes cannot mix two states. It holds
no random state: every random number is a function of the seed and the step (`utils/randomness.py`).
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from miniclip.checkpoints.formats.safetensors import read_tensors, write_tensors
from miniclip.checkpoints.names import unwrapped_name
from miniclip.errors import CheckpointError
from miniclip.inference.model import CLIPModel
from miniclip.runs.progress import Progress
from miniclip.runs.structure import Structure, structure_of
from miniclip.runtime import distributed
from miniclip.runtime.fsdp import shard_like
from miniclip.train.ema import EMA
from miniclip.utils.atomic import write_atomically
from miniclip.utils.files import parse_json
from miniclip.utils.formatting import one_line, short

FILE = "state.safetensors"
STATES = "states"  # folder of the states besides the newest
FORMAT = "miniclip state 3"


class State(NamedTuple):
    """Training state; tensors are whole, also if the model is sharded."""

    weights: dict[str, Tensor]
    optimizer: dict[str, Tensor]  # KEY.NAME, such as exp_avg.log_scale
    ema: dict[str, Tensor]  # empty without EMA
    progress: Progress
    structure: Structure

    def map(self, function: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> State:
        """Return the state with a function applied to each group of tensors."""
        weights, optimizer, ema = map(function, self[:3])
        return State(weights, optimizer, ema, self.progress, self.structure)


def gather_weights(model: nn.Module) -> dict[str, Tensor]:
    """Return the model's weights on rank 0, whole, and nothing on other ranks. All ranks must call it."""
    return _gather(model.state_dict().items())


def gather_state(model: CLIPModel, optimizer: torch.optim.Optimizer, progress: Progress, ema: EMA | None) -> State:
    """Return the current state on rank 0, and no tensors on other ranks. All ranks must call it."""
    moments = (
        (f"{key}.{name}", value)
        for name, parameter in model.named_parameters()
        for key, value in optimizer.state.get(parameter, {}).items()
    )
    structure = structure_of(model)
    averages = {} if ema is None else _gather(ema.values.items())
    return State(gather_weights(model), _gather(moments), averages, dataclasses.replace(progress), structure)


def _gather(tensors: Iterable[tuple[str, Tensor]]) -> dict[str, Tensor]:
    """Return whole tensors on rank 0, under names without wrappers; those that were sharded are moved to the CPU."""
    gathered = {}
    for name, value in tensors:
        whole = distributed.full_tensor(value)
        if distributed.is_main():
            gathered[unwrapped_name(name)] = whole if whole is value else whole.cpu()
    return gathered


def save_state(path: Path, state: State, keep: int = 1) -> None:
    """Write a state atomically, with keys `model.NAME`, `optimizer.KEY.NAME` and `ema.NAME`.

    Args:
        path: the file.
        state: the state, with all tensors.
        keep: number of states to keep: this one, and the latest before it in the folder `states/`.
    """
    tensors = {f"model.{name}": value for name, value in state.weights.items()}
    tensors |= {f"optimizer.{name}": value for name, value in state.optimizer.items()}
    tensors |= {f"ema.{name}": value for name, value in state.ema.items()}
    progress, structure = (json.dumps(dataclasses.asdict(part)) for part in (state.progress, state.structure))
    step = state.progress.step
    # The kept state first: a kill between the two writes leaves the earlier state current, and the step is done again.
    first = path if keep == 1 else path.parent / STATES / f"step-{step:08d}.safetensors"
    write_tensors(first, tensors, {"format": FORMAT, "progress": progress, "structure": structure})
    if keep > 1:
        _link(first, path)
    _delete_old(path.parent, step, keep)


def _delete_old(run_dir: Path, step: int, keep: int) -> None:
    """Delete the states in `states/` except the newest up to a step; with `keep` 1, delete all."""
    states = list_states(run_dir)
    earlier = [file for other, file in states.items() if other <= step]
    later = [file for other, file in states.items() if other > step]  # the run went back to an earlier step
    for file in [*later, *earlier[: max(0, len(earlier) - (keep if keep > 1 else 0))]]:
        file.unlink(missing_ok=True)
    folder = run_dir / STATES
    if keep == 1 and folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()


def list_states(run_dir: Path) -> dict[int, Path]:
    """Return the files in `states/` by step, in ascending order."""
    states = {}
    for path in (run_dir / STATES).glob("step-*.safetensors"):
        if match := re.fullmatch(r"step-([0-9]+)\.safetensors", path.name):
            states[int(match[1])] = path
    return dict(sorted(states.items()))


def _link(path: Path, name: Path) -> None:
    """Give a file a second name, which needs no disk space; copy it if the file system has no links."""

    def link(temporary: Path) -> None:
        try:
            os.link(path, temporary)
        except OSError:
            shutil.copyfile(path, temporary)

    write_atomically(name, link)


def find_state(run_dir: Path, step: int | None = None) -> Path:
    """Return the file of the newest state, or of the state of a step.

    Raises:
        FileNotFoundError: the state, or that of the step, does not exist.
    """
    if step is None:
        if not (run_dir / FILE).is_file():
            raise FileNotFoundError(
                f"{run_dir}: no {FILE}: the run was stopped before its first state; start it again, there or elsewhere"
            )
        return run_dir / FILE
    states = list_states(run_dir)
    if step not in states:
        steps = ", ".join(map(str, states)) or "none, since the setting `keep_checkpoints` is 1"
        raise FileNotFoundError(f"{run_dir / STATES}: no state of step {step}; available: {steps}")
    return states[step]


def require_finite(state: State, run_dir: Path) -> None:
    """Check that all weights are finite.

    Raises:
        FloatingPointError: a weight is not finite.
    """
    for name, value in state.weights.items():
        if not value.isfinite().all():
            raise FloatingPointError(
                f"the weights are not finite ({name}): nothing is written, and {run_dir} keeps the previous state"
            )


def read_state(path: Path) -> State:
    """Read a training state.

    Raises:
        FileNotFoundError: the file does not exist.
        CheckpointError: the file is damaged, or is not a training state.
    """
    try:
        tensors, metadata = read_tensors(path)
    except CheckpointError as error:
        states = list(list_states(path.parent)) if path.name == FILE else []
        if not states:
            raise
        *others, last = states
        rest = f", or one of {', '.join(map(str, others))}" if others else ""
        raise CheckpointError(f"{error}; go back with --step {last}{rest}") from None
    if metadata.get("format") != FORMAT:
        found = metadata.get("format")
        reason = "not the training state of a run"
        if str(found).startswith(FORMAT[:-1]):
            reason = "another version of miniclip wrote it: resume with that version, or load the run's weights"
        raise CheckpointError(f"{path}: found format {found!r}, expected {FORMAT!r}: {reason}")
    groups: dict[str, dict[str, Tensor]] = {"model": {}, "optimizer": {}, "ema": {}}
    try:
        for key, value in tensors.items():
            group, name = key.split(".", 1)
            groups[group][name] = value
        progress = Progress(**parse_json(metadata["progress"]))
        structure = Structure(**parse_json(metadata["structure"]))
        counts = [value for name, value in dataclasses.asdict(progress).items() if name not in ("best", "callbacks")]
        if any(type(count) is not int for count in counts):
            raise ValueError(f"found counts {short(counts)}, expected whole numbers")
        if not all(isinstance(names, list) for names in dataclasses.astuple(structure)):
            raise ValueError(f"found {short(structure)}, expected lists of names")
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: a damaged training state ({one_line(error)}): use a copy of it") from None
    return State(groups["model"], groups["optimizer"], groups["ema"], progress, structure)


def restore_optimizer(optimizer: torch.optim.Optimizer, model: nn.Module, saved: dict[str, Tensor]) -> None:
    """Restore an optimizer's state, parameter by parameter."""
    parameters = dict(model.named_parameters())
    for key, value in saved.items():
        kind, name = key.split(".", 1)
        parameter = parameters[name]
        is_moment = value.shape == parameter.shape  # else the step count
        optimizer.state[parameter][kind] = shard_like(value, parameter) if is_moment else value.to(parameter.device)


def restore_ema(ema: EMA, model: nn.Module, saved: dict[str, Tensor]) -> None:
    """Restore an EMA. If the state has none, the EMA starts at the weights."""
    for name, parameter in model.named_parameters():
        if name in saved:
            ema.values[name] = shard_like(saved[name], parameter).clone()
