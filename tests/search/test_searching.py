"""Search in an index on disk: hits, filters, equal files, later snapshots, near-duplicates."""

import os
import shutil
import sqlite3
from datetime import UTC, datetime

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from miniclip import Index
from miniclip.search import Filter, duplicates
from tests.search.conftest import write_images
from tests.search.test_exact import unit_rows
from tests.toys import make_model


def names(hits):
    return [hit.item.name for hit in hits]


def test_every_image_finds_itself(index):
    vectors = np.asarray(index.embeddings, dtype=np.float64)
    for position, (path, vector) in enumerate(zip(index.paths, vectors, strict=True)):
        scores = vectors @ vector / np.linalg.norm(vector)
        hits = index.search(vector, k=12)
        assert sorted(hit.path for hit in hits) == sorted(index.paths)
        assert hits[0].score == pytest.approx(scores.max(), abs=1e-6)
        assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)
        assert path in [hit.path for hit in hits if hit.score == pytest.approx(scores[position], abs=1e-6)]


def test_text_image_and_vector_are_queries(index):
    path = index.paths[3]
    by_path, by_image = index.search(path, k=3), index.search(Image.open(path), k=3)
    assert names(by_path) == names(by_image)
    assert by_path[0].score == pytest.approx(1, abs=2e-3)
    vector = index.model.encode_text(["a red heart"])[0]
    expected = index.search("a red heart")
    for query in (vector, 5 * vector, vector.tolist(), vector.numpy()):
        hits = index.search(query)
        assert names(hits) == names(expected)
        assert [hit.score for hit in hits] == pytest.approx([hit.score for hit in expected], abs=1e-6)
    assert len(index.search("a red heart", k=None)) == 12


NOON = datetime(2024, 5, 1, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        (Filter("below"), {"below/9.png", "below/10.png", "below/11.png"}),
        (Filter("below/"), {"below/9.png", "below/10.png", "below/11.png"}),
        (Filter(["1.png", "*/9.png"]), {"1.png", "below/9.png"}),
        (Filter("[12].png"), {"1.png", "2.png"}),
        (Filter("nothing/*"), set()),
        (Filter(after="2024-05-01", before="2024-05-02"), {"4.png"}),
        (Filter(after="2024-05-01T12:00+00:00", before="2024-05-01T12:00:01+00:00"), {"4.png"}),
        (Filter(before=NOON), {"5.png"}),
        (Filter(min_width=17), {"7.png"}),
        (Filter(min_size="1kB", min_height=30), {"7.png"}),
        (Filter("*.png", max_size=1), set()),
        (Filter("[1]"), {"[1]/9.jpg"}),
        (Filter("./below", after="1900-01-01", before="9999-12-31"), {"below/9.png", "below/10.png", "below/11.png"}),
        (Filter(after=NOON.replace(microsecond=1), before="2024-05-02"), set()),
        (Filter([f"{number}.png" for number in range(2, 1000)], max_size=10**30, before="2023-02-01"), {"5.png"}),
    ],
    ids=range(15),
)
def test_filter_selects(filtered_index, where, expected):
    assert set(names(filtered_index.search("a red heart", k=50, where=where))) == expected


@pytest.fixture(scope="module")
def filtered_index(tmp_path_factory, search_model):
    folder = tmp_path_factory.mktemp("filters") / "photos"
    write_images(folder, 9)
    write_images(folder / "below", 3, 9)
    write_images(folder / "[1]", 1, 9)
    (folder / "[1]" / "9.png").rename(folder / "[1]" / "9.jpg")
    noise = np.random.default_rng(0).integers(0, 255, (40, 40, 3), dtype=np.uint8)
    Image.fromarray(noise).save(folder / "7.png")
    for name, date in (("4.png", NOON), ("5.png", datetime(2023, 1, 1, tzinfo=UTC))):
        os.utime(folder / name, (date.timestamp(), date.timestamp()))
    return Index.build(search_model, folder)


def test_path_of_a_filter_can_begin_with_the_folder(filtered_index, tmp_path):
    root = filtered_index.snapshot.settings["root"]
    assert len(filtered_index.search("x", where=Filter(f"{root}/below"))) == 3
    link = tmp_path / "link"
    link.symlink_to(root)
    for pattern, count in (
        (link / "below", 3),
        (link / "below" / "*1.png", 1),
        (link, 13),
        (f"{root}/", 13),
        (".", 13),
    ):
        assert len(filtered_index.search("x", k=50, where=Filter(str(pattern)))) == count


def test_images_without_a_date_are_in_no_range():
    condition, parameters = Filter(after="1900-01-01").condition()
    with sqlite3.connect(":memory:") as database:
        database.execute("CREATE TABLE items (mtime_ns INTEGER)")
        database.executemany("INSERT INTO items VALUES (?)", [(0,), (-1,), (1,)])
        found = database.execute(f"SELECT mtime_ns FROM items WHERE {condition} ORDER BY mtime_ns", parameters)
        assert found.fetchall() == [(-1,), (1,)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"after": "May"}, "after: found 'May'; expected a date"),
        ({"after": "2024-05-02", "before": "2024-05-01"}, "range is empty"),
        ({"min_size": "2 parsec"}, "min_size: found '2 parsec'; expected bytes"),
        ({"min_size": -1}, "min_size"),
        ({"min_size": "2 MB", "max_size": "1 MB"}, "range is empty"),
        ({"paths": ""}, "expected a pattern"),
        ({"paths": "a\0b"}, "expected a pattern"),
        ({"min_width": -1}, "min_width"),
    ],
)
def test_wrong_filter_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Filter(**options)


def test_wrong_options_are_refused(index):
    with pytest.raises(ValueError, match="threshold: found 3"):
        index.search("x", threshold=3)
    with pytest.raises(TypeError, match="where: found a str"):
        index.search("x", where="*.png")
    with pytest.raises(ValueError, match="expected 16"):
        index.search(np.ones(4))
    with pytest.raises(ValueError, match="zero or not finite"):
        index.search(np.zeros(16))
    with pytest.raises(ValueError, match="k"):
        index.search("x", k=0)


def test_equal_files_are_hits_each_and_k_counts_them(photos, search_model):
    shutil.copy(photos / "3.png", photos / "copy of 3.png")
    with Index.build(search_model, photos) as index:
        hits = index.search(photos / "3.png", k=2)
        assert set(names(hits)) == {"3.png", "copy of 3.png"} or hits[0].score > hits[1].score
        assert len(hits) == 2
        only = index.search(photos / "3.png", k=5, where=Filter("copy of 3.png"))
        assert names(only) == ["copy of 3.png"]


def test_searches_follow_changes_of_the_index(photos, search_model):
    with Index.build(search_model, photos) as index:
        assert len(index.search("x", k=99)) == 12
        index.remove(["0.png", "1.png"])
        assert {"0.png", "1.png"}.isdisjoint(names(index.search("x", k=99)))
        write_images(photos / "new", 4, 20)
        index.add(photos / "new")
        assert len(index.search("x", k=99)) == 14


def test_earlier_snapshot_keeps_its_hits_after_a_later_search(photos, search_model):
    """A thread can still search in it."""
    with Index.build(search_model, photos) as index:
        queries = np.array(index.embeddings)
        index.search_vectors(queries)
        earlier = index._search
        before = earlier.search_each(queries)
        write_images(photos / "new", 4, 20)
        index.add(photos / "new")
        index.search_vectors(queries)
        assert earlier.search_each(queries) == before


def test_index_that_is_built_again_is_another_one(photos, search_model, tokenizer):
    """A process that keeps an index open must not use codes or a model of the earlier one."""
    index = Index.build(search_model, photos)
    index.search("x")
    first = index._search
    shutil.rmtree(index.path)
    Index.build(search_model, photos)
    index.refresh()
    index.search("x")
    assert index._search.searcher is not first.searcher
    shutil.rmtree(index.path)
    other = make_model(tokenizer)
    torch.nn.init.ones_(other.text.tokens.weight[:1])
    Index.build(other, photos)
    with pytest.raises(ValueError, match="built again with another model"):
        index.refresh()


def test_duplicates_are_equal_files_and_similar_images(tmp_path, search_model):
    folder = tmp_path / "photos"
    folder.mkdir()
    random = np.random.default_rng(3)
    for number in range(5):
        noise = random.integers(0, 255, (4, 4, 3), dtype=np.uint8)
        Image.fromarray(noise).resize((64, 64), Image.Resampling.NEAREST).save(folder / f"{number}.png")
    Image.open(folder / "2.png").resize((32, 32), Image.Resampling.BOX).save(folder / "small.png")
    shutil.copy(folder / "4.png", folder / "copy.png")
    with Index.build(search_model, folder) as index:
        equal, *others = index.duplicates(1)
        assert others == []
        assert equal.exact
        assert [item.name for item in equal.items] == ["4.png", "copy.png"]
        vectors = np.asarray(index.search_vectors(index.embeddings, k=1)[0][0].score)
        assert vectors == pytest.approx(1, abs=1e-3)
        similar = [group for group in index.duplicates(0.9999) if not group.exact]
        assert ["2.png", "small.png"] in [[item.name for item in group.items] for group in similar]
        with pytest.raises(ValueError, match="threshold: found 0"):
            index.duplicates(0)


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 60), st.integers(1, 4), st.floats(0.1, 0.9999), st.integers(0, 9999), st.sampled_from([7, 16, 999])
)
def test_groups_equal_those_of_brute_force(count, width, threshold, seed, block):
    vectors = unit_rows(count + 5, width, seed)
    rows = np.sort(np.random.default_rng(seed).permutation(count + 5)[:count])
    values = vectors[rows].astype(np.float64)
    lengths = np.sqrt((values[:, None] ** 2).sum(-1) * (values[None] ** 2).sum(-1))
    similar = (values[:, None] * values[None]).sum(-1) / lengths >= threshold
    expected, remaining = [], set(range(count))
    while remaining:
        group, frontier = set(), {min(remaining)}
        while frontier:
            group |= frontier
            frontier = {int(j) for i in frontier for j in np.flatnonzero(similar[i])} - group
        remaining -= group
        expected += [sorted(group)] if len(group) > 1 else []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(duplicates, "BLOCK", block)
        patch.setattr(duplicates, "PAIRS", block)
        assert duplicates.groups_of(count, duplicates.similar_pairs(vectors, rows, threshold)) == expected
