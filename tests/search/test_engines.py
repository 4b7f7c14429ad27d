"""Approximate engines: exact scores, measured recall, and a new build when the index has changed."""

import json
import logging
import sys

import numpy as np
import pytest

from miniclip import Index
from miniclip.search import Filter
from miniclip.search.nearest import engines
from miniclip.search.nearest.engines import build_engine, open_engine
from miniclip.search.nearest.exact import top_k
from tests.search.test_exact import unit_rows


def own_rows(engine, vectors, rows):
    """The best row for the vector of each row."""
    return [int(found[0]) for _, found in engine.top_k_each(vectors, vectors[rows].astype(np.float32), 3)]


@pytest.fixture(params=["faiss", "usearch"])
def name(request):
    pytest.importorskip(request.param)
    return request.param


def test_recall_is_measured_against_the_exact_search(name):
    vectors, rows = unit_rows(2_000, 16), np.arange(0, 2_000, 2)
    engine = build_engine(name, vectors, rows)
    assert 0.9 < engine.recall <= 1
    query = unit_rows(1, 16, 5).astype(np.float32)
    scores, found = engine.top_k_each(vectors, query, 10)[0]
    exact_scores, exact_rows = top_k(vectors, query[0], 10, rows)
    assert (found % 2 == 0).all()
    assert np.isin(found, exact_rows).mean() >= 0.7
    common = np.isin(exact_rows, found)
    assert np.array_equal(scores[np.isin(found, exact_rows)], exact_scores[common])
    assert np.array_equal(np.sort(scores)[::-1], scores)
    assert (engine.top_k_each(vectors, query, 10, 0.5)[0][0] >= 0.5).all()


def test_every_build_has_all_rows(name):
    vectors, rows = unit_rows(300, 8), np.arange(300)
    for _ in range(25):  # with several threads, usearch lost a row in one build of eight
        assert own_rows(build_engine(name, vectors, rows), vectors, rows) == rows.tolist()


def test_engine_is_kept_until_the_rows_change(name, tmp_path, caplog):
    vectors = unit_rows(300, 8)
    caplog.set_level(logging.INFO, "miniclip")

    def built(rows, generation="1"):
        caplog.clear()
        engine = open_engine(name, tmp_path, generation, vectors, rows)
        assert own_rows(engine, vectors, rows) == rows.tolist()
        return "building" in caplog.text

    assert built(np.arange(300))
    assert not built(np.arange(300))
    assert json.loads((tmp_path / f"engine-{name}.json").read_text())["recall"] > 0.8
    assert built(np.arange(299))
    assert built(np.arange(1, 300))  # as many others
    assert built(np.arange(1, 300), "2")
    (tmp_path / f"engine-{name}.bin").write_bytes(b"torn")
    assert built(np.arange(1, 300), "2")


def test_search_by_engine_equals_the_exact_one(name, photos, search_model):
    with Index.build(search_model, photos) as index:
        for query in ("a red heart", "a ring"):
            assert index.search(query, 5, engine=name) == index.search(query, 5)
        index.remove("3.png")
        assert index.search("a ring", 99, engine=name) == index.search("a ring", 99)
        with pytest.raises(ValueError, match="takes no filter"):
            index.search("a ring", engine=name, where=Filter("*.png"))


def test_missing_library_names_the_extra(index, monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(ImportError, match=r'pip install "miniclip\[search\]"'):
        index.search("x", engine="faiss")


def test_unknown_engine_is_refused(index):
    with pytest.raises(ValueError, match="did you mean 'faiss'"):
        index.search("x", engine="fais")
    assert engines.ENGINES == ("faiss", "usearch")
