"""Search for the ten best of many vectors: milliseconds per query, against numpy, faiss, usearch and rclip.

python -m benchmarks search

Unit vectors of 512 numbers, with the structure of CLIP's: a common mean and dimensions of unequal size. miniclip reads
float16 from a memory map, as in an index, and estimates scores with codes of 8 bits. Its first query, as that of a
command, has no codes yet and multiplies in half precision. Both give the exact result. numpy, faiss flat and usearch
exact keep float32 in memory. rclip runs its own code (SQLite, a product in numpy, a sort of all pairs in Python), if it
can be imported: unpack its wheel (`pip download rclip --no-deps`) and put that folder on PYTHONPATH.
"""

import re
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from benchmarks.harness import MINICLIP, Row, Scale, interleaved
from miniclip.search.nearest.exact import top_k
from miniclip.search.nearest.searcher import Searcher

WIDTH, K = 512, 10
TOLERANCE = 2e-3  # limit for scores of float16 rows, in which the baselines' float32 copies of them can differ
MAX_RCLIP = 100_000  # vectors up to which rclip is timed in every round; it is timed once above, in seconds


def rows(scale: Scale) -> Iterator[Row]:
    """Milliseconds per query, by number of vectors and threads."""
    counts = (1_000, 20_000) if scale.small else (10_000, 100_000, 1_000_000)
    threads = torch.get_num_threads()
    for count in counts:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "vectors.f16"
            write_vectors(path, count)
            vectors = np.memmap(path, np.float16, "r", shape=(count, WIDTH))
            query = make_query(vectors)
            for number in sorted({1, threads}):
                torch.set_num_threads(number)
                yield measure(vectors, query, Path(folder), number, scale)
            torch.set_num_threads(threads)


def measure(vectors: Any, query: Any, folder: Path, threads: int, scale: Scale) -> Row:
    """Time all implementations on the same vectors and query, after a comparison of their results."""
    searcher = Searcher(vectors, min_coded=1)
    searcher.prepare()
    calls: dict[str, Callable[[], Any]] = {
        MINICLIP: lambda: searcher.top_k(query, K),
        "miniclip, first query": lambda: top_k(vectors, query, K),
    }
    float32 = np.asarray(vectors, dtype=np.float32)
    calls["numpy float32"] = lambda: numpy_search(float32, query)
    calls |= library_calls(float32, query, threads)
    if threads == 1 and (search := rclip_search(vectors, query, folder)):  # it has no threads of its own
        calls["rclip"] = search
    require_same_scores({name: call() for name, call in calls.items()})
    slow = {"rclip": calls.pop("rclip")} if len(vectors) > MAX_RCLIP and "rclip" in calls else {}
    values = interleaved(calls, scale.rounds)
    if slow:
        values["rclip"] = interleaved(slow, 1)["rclip"] * scale.rounds
    milliseconds = {name: [1000 / value for value in of_name] for name, of_name in values.items()}
    case = f"{len(vectors):,} vectors of {WIDTH}, {threads} thread{'s' * (threads > 1)}"
    note = "rclip timed once" if slow else ""
    return Row("search", case, "ms", milliseconds, {}, lower_is_better=True, note=note)


def write_vectors(path: Path, count: int) -> None:
    """Write unit vectors as float16, block by block."""
    random = torch.Generator().manual_seed(0)
    mean = torch.randn(WIDTH, generator=random) * 0.7
    sizes = torch.rand(WIDTH, generator=random) + 0.5
    mean[7], sizes[7] = 12.0, 2.0  # CLIP's embeddings have a few such dimensions
    with path.open("wb") as file:
        for start in range(0, count, 50_000):
            block = torch.randn(min(50_000, count - start), WIDTH, generator=random) * sizes + mean
            file.write((block / block.norm(dim=1, keepdim=True)).half().numpy().tobytes())


def make_query(vectors: Any) -> Any:
    """Return a unit vector between one of the vectors and a random direction."""
    query = vectors[len(vectors) // 2].astype(np.float32)
    query += np.random.default_rng(1).standard_normal(WIDTH).astype(np.float32) / WIDTH**0.5
    return query / np.linalg.norm(query)


def numpy_search(vectors: Any, query: Any) -> tuple[Any, Any]:
    """Product, partition and sort."""
    scores = vectors @ query
    chosen = np.argpartition(scores, -K)[-K:]
    chosen = chosen[np.argsort(-scores[chosen])]
    return scores[chosen], chosen


def library_calls(vectors: Any, query: Any, threads: int) -> dict[str, Callable[[], Any]]:
    """Return the exact searches of faiss and usearch, if they are installed."""
    calls: dict[str, Callable[[], Any]] = {}
    try:
        import faiss

        flat = faiss.IndexFlatIP(WIDTH)
        flat.add(vectors)

        def faiss_flat() -> Any:
            faiss.omp_set_num_threads(threads)
            scores, found = flat.search(query[None], K)
            return scores[0], found[0]

        calls["faiss flat"] = faiss_flat
    except ImportError:
        pass
    try:
        from usearch.index import search

        def usearch_exact() -> Any:
            found = search(vectors, query, K, "ip", exact=True, threads=threads)
            return 1 - np.asarray(found.distances), np.asarray(found.keys)

        calls["usearch exact"] = usearch_exact
    except ImportError:
        pass
    return calls


def rclip_search(vectors: Any, query: Any, folder: Path) -> Callable[[], Any] | None:
    """Return rclip's search on its own database; None if it cannot be imported."""
    try:
        from rclip import db, main, model
    except ImportError:
        return None
    database = db.DB(folder / "db.sqlite3")
    for number, vector in enumerate(vectors):
        database.upsert_image(
            db.NewImage(
                filepath=f"/photos/{number}.jpg", modified_at=0.0, size=0, vector=vector.astype(np.float32).tobytes(),
                hash=None,
            ),
            commit=False,
        )  # fmt: skip
    database.commit()
    given = model.Model()
    given.compute_features_for_queries = lambda queries: query if queries else np.zeros_like(query)
    app = SimpleNamespace(_model=given, _db=database, _exclude_dir_regex=re.compile("^$"))
    app._get_features = lambda directory: main.RClip._get_features(app, directory)

    def search() -> Any:
        found = main.RClip.search(app, "a red bicycle", "/photos", K)
        numbers = [int(Path(result.filepath).stem) for result in found]
        return np.array([result.score for result in found]), np.array(numbers)

    return search


def require_same_scores(results: dict[str, Any]) -> None:
    """Exit if the best scores differ by more than the rounding of the baselines."""
    expected = results[MINICLIP]
    for name, (scores, found) in results.items():
        difference = float(np.abs(np.sort(scores) - np.sort(expected[0])).max())
        if difference > TOLERANCE or len(set(found.tolist()) & set(expected[1].tolist())) < K - 1:
            raise SystemExit(f"search: {name} and {MINICLIP} differ by {difference:.1e} in their scores")
