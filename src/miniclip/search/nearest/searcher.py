"""Nearest neighbours for one query after another over the same vectors. Letters: R rows, E embedding, Q queries."""

from __future__ import annotations

import threading
from copy import copy
from typing import Any

import numpy as np
from numpy.typing import NDArray

from miniclip.fast.private import int8_matmul_is_exact
from miniclip.search.nearest.estimates import Codes
from miniclip.search.nearest.exact import Result, top_k_each

MIN_CODED = 50_000  # rows from which on codes of 8 bits pay: below, a search in half precision takes a few milliseconds


class Searcher:
    """Exact search that codes the vectors in 8 bits before its second query: half the memory, three times the speed.

    The first query reads the vectors themselves, because a command that answers one query would lose by the codes.

    Args:
        vectors: (R, E) float16, unit vectors.
        min_coded: rows from which on the vectors are coded; a code takes E bytes of memory.
    """

    def __init__(self, vectors: NDArray[Any], min_coded: int = MIN_CODED) -> None:
        self.vectors, self.min_coded = vectors, min_coded
        self.codes: Codes | None = None
        self._queries = 0
        self._lock = threading.Lock()

    def extended(self, vectors: NDArray[Any]) -> Searcher:
        """Return a searcher of vectors that only have further rows; their codes are added at its next query."""
        searcher = Searcher(vectors, self.min_coded)
        with self._lock:
            searcher._queries = self._queries
            searcher.codes = copy(self.codes)  # `Codes.extend` replaces the arrays, so this searcher keeps its own
        return searcher

    def prepare(self) -> None:
        """Code the vectors now, rather than at the second query."""
        with self._lock:
            self._code()

    def top_k(
        self, query: Any, k: int | None = 10, rows: NDArray[Any] | None = None, threshold: float | None = None
    ) -> Result:
        """Return the best rows of a query (E,), as `exact.top_k`."""
        return self.top_k_each(np.asarray(query)[None], k, rows, threshold)[0]

    def top_k_each(
        self, queries: Any, k: int | None = 10, rows: NDArray[Any] | None = None, threshold: float | None = None
    ) -> list[Result]:
        """Return the best rows of each query of (Q, E), as `exact.top_k_each`."""
        with self._lock:
            if self._queries:
                self._code()
            self._queries += 1
            codes = self.codes if self.codes is not None and len(self.codes) == len(self.vectors) else None
        return top_k_each(self.vectors, queries, k, rows, threshold, codes)

    def _code(self) -> None:
        vectors = self.vectors
        if len(vectors) < max(1, self.min_coded) or not int8_matmul_is_exact(vectors.shape[1]):
            return
        if self.codes is None:
            self.codes = Codes(vectors)
        elif len(self.codes) < len(vectors):
            self.codes.extend(vectors)
