"""Fast estimates of scores, each with a bound of its error: in half precision, and with integers of 8 bits.

Letters: R rows, E embedding, Q queries, n rows of a block.
"""

from __future__ import annotations

import math
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import linear

from miniclip.fast.private import int8_matmul
from miniclip.search.nearest.workers import in_threads

Array = NDArray[Any]

MAX_NORM = 1.01  # greatest length of a row; a unit vector rounded to float16 is longer by less than 0.001
LEVELS = 127  # greatest magnitude of a code
SINGLE = 3  # queries up to which separate products are faster than one product of matrices
CODED = 4_096  # rows that a thread codes at once: 8 MiB of float32 at 512


class Estimates(Protocol):
    """First pass of a search over vectors (R, E)."""

    def prepare(self, queries: NDArray[np.float64]) -> tuple[Any, list[float]]:
        """Return unit queries (Q, E) in the form that `scores` takes, and for each the greatest error of a score."""
        ...

    def scores(self, prepared: Any, selection: slice | Array) -> NDArray[np.float32]:
        """Return the estimated scores (Q, n) of a range of rows, or of rows by number."""
        ...


class HalfPrecision:
    """Estimates by a product in half precision, with sums in float32, over the vectors themselves.

    Args:
        vectors: (R, E) float16, of length at most `MAX_NORM`.
    """

    def __init__(self, vectors: Array) -> None:
        self.vectors = vectors

    def prepare(self, queries: NDArray[np.float64]) -> tuple[torch.Tensor, list[float]]:
        """Return the queries in float16, and the bounds.

        A bound adds the rounding of the query (by Cauchy-Schwarz), of E products and their sum in float32, and of the
        score in float16.
        """
        half = queries.astype(np.float16)
        rounding = np.linalg.norm(queries - half.astype(np.float64), axis=1)
        return torch.from_numpy(half), (MAX_NORM * (rounding + queries.shape[1] * 2.0**-23 + 2.0**-10)).tolist()

    def scores(self, prepared: torch.Tensor, selection: slice | Array) -> NDArray[np.float32]:
        """Return the estimated scores (Q, n) of a range of rows, or of rows by number."""
        return linear(prepared, as_tensor(self.vectors[selection])).float().numpy()


class Codes:
    """Estimates with integers of 8 bits: a copy of the vectors in half the memory, about three times as fast.

    A vector is `centre + steps * code + residual`. The steps differ by dimension, because embeddings of CLIP have a few
    dimensions of large values. The bound of the error holds the greatest length of all residuals.

    Args:
        vectors: (R, E) float16, of length at most `MAX_NORM`; at least one row.

    Attributes:
        codes: (R, E) int8.
        residual: greatest length of a residual.
        longest: greatest length of a code.

    Raises:
        ValueError: a value is not finite.
    """

    def __init__(self, vectors: Array) -> None:
        ranges = list(in_threads(lambda start: _range(vectors[start : start + CODED]), range(0, len(vectors), CODED)))
        low = torch.stack([low for low, _ in ranges]).amin(0)
        high = torch.stack([high for _, high in ranges]).amax(0)
        if not torch.isfinite(high - low).all():
            raise ValueError("vectors: a row holds values that are not finite; build the index again")
        self.centre = (high + low) / 2
        self.steps = ((high - low) / (2 * LEVELS)).clamp_min(1e-12)
        self.codes: Array = np.empty((0, vectors.shape[1]), np.int8)
        self.residual = self.longest = 0.0
        self.extend(vectors)

    def __len__(self) -> int:
        return len(self.codes)

    def extend(self, vectors: Array) -> None:
        """Code the rows that came after those of the last call; values out of range only lengthen the residual.

        Args:
            vectors: all rows (R, E), the earlier ones unchanged.
        """
        before = len(self.codes)
        codes = np.empty(vectors.shape, np.int8)
        codes[:before] = self.codes

        def code(start: int) -> tuple[float, float]:
            block = as_tensor(vectors[start : start + CODED]).float().sub_(self.centre)
            levels = block.div(self.steps).round_().clamp_(-LEVELS, LEVELS)
            torch.from_numpy(codes[start : start + CODED]).copy_(levels)
            length = float(levels.norm(dim=1).max())
            return float(block.sub_(levels.mul_(self.steps)).norm(dim=1).max()), length

        lengths = [(self.residual, self.longest), *in_threads(code, range(before, len(vectors), CODED))]
        residual, longest = np.max(lengths, axis=0).tolist()
        if not math.isfinite(residual):
            raise ValueError("vectors: a row holds values that are not finite; build the index again")
        self.residual, self.longest = residual + 1e-5, longest * 1.0001  # the rounding of these lines
        self.codes = codes

    def prepare(self, queries: NDArray[np.float64]) -> tuple[Any, list[float]]:
        """Return the queries as integers (E, Q), their factors and constants, and the bounds.

        A bound adds the product of the query with the longest residual, and the rounding of the query, by
        Cauchy-Schwarz.
        """
        folded = queries * self.steps.double().numpy()
        factors = np.maximum(np.abs(folded).max(axis=1, keepdims=True), 1e-30) / LEVELS
        levels = np.rint(folded / factors)
        rounding = np.linalg.norm(folded - factors * levels, axis=1)
        lengths = np.linalg.norm(queries, axis=1)
        errors = self.residual * lengths + self.longest * rounding + 1e-5  # 1e-5: the rounding of `scores`
        columns = [torch.from_numpy(row.astype(np.int8))[:, None] for row in levels]
        constants = queries @ self.centre.double().numpy()
        return (columns, factors.astype(np.float32), constants.astype(np.float32)[:, None]), errors.tolist()

    def scores(self, prepared: Any, selection: slice | Array) -> NDArray[np.float32]:
        """Return the estimated scores (Q, n) of a range of rows, or of rows by number."""
        columns, factors, constants = prepared
        codes = torch.from_numpy(self.codes[selection])
        if len(columns) > SINGLE:
            columns = [torch.cat(columns, 1)]
        products = torch.cat([int8_matmul(codes, column) for column in columns], 1).float().numpy().T
        result: NDArray[np.float32] = products * factors + constants
        return result


def _range(block: Array) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the smallest and the greatest value of each column, NaN if one is."""
    values = as_tensor(block).float()
    return values.amin(0), values.amax(0)


def as_tensor(array: Array) -> torch.Tensor:
    """Return a tensor over the memory of an array, without torch's warning about memory that is read-only."""
    return torch.from_numpy(array if array.flags.writeable else np.asarray(_Writeable(array)))


class _Writeable:
    """An array whose memory torch takes as writeable; it is only read."""

    def __init__(self, array: Array) -> None:
        self.array = array  # keeps the memory alive
        interface = dict(array.__array_interface__)
        self.__array_interface__ = interface | {"data": (interface["data"][0], False)}
