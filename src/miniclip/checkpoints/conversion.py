"""Conversion of weights between layouts by the rows of `key_maps.py`.

Every key of the file is used once and every parameter of the model is filled. Errors are found on shapes, before any
weight is read, and name the keys and the shapes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from miniclip.checkpoints.key_maps import Row
from miniclip.checkpoints.operations import SAME, Operation, Shape
from miniclip.checkpoints.weights import Weights
from miniclip.config import CLIPConfig
from miniclip.errors import CheckpointError
from miniclip.utils.formatting import one_line

MAX_PROBLEMS, MAX_MESSAGE = 4, 500  # named in a message, the others are counted; characters of each
# Others need scales or zero points from elsewhere, or are not numbers: converted as they are, they would be wrong.
DTYPES = {
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16),
    *(torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz),
}


class Step(NamedTuple):
    """A row for one block, and for weight or bias."""

    keys: tuple[str, ...]
    parameter: str | None
    operation: Operation


def expand(rows: Iterable[Row], config: CLIPConfig) -> Iterator[Step]:
    """Yield the rows with numbers for `{i}`, and weight and bias for `{p}`."""
    for row in rows:
        templates = (row.keys,) if isinstance(row.keys, str) else row.keys
        parameter = row.parameter or ""
        tower = config.text if parameter.startswith("text.") else config.image
        for i in range(tower.layers) if "{i}" in templates[0] else range(1):
            for p in ("weight", "bias") if "{p}" in templates[0] else ("",):
                keys = tuple(key.replace("{i}", str(i)).replace("{p}", p) for key in templates)
                yield Step(keys, parameter.replace("{i}", str(i)).replace("{p}", p) or None, row.operation)


def convert(
    weights: Weights, rows: Iterable[Row], config: CLIPConfig, expected: Mapping[str, Shape], dtype: torch.dtype | None
) -> dict[str, Tensor]:
    """Convert the weights of a file to the parameters of a model.

    Args:
        weights: of the file.
        rows: the key map of the file's layout.
        config: of the model.
        expected: the model's parameter names and shapes.
        dtype: of the result, converted one tensor at a time; None: as in the file.

    Returns:
        A tensor for each name in `expected`, over the file's memory if nothing had to be changed.

    Raises:
        CheckpointError: keys are missing, unknown, or of another shape; it names them.
    """
    steps = [step for step in expand(rows, config) if step.parameter is None or step.parameter in expected]
    _check(weights, steps, expected)
    # the largest first: the file's copy of a tensor is then in memory beside few others
    steps.sort(key=lambda step: math.prod(expected.get(step.parameter or "", ())), reverse=True)
    return {
        step.parameter: _read(weights, step, expected[step.parameter], dtype)
        for step in steps
        if step.parameter is not None
    }


def invert(rows: Iterable[Row], config: CLIPConfig, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Convert a model's parameters to the tensors of another layout.

    Raises:
        ValueError: the layout has no place for a parameter.
    """
    remaining = dict(tensors)
    result: dict[str, Tensor] = {}
    for step in expand(rows, config):
        if step.parameter in remaining:
            result |= zip(step.keys, step.operation.backward(remaining.pop(step.parameter)), strict=True)
    if remaining:
        raise ValueError(f"the layout has no place for {_first_problems(sorted(remaining))}")
    return result


def _read(weights: Weights, step: Step, shape: Shape, dtype: torch.dtype | None) -> Tensor:
    copies = step.operation.copies or (dtype is not None and dtype != weights.dtypes[step.keys[0]])
    tensors = [weights.take(key) if copies else weights.get(key) for key in step.keys]
    tensor = step.operation.forward(tensors, shape)
    if tensor.data_ptr() % tensor.itemsize:  # in a file with a header of odd length; kernels expect aligned elements
        tensor = tensor.clone()
    return tensor if dtype is None else tensor.to(dtype)


def _check(weights: Weights, steps: list[Step], expected: Mapping[str, Shape]) -> None:
    """Raise `CheckpointError` unless each key of the file and each parameter of the model is used exactly once."""
    problems, used, filled = [], set[str](), set[str]()
    for step in steps:
        missing = [key for key in step.keys if key not in weights.shapes]
        used.update(step.keys)
        if step.parameter is None:
            continue
        filled.add(step.parameter)
        if missing:
            problems += [f"{key} is missing" for key in missing]
        elif problem := _shape_problem(weights, step, expected[step.parameter]):
            problems.append(problem)
        else:
            dtypes = {key: weights.dtypes[key] for key in step.keys}
            problems += [f"{key} is {dtype}, expected floats" for key, dtype in dtypes.items() if dtype not in DTYPES]
    problems += [f"{key} is unknown" for key in sorted(weights.shapes.keys() - used)]
    problems += [f"{key} is missing" for key in sorted(expected.keys() - filled)]
    if problems:
        raise CheckpointError(f"{weights.path}: the weights do not fit the configuration: {_first_problems(problems)}")


def _shape_problem(weights: Weights, step: Step, expected: Shape) -> str | None:
    """Describe shapes that do not fit; None if they do."""
    shapes = [weights.shapes[key] for key in step.keys]
    if step.operation.shape(shapes, expected) == expected:
        return None
    sizes = ", ".join(f"{key} has the shape {shape}" for key, shape in zip(step.keys, shapes, strict=True))
    return f"{sizes}, expected {expected}" + ("" if step.operation is SAME else f" as {step.parameter}")


def _first_problems(problems: list[str]) -> str:
    """Return the first few problems, and the number of the others."""
    more = f"; and {len(problems) - MAX_PROBLEMS} more" if len(problems) > MAX_PROBLEMS else ""
    return "; ".join(one_line(problem, MAX_MESSAGE) for problem in problems[:MAX_PROBLEMS]) + more
