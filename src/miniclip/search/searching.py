"""Search in one snapshot of an index: vectors of queries to hits."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from miniclip.search.filters import Filter
from miniclip.search.nearest.engines import Engine, open_engine, require_engine
from miniclip.search.nearest.searcher import Searcher
from miniclip.search.snapshot import Hit, Item, Snapshot
from miniclip.utils.checks import whole_number
from miniclip.utils.items import describe


class SnapshotSearch:
    """Exact search in a snapshot. Threads may share it.

    Args:
        snapshot: items and vectors.
        path_of: path of an item.
        previous: search in an earlier snapshot; its codes are used again if the vectors only have further rows.
    """

    searcher: Searcher

    def __init__(
        self, snapshot: Snapshot, path_of: Callable[[Item], str], previous: SnapshotSearch | None = None
    ) -> None:
        self.snapshot, self.path_of = snapshot, path_of
        rows = np.unique(snapshot.rows)
        self.rows = None if len(rows) == len(snapshot.vectors) else rows  # None: no holes
        if previous is not None and _is_continuation(previous.snapshot, snapshot):
            self.searcher = previous.searcher.extended(snapshot.vectors)
        else:
            self.searcher = Searcher(snapshot.vectors)
        self._engines: dict[str, Engine] = {}
        self._lock = threading.Lock()

    def search_each(
        self,
        vectors: Any,
        k: int | None = 10,
        where: Filter | None = None,
        threshold: float | None = None,
        engine: str = "exact",
    ) -> list[list[Hit]]:
        """Return the best images of each query, the best first; equal scores are in the order of rows, then of names.

        Args:
            vectors: (Q, E) queries; they need not have length 1.
            k: greatest number of images of a query; None: all.
            where: images to search among; None: all.
            threshold: the smallest cosine similarity of a hit, -1..1; None: none.
            engine: "exact", or the name of an approximate engine.

        Raises:
            ValueError: an argument is out of range, or an engine cannot take it.
            ImportError: the engine is not installed.
        """
        k = None if k is None else whole_number("k", k, 1)
        if threshold is not None and not -1 <= threshold <= 1:
            raise ValueError(f"threshold: found {threshold}; expected a cosine similarity from -1 to 1")
        queries = unit_vectors(vectors)
        where = None if where == Filter() else where
        if engine != "exact":
            return self._approximate(queries, k, where, threshold, engine)
        rows, ids = self.rows, None
        if where is not None:
            positions = self._positions(where)
            rows, ids = self.snapshot.rows[positions], set(self.snapshot.ids[positions].tolist())
        results = self.searcher.top_k_each(queries, k, rows, threshold)
        return [self._hits(scores, found, k, ids) for scores, found in results]

    def _approximate(
        self, queries: npt.NDArray[np.float32], k: int | None, where: Filter | None, threshold: float | None, name: str
    ) -> list[list[Hit]]:
        """Return the hits that an engine finds."""
        require_engine(name)
        if k is None or where is not None:
            raise ValueError(f"engine {name}: takes no filter and needs k; use engine 'exact'")
        if not len(self.snapshot):
            return [[] for _ in queries]
        snapshot = self.snapshot
        if queries.shape[1] != snapshot.vectors.shape[1]:
            raise ValueError(f"query: found {queries.shape[1]} values; expected {snapshot.vectors.shape[1]}")
        with self._lock:
            if name not in self._engines:
                rows = np.unique(snapshot.rows)
                folder, generation = snapshot.path, snapshot.settings["generation"]
                self._engines[name] = open_engine(name, folder, generation, snapshot.vectors, rows)
        results = self._engines[name].top_k_each(snapshot.vectors, queries, k, threshold)
        return [self._hits(scores, found, k, None) for scores, found in results]

    def _positions(self, where: Any) -> npt.NDArray[np.int64]:
        if not isinstance(where, Filter):
            raise TypeError(f"where: found {describe(where)}; expected a miniclip.search.Filter")
        condition, parameters = where.condition(self.snapshot.settings["root"])
        return self.snapshot.where(condition, parameters)

    def _hits(
        self, scores: npt.NDArray[np.float64], rows: npt.NDArray[np.int64], k: int | None, ids: set[int] | None
    ) -> list[Hit]:
        """Return the hits of rows; equal files share a row."""
        items_of = self.snapshot.items_of_rows(rows)
        hits = [
            Hit(self.path_of(item), score, item)
            for score, row in zip(scores.tolist(), rows.tolist(), strict=True)
            for item in items_of[row]
            if ids is None or item.id in ids
        ]
        return hits[:k]


def unit_vectors(vectors: Any) -> npt.NDArray[np.float32]:
    """Return queries (Q, E) as float32 at length 1.

    Raises:
        ValueError: a query is zero or not finite.
    """
    if hasattr(vectors, "detach"):
        vectors = vectors.detach().float().cpu()
    queries = np.asarray(vectors, dtype=np.float64)
    if queries.ndim != 2:
        raise ValueError(f"query: found shape {queries.shape[1:]}; expected one vector (E,)")
    lengths = np.linalg.norm(queries, axis=1, keepdims=True)
    if not np.isfinite(lengths).all() or not lengths.all():
        raise ValueError("query: the vector is zero or not finite, so that it has no direction")
    result: npt.NDArray[np.float32] = (queries / lengths).astype(np.float32)
    return result


def is_vector(query: Any) -> bool:
    """Return whether a query is a vector: an array or tensor of one dimension, or a list of numbers."""
    if isinstance(query, Sequence) and not isinstance(query, str | bytes):
        return all(isinstance(value, int | float) for value in query)
    return getattr(query, "ndim", None) == 1


def _is_continuation(before: Snapshot, after: Snapshot) -> bool:
    """Return whether a snapshot has the same rows as an earlier one, and perhaps further ones."""
    same = all(before.settings.get(key) == after.settings.get(key) for key in ("id", "generation", "embed_dim"))
    return before.path == after.path and same and len(before.vectors) <= len(after.vectors)
