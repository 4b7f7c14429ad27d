"""Approximate search by faiss or usearch, for many millions of vectors, with a recall measured on the exact search.

faiss divides the vectors into cells and searches some of them (IVF), usearch follows a graph (HNSW). Both only propose
rows: their scores are computed exactly. Letters: N rows with items, E embedding, Q queries.
"""

from __future__ import annotations

import itertools
import json
import logging
import math
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
from numpy.typing import NDArray

from miniclip.search.nearest.exact import Result, ranked, top_k_each
from miniclip.utils.atomic import write_atomically
from miniclip.utils.checks import did_you_mean

Array = NDArray[Any]
EngineName: TypeAlias = Literal["faiss", "usearch"]
ENGINES: tuple[str, ...] = get_args(EngineName)

logger = logging.getLogger(__name__)

SAMPLES = 100  # queries of the measurement of the recall
RECALL_K = 10
TARGET = 0.98  # recall at which no further cells or candidates are searched
ADDED = 65_536  # rows that an engine gets at once
FEW = 1024  # rows that usearch adds in one thread: several threads lose some of the first ones
PER_CELL = 64  # vectors per cell to train with; faiss advises 39 to 256


@dataclass
class Engine:
    """A built engine.

    Attributes:
        name: faiss or usearch.
        native: the library's own index, with the numbers of rows as keys.
        effort: cells (faiss) or candidates (usearch) that a query searches.
        recall: part of the exact best 10 that it finds, on queries between two vectors of the index.
    """

    name: str
    native: Any
    effort: int
    recall: float

    def propose(self, queries: NDArray[np.float32], k: int) -> list[NDArray[np.int64]]:
        """Return at most k rows for each query (Q, E), without an order."""
        return propose(self.name, self.native, queries, k, self.effort)

    def top_k_each(self, vectors: Array, queries: Array, k: int, threshold: float | None = None) -> list[Result]:
        """Return the best of the proposed rows, with exact scores; parameters as in `exact.top_k_each`."""
        proposed = self.propose(queries.astype(np.float32), k)
        return [
            ranked(vectors, query.astype(np.float64), np.sort(rows), k, threshold)
            for query, rows in zip(queries, proposed, strict=True)
        ]


def require_engine(name: str) -> None:
    """Check that an engine exists and is installed.

    Raises:
        ValueError: the name is not that of an engine.
        ImportError: its library is not installed.
    """
    if name not in ENGINES:
        raise ValueError(f"engine: found {name!r}{did_you_mean(name, ('exact', *ENGINES))}")
    _library(name)


def open_engine(name: str, folder: Path, generation: str, vectors: Array, rows: NDArray[np.int64]) -> Engine:
    """Open the engine that was built beside an index, or build it if the rows have changed.

    Args:
        name: faiss or usearch.
        folder: directory of the index.
        generation: of its vectors.
        vectors: (R, E) float16.
        rows: (N,) rows that have items, ascending; at least one.

    Raises:
        ValueError: the name is not that of an engine.
        ImportError: its library is not installed.
    """
    require_engine(name)
    state = {"generation": generation, "rows": len(rows), "crc32": zlib.crc32(np.ascontiguousarray(rows).tobytes())}
    file, facts = folder / f"engine-{name}.bin", folder / f"engine-{name}.json"
    try:
        known = json.loads(facts.read_text())
        if known["state"] == state:
            return Engine(name, _read(name, file, vectors.shape[1]), known["effort"], known["recall"])
    except (OSError, ValueError, KeyError, RuntimeError):  # none yet, or torn: built again
        pass
    logger.info("building %s of %s vectors, once for this state of the index", name, f"{len(rows):,}")
    engine = build_engine(name, vectors, rows)
    try:
        facts.unlink(missing_ok=True)  # the file is valid only together with its facts
        write_atomically(file, lambda temporary: _write(name, engine.native, temporary))
        text = json.dumps({"state": state, "effort": engine.effort, "recall": engine.recall, "k": RECALL_K})
        write_atomically(facts, lambda temporary: temporary.write_text(text + "\n"))
    except OSError as error:
        logger.warning("%s is not kept, so that the next search builds it again: %s", name, error)
    logger.info("recall@%d of %s: %.3f of the exact search", RECALL_K, name, engine.recall)
    return engine


def build_engine(name: str, vectors: Array, rows: NDArray[np.int64]) -> Engine:
    """Build an engine, and raise its effort until its recall reaches the target or no longer grows."""
    native, efforts = _BUILDERS[name](vectors, rows)
    queries = sample_queries(vectors, rows)
    exact = [set(found.tolist()) for _, found in top_k_each(vectors, queries, RECALL_K, rows)]
    best = Engine(name, native, efforts[0], -1.0)
    for effort in efforts:
        proposed = propose(name, native, queries, RECALL_K, effort)
        found = sum(len(own & set(rows.tolist())) for own, rows in zip(exact, proposed, strict=True))
        recall = found / sum(map(len, exact))
        if recall > best.recall:
            best = Engine(name, native, effort, recall)
        if recall >= TARGET:
            break
    return best


def sample_queries(vectors: Array, rows: NDArray[np.int64]) -> NDArray[np.float32]:
    """Return unit vectors half way between two vectors of the index; the same ones for the same rows."""
    pairs = np.random.default_rng(0).choice(rows, (SAMPLES, 2))
    sums = vectors[pairs].astype(np.float32).sum(axis=1)
    sums[np.linalg.norm(sums, axis=1) < 1e-3, 0] = 1.0  # two opposite vectors
    result: NDArray[np.float32] = sums / np.linalg.norm(sums, axis=1, keepdims=True)
    return result


def propose(name: str, native: Any, queries: NDArray[np.float32], k: int, effort: int) -> list[NDArray[np.int64]]:
    """Return at most k rows for each query."""
    queries = np.ascontiguousarray(queries)
    if name == "faiss":
        native.nprobe = effort
        return [found[found >= 0] for found in native.search(queries, k)[1]]
    native.expansion_search = max(effort, k)
    return [np.asarray(native.search(query, k).keys, dtype=np.int64) for query in queries]


def _build_faiss(vectors: Array, rows: NDArray[np.int64]) -> tuple[Any, list[int]]:
    """Return cells of float16 vectors, and numbers of cells to search."""
    faiss = _library("faiss")
    width, cells = vectors.shape[1], max(1, min(len(rows) // 39, round(4 * math.sqrt(len(rows)))))
    centres = faiss.IndexFlatIP(width)
    native = faiss.IndexIVFScalarQuantizer(
        centres, width, cells, faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT, False
    )
    native.cp.spherical = True
    chosen = np.sort(np.random.default_rng(0).permutation(rows)[: cells * PER_CELL])
    native.train(vectors[chosen].astype(np.float32))
    for start in range(0, len(rows), ADDED):
        part = rows[start : start + ADDED]
        native.add_with_ids(vectors[part].astype(np.float32), part)
    native.own_fields = True
    centres.this.disown()  # the cells own them from now on
    return native, [2**power for power in range(3, 11) if 2**power < cells] + [cells]


def _build_usearch(vectors: Array, rows: NDArray[np.int64]) -> tuple[Any, list[int]]:
    """Return a graph of float16 vectors, and numbers of candidates."""
    native = _empty_usearch(vectors.shape[1])
    for start, stop in itertools.pairwise([0, *range(min(FEW, len(rows)), len(rows), ADDED), len(rows)]):
        part = rows[start:stop]
        native.add(part.astype(np.uint64), np.ascontiguousarray(vectors[part]), threads=int(start == 0))  # 0: all
    return native, [64, 128, 256, 512, 1024]


def _empty_usearch(width: int) -> Any:
    return _library("usearch").Index(ndim=width, metric="ip", dtype="f16", connectivity=32, expansion_add=128)


_BUILDERS: dict[str, Callable[[Array, NDArray[np.int64]], tuple[Any, list[int]]]] = {
    "faiss": _build_faiss,
    "usearch": _build_usearch,
}


def _write(name: str, native: Any, path: Path) -> None:
    if name == "faiss":
        _library("faiss").write_index(native, str(path))
    else:
        native.save(str(path))


def _read(name: str, path: Path, width: int) -> Any:
    if not path.is_file():
        raise FileNotFoundError(path)
    if name == "faiss":
        return _library("faiss").read_index(str(path))
    native = _empty_usearch(width)
    native.load(str(path))
    return native


def _library(name: str) -> Any:
    try:
        if name == "faiss":
            import faiss

            return faiss
        import usearch.index
    except ImportError as error:
        raise ImportError(f'the engine {name} needs its library: pip install "miniclip[search]"') from error
    return usearch.index
