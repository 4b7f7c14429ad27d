"""Exact nearest neighbours by cosine, in two passes over float16 rows. Letters: R rows, E embedding, Q queries.

The first pass estimates all scores with a known bound of the error (`estimates.py`). The second pass computes only the
scores that can be among the best, in float64. The result equals that of a float64 product over all rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from miniclip.search.nearest.estimates import MAX_NORM, Estimates, HalfPrecision
from miniclip.search.nearest.workers import in_threads
from miniclip.utils.checks import whole_number

Array = NDArray[Any]
Result = tuple[NDArray[np.float64], NDArray[np.int64]]  # scores, the best first, and the numbers of their rows

BLOCK = 32_768  # rows of an estimated product: 32 MiB of float16 vectors of 512
RESCORED = 4_096  # rows of a product in float64: 16 MiB at 512
REFINED = 256  # candidates up to which a further estimate does not pay
DENSE = 0.25  # part of a block from which on the product over the whole block is faster than a copy of the chosen rows


def top_k(
    vectors: Array,
    query: Any,
    k: int | None = 10,
    rows: Array | None = None,
    threshold: float | None = None,
    estimates: Estimates | None = None,
) -> Result:
    """Return the best rows of a query. The parameters and errors are those of `top_k_each`, with one query (E,)."""
    query = np.asarray(query)
    if query.ndim != 1:
        raise ValueError(f"query: found shape {query.shape}; expected one vector ({vectors.shape[1]},)")
    return top_k_each(vectors, query[None], k, rows, threshold, estimates)[0]


def top_k_each(
    vectors: Array,
    queries: Any,
    k: int | None = 10,
    rows: Array | None = None,
    threshold: float | None = None,
    estimates: Estimates | None = None,
) -> list[Result]:
    """Return the best rows of each query; all queries share one reading of the vectors.

    Args:
        vectors: (R, E) float16, often a memory map; rows of length 1.
        queries: (Q, E), converted to float32; a score is the product with a row, so a cosine if the query has length 1.
        k: greatest number of rows of a query; None: all.
        rows: numbers of the rows to search, in any order; None: all.
        threshold: the smallest score of a result; None: none.
        estimates: first pass over the same vectors; None: in half precision.

    Returns:
        For each query its scores (n,) float64, in descending order, and the rows (n,) int64. The lower
        number is first among equal scores. A score is a sum of exact products in float64: its error is below 1e-12.

    Raises:
        ValueError: a shape or type does not fit, a query is zero or not finite, a row is outside, k is below 1, or a
            row is not a unit vector.
    """
    queries = _checked_queries(vectors, queries)
    k = None if k is None else whole_number("k", k, 1)
    chosen = None if rows is None else _checked_rows(rows, len(vectors))
    first_pass = HalfPrecision(vectors) if estimates is None else estimates
    lengths = np.linalg.norm(queries, axis=1)
    prepared, errors = first_pass.prepare(queries / lengths[:, None])
    candidates = [
        Candidates(k, None if threshold is None else threshold / length, error)
        for length, error in zip(lengths.tolist(), errors, strict=True)
    ]

    def estimated(block: tuple[NDArray[np.int64], slice | Array]) -> NDArray[np.float32]:
        numbers, selection = block
        scores = first_pass.scores(prepared, selection)
        return scores[:, numbers - selection.start] if isinstance(selection, slice) else scores

    blocks = list(_blocks(len(vectors), chosen))
    for (numbers, _), estimates_of_block in zip(blocks, in_threads(estimated, blocks), strict=True):
        for own, scores in zip(candidates, estimates_of_block, strict=True):
            own.add(numbers, scores)
    if estimates is not None:
        units = queries / lengths[:, None]
        candidates = [_refined(vectors, query, own) for query, own in zip(units, candidates, strict=True)]
    return [ranked(vectors, query, own.rows(), k, threshold) for query, own in zip(queries, candidates, strict=True)]


class Candidates:
    """Rows of one query that can still be among the best, given their estimated scores.

    A row is one of them unless k others are better by more than twice the error of an estimate.

    Args:
        k: number of rows to find; None: all.
        threshold: the smallest exact score; None: none.
        error: the greatest difference of an estimated and an exact score.
    """

    def __init__(self, k: int | None, threshold: float | None, error: float) -> None:
        self.k, self.error = k, error
        self.floor = -np.inf if threshold is None else threshold - error  # no row below it can be a result
        self.parts: list[tuple[Array, Array]] = []

    def add(self, rows: NDArray[np.int64], scores: NDArray[np.float32]) -> None:
        """Take the estimated scores of rows."""
        if not np.isfinite(scores).all():
            row = int(rows[~np.isfinite(scores)][0])
            raise ValueError(f"vectors: row {row} holds values that are not finite; build the index again")
        keep = np.flatnonzero(scores >= self.floor)
        if len(keep):
            self.parts.append((rows[keep], scores[keep]))
            self._shrink()

    def rows(self) -> NDArray[np.int64]:
        """Return the numbers of the rows that remain."""
        return self.parts[0][0] if self.parts else np.zeros(0, np.int64)

    def _shrink(self) -> None:
        rows, scores = (np.concatenate(arrays) for arrays in zip(*self.parts, strict=True))
        if self.k is not None and len(scores) > self.k:
            kth = float(np.partition(scores, -self.k)[-self.k])
            self.floor = max(self.floor, kth - 2 * self.error)
            keep = scores >= self.floor
            rows, scores = rows[keep], scores[keep]
        self.parts = [(rows, scores)]


def _refined(vectors: Array, query: NDArray[np.float64], candidates: Candidates) -> Candidates:
    """Return the candidates that remain after an estimate in half precision: coarse estimates can leave thousands."""
    rows, half = candidates.rows(), HalfPrecision(vectors)
    if len(rows) <= REFINED:
        return candidates
    prepared, (error,) = half.prepare(query[None])
    refined = Candidates(candidates.k, None, error)
    refined.floor = candidates.floor + candidates.error - error  # exact scores have the floor plus the first error
    for start in range(0, len(rows), BLOCK):
        part = rows[start : start + BLOCK]
        refined.add(part, half.scores(prepared, part)[0])
    return refined


def exact_scores(vectors: Array, rows: Array, query: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the products of rows (n,) with a query (E,) in float64; equal rows have exactly equal scores.

    Raises:
        ValueError: a row is longer than a unit vector, or not finite.
    """
    scores = np.empty(len(rows))
    for start in range(0, len(rows), RESCORED):
        numbers = rows[start : start + RESCORED]
        block = vectors[numbers].astype(np.float64)
        scores[start : start + len(numbers)] = (block * query).sum(axis=1)  # row by row: a BLAS depends on the place
        wrong = ~(np.einsum("re,re->r", block, block) <= MAX_NORM**2)
        if wrong.any():
            row = int(numbers[wrong][0])
            raise ValueError(f"vectors: row {row} is not a unit vector; build the index again")
    return scores


def ranked(
    vectors: Array, query: NDArray[np.float64], rows: NDArray[np.int64], k: int | None, threshold: float | None
) -> Result:
    """Return the exact scores of candidate rows (n,) and these rows, the best first; a query is (E,)."""
    scores = exact_scores(vectors, rows, query)
    if threshold is not None:
        rows, scores = rows[scores >= threshold], scores[scores >= threshold]
    order = np.lexsort((rows, -scores))[:k]
    return scores[order], rows[order]


def _blocks(count: int, chosen: NDArray[np.int64] | None) -> Iterator[tuple[NDArray[np.int64], slice | Array]]:
    """Yield the chosen rows block by block: their numbers, and the range or the rows to estimate."""
    for start in range(0, count, BLOCK):
        stop = min(count, start + BLOCK)
        if chosen is None:
            yield np.arange(start, stop), slice(start, stop)
            continue
        first, last = np.searchsorted(chosen, (start, stop))
        numbers = chosen[first:last]
        if len(numbers):
            yield numbers, slice(start, stop) if len(numbers) >= DENSE * (stop - start) else numbers


def _checked_queries(vectors: Array, queries: Any) -> NDArray[np.float64]:
    if vectors.ndim != 2 or vectors.dtype != np.float16:
        raise ValueError(f"vectors: found {vectors.dtype} {vectors.shape}; expected float16 (R, E)")
    queries = np.asarray(queries, dtype=np.float32)
    if queries.ndim != 2 or queries.shape[1] != vectors.shape[1]:
        raise ValueError(
            f"query: found {queries.shape[-1] if queries.ndim else 1} values; expected {vectors.shape[1]}, as the "
            "vectors of the index have"
        )
    if not np.isfinite(queries).all():
        raise ValueError("query: holds values that are not finite (NaN or infinity)")
    if not queries.any(axis=1).all():
        raise ValueError("query: is the zero vector, which has no direction")
    result: NDArray[np.float64] = queries.astype(np.float64)
    return result


def _checked_rows(rows: Array | Sequence[int], count: int) -> NDArray[np.int64]:
    """Return row numbers in ascending order, each once."""
    numbers = np.asarray(rows)
    if numbers.ndim != 1 or (len(numbers) and not np.issubdtype(numbers.dtype, np.integer)):
        raise ValueError(f"rows: found {numbers.dtype} {numbers.shape}; expected row numbers (n,)")
    numbers = numbers.astype(np.int64)
    if len(numbers) > 1 and not (np.diff(numbers) > 0).all():
        numbers = np.unique(numbers)
    if len(numbers) and not 0 <= numbers[0] <= numbers[-1] < count:
        row = int(numbers[0] if numbers[0] < 0 else numbers[-1])
        raise ValueError(f"rows: found {row}; expected numbers from 0 to {count - 1}")
    return numbers
