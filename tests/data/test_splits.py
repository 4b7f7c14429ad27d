"""Splits: a set's own words, or drawn, disjoint and covering, whatever the order."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from miniclip.data.splits import chosen, drawn, in_name, meaning, settled


class TestDrawn:
    @given(count=st.integers(3, 300), seed=st.integers(), order=st.randoms(use_true_random=False))
    def test_disjoint_covering_and_independent_of_the_rows(self, count, seed, order):
        names = [f"{k}.jpg" for k in range(count)]
        splits = drawn(names, seed)
        assert set(splits) == set(names)
        share = max(1, count // 10)
        assert Counter(splits.values()) == {"train": count - 2 * share, "val": share, "test": share}
        order.shuffle(names)
        assert drawn(names, seed) == splits

    def test_a_thousand_each_of_a_large_set(self):
        splits = drawn([f"{k}.jpg" for k in range(31_783)], 0)
        assert Counter(splits.values()) == {"train": 29_783, "val": 1000, "test": 1000}

    def test_the_seed_changes_it_and_few_move_when_one_is_added(self):
        names = [f"{k}.jpg" for k in range(200)]
        before = drawn(names, 0)
        assert before != drawn(names, 1)
        after = drawn([*names, "new.jpg"], 0)
        assert sum(before[name] != after[name] for name in names) <= 2

    def test_it_is_the_same_as_ever(self):
        """Runs are resumed years later: whoever changes the hash changes their data."""
        assert [name for name, split in drawn([f"{k}.jpg" for k in range(20)], 0).items() if split != "train"] == [
            "2.jpg",
            "6.jpg",
            "16.jpg",
            "1.jpg",
        ]


class TestSettled:
    def test_the_sets_own_words(self):
        own = {"a": "train", "b": "restval", "c": "validation", "d": "Test", "e": None, "f": "extra"}
        splits, words = settled(own, 0)
        assert splits == {"a": "train", "b": "train", "c": "val", "d": "test", "f": "extra"}
        assert words == "the split is the set's own"

    @pytest.mark.parametrize("word", [None, "test", " "])
    def test_one_word_for_all_is_no_split(self, word):
        names = [str(k) for k in range(30)]
        splits, words = settled(dict.fromkeys(names, word), 5)
        assert splits == drawn(names, 5)
        assert "drawn" in words
        assert ("'test'" in words) == (word == "test")

    def test_one_word_for_all_may_be_meant(self):
        assert settled({"a": "test", "b": "test"}, 0, exact=True)[0] == {"a": "test", "b": "test"}

    def test_val_is_drawn_from_train_where_there_is_none(self):
        own = {str(k): "train" if k < 20 else "test" for k in range(30)}
        splits, words = settled(own, 0)
        assert Counter(splits.values()) == {"train": 18, "val": 2, "test": 10}
        assert all(splits[name] == "test" for name, split in own.items() if split == "test")
        assert "val drawn from train" in words


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("train-00000-of-00009", "train"),
        ("captions_val2017", "val"),
        ("validation", "val"),
        ("my_DEV_set", "val"),
        ("0000", None),
        ("training_and_test", None),
        ("contest", None),
    ],
)
def test_the_split_in_a_files_name(name, split):
    assert in_name(name) == split


def test_words_and_their_meaning():
    assert [meaning(word) for word in ("valid", " Testing ", "restval", "extra")] == ["val", "test", "train", "extra"]


def test_a_split_that_is_not_there():
    with pytest.raises(ValueError, match="no split 'dev': it has train, test, extra; 'all' takes everything"):
        chosen(["a", "b", "c"], {"a": "extra", "b": "test", "c": "train"}, "dev", "it has")
