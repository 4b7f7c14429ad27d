"""Exact search equals a float64 product over all rows: scores, order, ties, filters, thresholds."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from miniclip.search.nearest import exact
from miniclip.search.nearest.estimates import Codes, HalfPrecision
from miniclip.search.nearest.exact import top_k, top_k_each
from miniclip.search.nearest.searcher import Searcher


def unit_rows(count, width, seed=0):
    values = np.random.default_rng(seed).standard_normal((count, width))
    return (values / np.linalg.norm(values, axis=1, keepdims=True)).astype(np.float16)


def brute_force(vectors, query, k=None, rows=None, threshold=None):
    """All products in float64, sorted: the specification."""
    numbers = np.arange(len(vectors)) if rows is None else np.unique(rows)
    scores = (vectors[numbers].astype(np.float64) * np.float32(query).astype(np.float64)).sum(1)
    if threshold is not None:
        numbers, scores = numbers[scores >= threshold], scores[scores >= threshold]
    order = sorted(range(len(numbers)), key=lambda i: (-scores[i], numbers[i]))[:k]
    return scores[order], numbers[order]


def assert_same(found, expected):
    assert np.array_equal(found[1], expected[1])
    assert np.array_equal(found[0], expected[0])


@pytest.fixture(scope="module")
def large():
    vectors = unit_rows(100_000, 64)
    vectors[70_000:70_500] = vectors[:500]  # ties
    vectors[:, 3] += np.float16(0.3)  # a dimension of large values, as CLIP's embeddings have
    vectors /= np.linalg.norm(vectors.astype(np.float32), axis=1, keepdims=True).astype(np.float16)
    return vectors, Codes(vectors)


@pytest.mark.parametrize("coded", [False, True])
@pytest.mark.parametrize("case", ["all", "filter", "few rows", "threshold", "many"])
def test_100_000_vectors_against_brute_force(large, coded, case):
    vectors, codes = large
    random = np.random.default_rng(1)
    options = {
        "all": {"k": 10},
        "filter": {"k": 25, "rows": np.flatnonzero(random.random(100_000) < 0.6)},
        "few rows": {"k": 25, "rows": random.permutation(100_000)[:900]},
        "threshold": {"k": None, "threshold": 0.3},
        "many": {"k": 20_000},
    }[case]
    query = vectors[70_123].astype(np.float32) + 0.02 * random.standard_normal(64).astype(np.float32)
    found = top_k(vectors, query, **options, estimates=codes if coded else None)
    assert len(found[0]) > 0
    assert_same(found, brute_force(vectors, query, **options))


def test_ties_go_to_the_lower_row(large):
    vectors, codes = large
    query = vectors[70_000].astype(np.float32)
    for estimates in (None, codes):
        scores, rows = top_k(vectors, query, 2, estimates=estimates)
        assert rows.tolist() == [0, 70_000]
        assert scores[0] == scores[1]


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 40), st.integers(1, 9), st.integers(1, 50), st.sampled_from([None, -0.2, 0.0, 0.5]),
    st.lists(st.integers(0, 39)), st.booleans(), st.integers(0, 10_000), st.sampled_from([3, 8, 1000]),
)  # fmt: skip
def test_every_small_search_equals_brute_force(count, width, k, threshold, numbers, subset, seed, block):
    random = np.random.default_rng(seed)
    vectors = unit_rows(count, width, seed)
    vectors[random.integers(0, count, count // 2)] = vectors[: count // 2]  # ties
    rows = np.array([number for number in numbers if number < count], dtype=int) if subset else None
    queries = random.standard_normal((2, width)).astype(np.float32) * 3
    first_passes = [None] + ([Codes(vectors)] if count else [])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exact, "BLOCK", block)
        patch.setattr(exact, "REFINED", block // 8)
        for estimates in first_passes:
            found = top_k_each(vectors, queries, k, rows, threshold, estimates)
            for query, result in zip(queries, found, strict=True):
                assert_same(result, brute_force(vectors, query, k, rows, threshold))


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 64), st.integers(1, 5), st.integers(0, 10_000), st.floats(0.0, 0.9))
def test_no_estimate_errs_by_more_than_its_bound(width, count, seed, outlier):
    vectors = unit_rows(50, width, seed).astype(np.float64)
    vectors[:, 0] += outlier
    vectors = (vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-3)).astype(np.float16)
    queries = unit_rows(count, width, seed + 1).astype(np.float64)
    queries /= np.linalg.norm(queries, axis=1, keepdims=True)
    codes = Codes(vectors[:30])
    codes.extend(vectors)  # the last rows can lie outside the range of the first
    for estimates in (HalfPrecision(vectors), codes):
        prepared, errors = estimates.prepare(queries)
        difference = np.abs(estimates.scores(prepared, slice(0, 50)) - queries @ vectors.T.astype(np.float64))
        assert (difference.max(1) <= errors).all()


def test_threads_give_the_same_result(monkeypatch):
    vectors = unit_rows(5_000, 16)
    monkeypatch.setattr(exact, "BLOCK", 500)
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            results.append(top_k(vectors, vectors[7].astype(np.float32), 40))
            assert torch.get_num_threads() == count
    finally:
        torch.set_num_threads(threads)
    assert_same(*results)


def test_memory_map_that_is_read_only(tmp_path, recwarn):
    vectors = unit_rows(100, 8)
    vectors.tofile(tmp_path / "vectors.f16")
    mapped = np.memmap(tmp_path / "vectors.f16", np.float16, "r", shape=(100, 8))
    assert_same(top_k(mapped, vectors[3].astype(np.float32), 5), brute_force(vectors, vectors[3], 5))
    assert not recwarn.list


def test_searcher_codes_at_its_second_query_and_takes_new_rows():
    vectors = unit_rows(3_000, 32)
    query = vectors[5].astype(np.float32)
    searcher = Searcher(vectors[:2_000], min_coded=1_000)
    assert_same(searcher.top_k(query, 7), brute_force(vectors[:2_000], query, 7))
    assert searcher.codes is None
    assert_same(searcher.top_k(query, 7), brute_force(vectors[:2_000], query, 7))
    assert searcher.codes is None or len(searcher.codes) == 2_000  # None: products of int8 are not exact here
    assert_same(searcher.extended(vectors).top_k(query, 7), brute_force(vectors, query, 7))
    assert_same(searcher.top_k(query, 7), brute_force(vectors[:2_000], query, 7))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"query": [1.0, 2.0]}, "found 2 values; expected 4"),
        ({"query": [np.nan, 0, 0, 0]}, "not finite"),
        ({"query": [0.0, 0, 0, 0]}, "zero vector"),
        ({"query": [[1.0, 0, 0, 0]]}, "expected one vector"),
        ({"k": 0}, "k"),
        ({"rows": np.array([1, 20])}, "found 20; expected numbers from 0 to 9"),
        ({"rows": np.array([0.5])}, "expected row numbers"),
        ({"vectors": np.zeros((3, 4), np.float32)}, "expected float16"),
        ({"vectors": np.full((3, 4), np.nan, np.float16)}, "row 0 holds values that are not finite"),
        ({"vectors": np.full((3, 4), 2, np.float16)}, "row 0 is not a unit vector"),
    ],
)
def test_wrong_arguments_are_refused(change, message):
    options = {"vectors": unit_rows(10, 4), "query": [1.0, 0, 0, 0], "k": 3} | change
    with pytest.raises(ValueError, match=message):
        top_k(**options)


def test_codes_refuse_values_that_are_not_finite():
    vectors = unit_rows(10, 4)
    vectors[3, 1] = np.inf
    with pytest.raises(ValueError, match="not finite"):
        Codes(vectors)
    codes = Codes(vectors[:3])
    with pytest.raises(ValueError, match="not finite"):
        codes.extend(vectors)
