"""Operations between a tensor of another project's checkpoint and a parameter of miniclip's, in both directions.

`shape` checks a file before any weight is read, `forward` converts the tensors of a row, and `backward` converts the
parameter. `shape` and `forward` take the shape of the parameter as their target.
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
    """A conversion between two layouts and its inverse.

    Attributes:
        shape: the shape that `forward` would return, or () for shapes that it cannot take.
        forward: the file's tensors to the parameter.
        backward: the parameter to the file's tensors.
        copies: whether `forward` returns new memory.
    """

    shape: Callable[[Sequence[Shape], Shape], Shape]
    forward: Callable[[Sequence[Tensor], Shape], Tensor]
    backward: Callable[[Tensor], list[Tensor]]
    copies: bool = False


SAME = Operation(lambda shapes, target: shapes[0], lambda x, target: x[0], lambda x: [x])
TRANSPOSED = Operation(
    lambda shapes, target: shapes[0][::-1],
    lambda x, target: x[0].T.contiguous(),
    lambda x: [x.T.contiguous()],
    copies=True,
)


def stacked(*shares: int) -> Operation:
    """Concatenate several tensors along their rows, such as queries, keys and values.

    Args:
        shares: the relative number of rows of each tensor.
    """

    def shape(shapes: Sequence[Shape], target: Shape) -> Shape:
        rows = shapes[0][0] // shares[0] if shapes[0] else 0
        fits = all(s[:1] == (share * rows,) and s[1:] == shapes[0][1:] for s, share in zip(shapes, shares, strict=True))
        return (rows * sum(shares), *shapes[0][1:]) if fits else ()

    def backward(x: Tensor) -> list[Tensor]:
        part = len(x) // sum(shares)
        return [piece.contiguous() for piece in torch.split(x, [share * part for share in shares])]

    return Operation(shape, lambda x, target: torch.cat(list(x)), backward, copies=True)


def scalar(dims: int) -> Operation:
    """Reshape a number, which the other layout writes with `dims` dimensions of size one, to a scalar."""

    def shape(shapes: Sequence[Shape], target: Shape) -> Shape:
        return () if math.prod(shapes[0]) == 1 else shapes[0]

    return Operation(shape, lambda x, target: x[0].reshape(()), lambda x: [x.reshape([1] * dims)])


def leading(dims: int) -> Operation:
    """Drop `dims` leading dimensions of size one."""
    return Operation(
        lambda shapes, target: _without(shapes[0], dims),
        lambda x, target: x[0].reshape(target),
        lambda x: [x.reshape([1] * dims + list(x.shape))],
    )


def positions(dims: int = 0) -> Operation:
    """Resize position embeddings of patches to the parameter's grid; `dims` as in `leading`."""

    def shape(shapes: Sequence[Shape], target: Shape) -> Shape:
        source = _without(shapes[0], dims)
        return target if _resizable(source, target) else source

    def forward(x: Sequence[Tensor], target: Shape) -> Tensor:
        return resized(x[0].reshape(_without(tuple(x[0].shape), dims)), target)

    return Operation(shape, forward, leading(dims).backward)


def resized(x: Tensor, target: Shape) -> Tensor:
    """Resize position embeddings (N, D) to another number of patches, with a warning; unchanged if they fit.

    The grid is interpolated (bicubic, antialiased) as open_clip's `resize_pos_embed` does. The row of a class token,
    which comes first, is kept.
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
    return torch.cat([x[:tokens], interpolated(x[tokens:], old, new)])


def interpolated(x: Tensor, old: int, new: int) -> Tensor:
    """Interpolate the position embeddings (old * old, D) of a grid to another: (new * new, D)."""
    grid = x.float().T.reshape(1, -1, old, old)
    grid = F.interpolate(grid, size=(new, new), mode="bicubic", antialias=True, align_corners=False)
    return grid[0].flatten(1).T.to(x.dtype)


def _resizable(source: Shape, target: Shape) -> bool:
    """Check that both are square grids of one width, both with a class token or both without."""
    if len(source) != 2 or len(target) != 2 or source[1] != target[1]:
        return False
    tokens = _class_tokens(source[0])
    return all(rows > tokens and math.isqrt(rows - tokens) ** 2 == rows - tokens for rows in (source[0], target[0]))


def _class_tokens(rows: int) -> int:
    """Return 0 if the rows are a square grid of patches, else 1: the first row is a class token."""
    return 0 if math.isqrt(rows) ** 2 == rows else 1


def _without(shape: Shape, dims: int) -> Shape:
    """Return a shape without `dims` leading dimensions, if all of them have the size one."""
    return shape[dims:] if len(shape) >= dims and set(shape[:dims]) <= {1} else shape
