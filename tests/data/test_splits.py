"""Splits: the dataset's own, or drawn."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from miniclip.data.splits import (
    draw_group_splits,
    draw_splits,
    join_groups,
    normalize_split,
    resolve_splits,
    select_split,
    split_in_name,
)


class TestDrawSplits:
    @given(count=st.integers(3, 300), seed=st.integers(), order=st.randoms(use_true_random=False))
    def test_parts_are_disjoint_complete_and_independent_of_order(self, count, seed, order):
        names = [f"{k}.jpg" for k in range(count)]
        splits = draw_splits(names, seed)
        assert set(splits) == set(names)
        share = max(1, count // 10)
        assert Counter(splits.values()) == {"train": count - 2 * share, "val": share, "test": share}
        order.shuffle(names)
        assert draw_splits(names, seed) == splits

    @pytest.mark.parametrize(
        ("count", "expected"),
        [(0, {}), (1, {"train": 1}), (2, {"train": 1, "val": 1}), (3, {"train": 1, "val": 1, "test": 1})],
    )
    def test_training_is_never_empty(self, count, expected):
        for seed in range(20):
            assert Counter(draw_splits(map(str, range(count)), seed).values()) == expected

    def test_large_dataset_has_1000_in_val_and_test(self):
        splits = draw_splits([f"{k}.jpg" for k in range(31_783)], 0)
        assert Counter(splits.values()) == {"train": 29_783, "val": 1000, "test": 1000}

    def test_seed_changes_split_and_new_image_moves_few_others(self):
        names = [f"{k}.jpg" for k in range(200)]
        before = draw_splits(names, 0)
        assert before != draw_splits(names, 1)
        after = draw_splits([*names, "new.jpg"], 0)
        assert sum(before[name] != after[name] for name in names) <= 2

    def test_split_never_changes(self):
        """A run may be resumed years later; another hash would change its data."""
        assert [
            name for name, split in draw_splits([f"{k}.jpg" for k in range(20)], 0).items() if split != "train"
        ] == [
            "2.jpg",
            "6.jpg",
            "16.jpg",
            "1.jpg",
        ]


class TestGroups:
    @given(sizes=st.lists(st.integers(1, 30), min_size=3, max_size=60), order=st.randoms(use_true_random=False))
    def test_groups_stay_together_in_any_order(self, sizes, order):
        groups = {f"{k}-{i}.jpg": f"product {k}" for k, size in enumerate(sizes) for i in range(size)}
        splits = draw_group_splits(groups, 0)
        assert len({(group, splits[name]) for name, group in groups.items()}) == len(sizes)
        assert set(splits.values()) == {"train", "val", "test"}
        names = list(groups)
        order.shuffle(names)
        assert draw_group_splits({name: groups[name] for name in names}, 0) == splits

    def test_held_out_parts_have_about_a_tenth(self):
        groups = {f"{k}-{i}.jpg": f"product {k}" for k in range(300) for i in range(5)}
        counts = Counter(draw_group_splits(groups, 0).values())
        assert counts == {"train": 1200, "val": 150, "test": 150}
        assert draw_group_splits(groups, 0) != draw_group_splits(groups, 1)

    def test_large_group_is_in_train(self):
        groups = {f"{k}.jpg": "large" if k < 100 else f"product {k}" for k in range(200)}
        for seed in range(20):
            splits = draw_group_splits(groups, seed)
            assert {splits[name] for name, group in groups.items() if group == "large"} == {"train"}

    def test_groups_that_share_an_image_are_one(self):
        groups = join_groups({"a": {"z", "y"}, "b": {"y"}, "c": {"z", "x"}, "d": {"other"}, "e": set()})
        assert groups["a"] == groups["b"] == groups["c"] == "group/x"
        assert (groups["d"], groups["e"]) == ("group/other", "image/e")
        assert join_groups({"a": set(), "b": set()}) is None

    def test_two_groups_are_refused(self):
        with pytest.raises(ValueError, match="4 images are in 2 groups"):
            draw_group_splits({"a": "x", "b": "x", "c": "y", "d": "y"}, 0)

    def test_own_split_that_cuts_a_group_is_refused(self):
        given = {"a": "train", "b": "val", "c": "train"}
        with pytest.raises(ValueError, match="images of the group 'x' in train and in val"):
            resolve_splits(given, 0, True, {"a": "group/x", "b": "group/x", "c": "group/y"})

    def test_missing_val_is_drawn_from_train_by_groups(self):
        groups = {f"{k}-{i}": f"group/{k}" for k in range(20) for i in range(4)}
        given = {name: "test" if name.startswith("19-") else "train" for name in groups}
        splits, _ = resolve_splits(given, 0, True, groups)
        assert Counter(splits.values()) == {"train": 68, "val": 8, "test": 4}
        assert len({(groups[name], split) for name, split in splits.items()}) == 20


class TestResolveSplits:
    def test_own_split_is_taken(self):
        given = {"a": "train", "b": "restval", "c": "validation", "d": "Test", "e": None, "f": "extra"}
        splits, description = resolve_splits(given, 0)
        assert splits == {"a": "train", "b": "train", "c": "val", "d": "test", "f": "extra"}
        assert description == "the split is the dataset's own"

    @pytest.mark.parametrize("name", [None, "test", " "])
    def test_one_name_for_all_files_is_ignored(self, name):
        names = [str(k) for k in range(30)]
        splits, description = resolve_splits(dict.fromkeys(names, name), 5)
        assert splits == draw_splits(names, 5)
        assert "drawn" in description
        assert ("'test'" in description) == (name == "test")

    def test_one_exact_split_is_taken(self):
        assert resolve_splits({"a": "test", "b": "test"}, 0, exact=True).of == {"a": "test", "b": "test"}

    @pytest.mark.parametrize("exact", [False, True])
    @pytest.mark.parametrize("count", [1, 2])
    def test_training_is_not_emptied_for_val(self, count, exact):
        given = dict.fromkeys(map(str, range(count)), "train") | {"test": "test"}
        assert "train" in resolve_splits(given, 0, exact).of.values()

    def test_a_very_small_dataset_describes_itself(self):
        assert "fewer than 3 images" in resolve_splits({"a": None, "b": None}, 0).description
        assert "fewer" not in resolve_splits(dict.fromkeys("abc"), 0).description

    def test_missing_val_is_drawn_from_train(self):
        given = {str(k): "train" if k < 20 else "test" for k in range(30)}
        splits, description = resolve_splits(given, 0)
        assert Counter(splits.values()) == {"train": 18, "val": 2, "test": 10}
        assert all(splits[name] == "test" for name, split in given.items() if split == "test")
        assert "with val drawn from train" in description


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
def test_split_in_name(name, split):
    assert split_in_name(name) == split


def test_normalize_split():
    assert [normalize_split(name) for name in ("valid", " Testing ", "restval", "extra")] == [
        "val",
        "test",
        "train",
        "extra",
    ]


def test_unknown_split_raises():
    with pytest.raises(
        ValueError, match=r"no split 'dev': a\.csv \(3 images\) has train, test, extra; 'all' takes everything"
    ):
        select_split(["a", "b", "c"], {"a": "extra", "b": "test", "c": "train"}, "dev", "a.csv")


@pytest.mark.parametrize(("count", "split"), [(1, "val"), (1, "test"), (2, "test"), (1, "validation")])
def test_a_missing_split_of_a_very_small_dataset_is_explained(count, split):
    names = list(map(str, range(count)))
    with pytest.raises(ValueError, match=r"too small for a split.*3 or more") as error:
        select_split(names, draw_splits(names, 0), split, "a.csv")
    assert ("(1 image)" in str(error.value)) == (count == 1)
