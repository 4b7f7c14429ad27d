"""What happens to a tensor between another project's checkpoint and ours, and back: the operations of `tables.py`.

Each is three functions: on shapes, which is how a file is checked before any weight is read; forward, on the tensors
that a row names; and backward, on ours. Forward and `shape` are told the shape that our parameter has.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

Shape = tuple[int, ...]


class Operation(NamedTuple):
    """A step between two layouts and its inverse; `shape` gives what forward would, or () for shapes it cannot take."""

    shape: Callable[[Sequence[Shape], Shape], Shape]
    forward: Callable[[Sequence[Tensor], Shape], Tensor]
    backward: Callable[[Tensor], list[Tensor]]
    joins: bool = False  # forward only puts the tensors' elements one after the other


SAME = Operation(lambda shapes, target: shapes[0], lambda x, target: x[0], lambda x: [x], joins=True)
TRANSPOSED = Operation(
    lambda shapes, target: shapes[0][::-1],
    lambda x, target: x[0].T.contiguous(),
    lambda x: [x.T.contiguous()],
)


def stacked(*shares: int) -> Operation:
    """Several tensors in one, their rows one after the other; the shares say how many rows each has of the whole."""

    def shape(shapes: Sequence[Shape], target: Shape) -> Shape:
        rows = shapes[0][0] // shares[0] if shapes[0] else 0
        fitting = all(
            s[:1] == (share * rows,) and s[1:] == shapes[0][1:] for s, share in zip(shapes, shares, strict=True)
        )
        return (rows * sum(shares), *shapes[0][1:]) if fitting else ()

    def backward(x: Tensor) -> list[Tensor]:
        part = len(x) // sum(shares)
        return [piece.contiguous() for piece in torch.split(x, [share * part for share in shares])]

    return Operation(shape, lambda x, target: torch.cat(list(x)), backward, joins=True)


def scalar(dims: int) -> Operation:
    """A number that the other layout keeps with so many dimensions of size one; any number of them is read."""

    def shape(shapes: Sequence[Shape], target: Shape) -> Shape:
        return () if math.prod(shapes[0]) == 1 else shapes[0]

    return Operation(shape, lambda x, target: x[0].reshape(()), lambda x: [x.reshape([1] * dims)])


def leading(dims: int) -> Operation:
    """The other layout has so many dimensions of size one in front."""
    return Operation(
        lambda shapes, target: _without(shapes[0], dims),
        lambda x, target: x[0].reshape(target),
        lambda x: [x.reshape([1] * dims + list(x.shape))],
    )


def positions(dims: int = 0) -> Operation:
    """Position embeddings of patches, resized to our grid where theirs is another; `dims` as in `leading`."""

    def shape(shapes: Sequence[Shape], target: Shape) -> Shape:
        found = _without(shapes[0], dims)
        return target if _resizable(found, target) else found

    def forward(x: Sequence[Tensor], target: Shape) -> Tensor:
        return resized(x[0].reshape(_without(tuple(x[0].shape), dims)), target)

    return Operation(shape, forward, leading(dims).backward)


def resized(x: Tensor, target: Shape) -> Tensor:
    """Position embeddings (N, D) for another number of patches, with a warning that says so; as they are if they fit.

    The grid is interpolated (bicubic, antialiased) as open_clip's `resize_pos_embed` does; a class token's row, the
    first where the rest is a square, stays.
    """
    if tuple(x.shape) == target:
        return x
    tokens = _class_tokens(len(x))
    old, new = math.isqrt(len(x) - tokens), math.isqrt(target[0] - tokens)
    warnings.warn(
        f"the position embeddings of {old} x {old} patches were resized to {new} x {new}: fine-tune, or expect "
        "somewhat lower accuracy",
        UserWarning,
        stacklevel=2,
    )
    grid = x[tokens:].float().T.reshape(1, -1, old, old)
    grid = F.interpolate(grid, size=(new, new), mode="bicubic", antialias=True, align_corners=False)
    return torch.cat([x[:tokens], grid[0].flatten(1).T.to(x.dtype)])


def _resizable(found: Shape, target: Shape) -> bool:
    """Whether both are squares of patches of one width, with a class token or both without."""
    if len(found) != 2 or len(target) != 2 or found[1] != target[1]:
        return False
    tokens = _class_tokens(found[0])
    return all(rows > tokens and math.isqrt(rows - tokens) ** 2 == rows - tokens for rows in (found[0], target[0]))


def _class_tokens(rows: int) -> int:
    """Rows of a class token, none or one, among position embeddings whose rest is a square."""
    return 0 if math.isqrt(rows) ** 2 == rows else 1


def _without(shape: Shape, dims: int) -> Shape:
    """A shape without so many dimensions in front, if all of them are of size one."""
    return shape[dims:] if len(shape) >= dims and set(shape[:dims]) <= {1} else shape
