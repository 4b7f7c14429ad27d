"""Runs the rows of `tables.py`: every key of the file is used once, every parameter of ours is filled, and backwards.

What does not fit is found on shapes alone, before a weight is read, and named: keys and shapes, theirs and ours.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from miniclip.checkpoints.formats.safetensors import ALIGNMENT, IN_PLACE
from miniclip.checkpoints.key_maps import Row
from miniclip.checkpoints.operations import SAME, Operation, Shape
from miniclip.config import CLIPConfig
from miniclip.errors import CheckpointError

SHOWN = 4  # problems that a message names; the others are counted


class Source(Protocol):
    """Weights in a file, read one at a time."""

    path: Path
    shapes: dict[str, Shape]

    def take(self, key: str) -> Tensor:
        """One tensor, without a copy where the file allows it."""

    def take_joined(self, keys: Sequence[str]) -> Tensor | None:
        """Several tensors of one type, one after the other, where the file allows that without a copy."""

    def copy_into(self, key: str, out: Tensor) -> None:
        """Read a tensor into memory that is there, of its type and number of elements."""

    def release(self, key: str) -> None:
        """Nobody looks at this tensor's memory again: a copy of it was made."""


class Step(NamedTuple):
    """A row for one block, and for weight or bias."""

    theirs: tuple[str, ...]
    ours: str | None
    operation: Operation


def expand(rows: Iterable[Row], config: CLIPConfig) -> Iterator[Step]:
    """The rows with numbers for `{i}`, and weight and bias for `{p}`."""
    for row in rows:
        theirs = (row.theirs,) if isinstance(row.theirs, str) else row.theirs
        ours = row.ours or ""
        layers = (config.text if ours.startswith("text.") else config.image).layers
        for i in range(layers) if "{i}" in theirs[0] else range(1):
            for p in ("weight", "bias") if "{p}" in theirs[0] else ("",):
                names = tuple(key.replace("{i}", str(i)).replace("{p}", p) for key in theirs)
                yield Step(names, ours.replace("{i}", str(i)).replace("{p}", p) or None, row.operation)


def convert(
    source: Source, rows: Iterable[Row], config: CLIPConfig, expected: Mapping[str, Shape], dtype: torch.dtype | None
) -> dict[str, Tensor]:
    """Read another layout's weights as ours.

    Args:
        source: the file.
        rows: the layout's table.
        config: the model's.
        expected: our parameters' names and shapes.
        dtype: what they become, one by one; None: as they are.

    Returns:
        A tensor for each name in `expected`, over the file's memory where nothing had to be changed.

    Raises:
        CheckpointError: keys are missing, unknown, or do not fit; it names them.
    """
    steps = [step for step in expand(rows, config) if step.ours is None or step.ours in expected]
    _check(source, steps, expected)
    found = {}
    for step in steps:
        if step.ours is not None:
            found[step.ours] = _read(source, step, expected[step.ours], dtype)
    return found


def invert(rows: Iterable[Row], config: CLIPConfig, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our weights under another layout's names.

    Raises:
        ValueError: the layout has no place for one of them.
    """
    left = dict(tensors)
    result: dict[str, Tensor] = {}
    for step in expand(rows, config):
        if step.ours in left:
            result |= zip(step.theirs, step.operation.backward(left.pop(step.ours)), strict=True)
    if left:
        raise ValueError(f"the layout has no place for {_some(sorted(left))}")
    return result


def _read(source: Source, step: Step, shape: Shape, dtype: torch.dtype | None) -> Tensor:
    taken = [source.take(key) for key in step.theirs]
    tensor = taken[0]
    if step.operation.joins and len({t.dtype for t in taken}) == 1:
        if len(taken) > 1 or _misplaced(tensor):
            tensor = _joined(source, step, shape, tensor.dtype)
    else:
        tensor = step.operation.forward(taken, shape)
        tensor = tensor.clone() if _misplaced(tensor) else tensor
    changed = tensor if dtype is None else tensor.to(dtype)
    if changed.data_ptr() != taken[0].data_ptr():
        for key in step.theirs:
            source.release(key)
    return changed


def _misplaced(tensor: Tensor) -> bool:
    """Whether a tensor has to be moved: kernels may sum in another order at an address that torch's own never has.

    Large ones stay, other projects' files being what they are: moving those would be the greater part of opening the
    file. A product by them is as fast, and differs by a rounding where it differs.
    """
    return tensor.data_ptr() % (tensor.itemsize if tensor.nbytes >= IN_PLACE else ALIGNMENT) != 0


def _joined(source: Source, step: Step, shape: Shape, dtype: torch.dtype) -> Tensor:
    """The tensors of a step one after the other, each read to its place where they cannot be mapped to it."""
    if len(step.theirs) > 1 and (mapped := source.take_joined(step.theirs)) is not None:
        return mapped.view(shape)
    tensor = torch.empty(shape, dtype=dtype, device="cpu")
    parts = torch.split(tensor.view(-1), [math.prod(source.shapes[key]) for key in step.theirs])
    for key, part in zip(step.theirs, parts, strict=True):
        source.copy_into(key, part)
    return tensor


def _check(source: Source, steps: list[Step], expected: Mapping[str, Shape]) -> None:
    """Raise `CheckpointError` unless the file's keys and our parameters are in each other's places, once each."""
    problems, used, filled = [], set[str](), set[str]()
    for step in steps:
        missing = [key for key in step.theirs if key not in source.shapes]
        used.update(step.theirs)
        if step.ours is None:
            continue
        filled.add(step.ours)
        if missing:
            problems += [f"{key} is missing" for key in missing]
        elif problem := _misfit(source, step, expected[step.ours]):
            problems.append(problem)
    problems += [f"{key} is unknown" for key in sorted(source.shapes.keys() - used)]
    problems += [f"{key} is missing" for key in sorted(expected.keys() - filled)]
    if problems:
        raise CheckpointError(f"{source.path}: the weights do not fit the configuration: {_some(problems)}")


def _misfit(source: Source, step: Step, expected: Shape) -> str | None:
    """What is wrong with the shapes; None if nothing."""
    shapes = [source.shapes[key] for key in step.theirs]
    if step.operation.shape(shapes, expected) == expected:
        return None
    theirs = ", ".join(f"{key} has the shape {shape}" for key, shape in zip(step.theirs, shapes, strict=True))
    return f"{theirs}, expected {expected}" + ("" if step.operation is SAME else f" as {step.ours}")


def _some(problems: list[str]) -> str:
    """The first few problems, and how many more there are."""
    more = f"; and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
    return "; ".join(problems[:SHOWN]) + more
