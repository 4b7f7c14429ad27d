"""Flickr30k layouts: folders, broken rows, splits and errors."""

import functools
import json
import random
import shutil
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from miniclip.data import Captions, Flickr30k
from miniclip.errors import DataError

HEADER = "image_name| comment_number| comment\n"
BROKEN = "2199200615.jpg| 4   A dog runs across the grass .\n"

_shared = [parent / "shared" / "data" for parent in Path(__file__).parents[3:5]]
SHARED = next((folder for folder in _shared if folder.is_dir()), _shared[-1])
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason=f"the shared datasets are not at {SHARED}")


def write_images(folder: Path, names: list[str], size: tuple[int, int] = (4, 3)) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        Image.new("RGB", size, (200, 30, 30)).save(folder / name)


def table(names: list[str], per_image: int = 2) -> str:
    rows = [f"{name}| {k}| caption {k} of {name}\n" for name in names for k in range(per_image)]
    return HEADER + "".join(rows)


def make_dataset(root: Path, names: list[str], text: str | None = None, folder: str = "images") -> Path:
    write_images(root / folder, names)
    (root / "results.csv").write_text(table(names) if text is None else text, encoding="utf-8", newline="")
    return root


def write_split_file(path: Path, splits: dict[str, str], captions: tuple[str, ...] = ("from the split file",)) -> None:
    images = [
        {"filename": name, "split": split, "sentences": [{"raw": raw} for raw in captions]}
        for name, split in splits.items()
    ]
    path.write_text(json.dumps({"images": images}), encoding="utf-8")


def check_message(error: pytest.ExceptionInfo[BaseException], *parts: object) -> None:
    message = str(error.value)
    assert "\n" not in message
    for part in parts:
        assert str(part) in message


NAMES = ["b.jpg", "a.jpg", "c.jpg"]


class TestLayouts:
    @pytest.mark.parametrize(
        ("table_folder", "image_folder"),
        [
            ("flickr30k_images", "flickr30k_images/flickr30k_images"),  # Kaggle's, from the parent folder
            (".", "flickr30k_images"),  # Kaggle's, from its folder
            (".", "flickr30k_images/flickr30k_images"),
            (".", "."),
            (".", "images"),
            (".", "Images"),
            (".", "flickr30k-images"),
            (".", "Flicker8k_Dataset"),
            ("flickr30k_images", "flickr30k_images"),
            ("flickr30k", "flickr30k/images"),
            ("flickr30k_images/flickr30k_images", "flickr30k_images/flickr30k_images"),
        ],
    )
    def test_folders_are_found(self, tmp_path, table_folder, image_folder):
        write_images(tmp_path / image_folder, NAMES)
        (tmp_path / table_folder / "results.csv").write_text(table(NAMES))
        data = Flickr30k(tmp_path, "all")
        assert [path.name for path in data.paths] == NAMES
        image, captions = data[1]
        assert image.mode == "RGB"
        assert image.size == (4, 3)
        assert captions == ["caption 0 of a.jpg", "caption 1 of a.jpg"]

    def test_error_names_the_folder_with_most_images(self, tmp_path):
        make_dataset(tmp_path, NAMES, folder="images")
        write_images(tmp_path, ["a.jpg"])
        (tmp_path / "images" / "b.jpg").unlink()
        with pytest.raises(DataError) as error:
            Flickr30k(tmp_path, "all")
        check_message(error, tmp_path / "images", "1 of the 3", "b.jpg")

    def test_root_may_be_a_string_or_start_at_home(self, tmp_path, monkeypatch):
        make_dataset(tmp_path / "dataset", NAMES)
        monkeypatch.setenv("HOME", str(tmp_path))
        assert len(Flickr30k("~/dataset", "all")) == 3
        assert len(Flickr30k(str(tmp_path / "dataset"), "all")) == 3


class TestTable:
    def read(self, tmp_path: Path, text: str, names: list[str] | None = None) -> Flickr30k:
        return Flickr30k(make_dataset(tmp_path, ["a.jpg"] if names is None else names, text), "all")

    def test_known_broken_row_is_read(self, tmp_path):
        text = table(["2199200615.jpg"], 4) + BROKEN
        data = self.read(tmp_path, text, ["2199200615.jpg"])
        assert len(data.captions[0]) == 5
        assert data.captions[0][4] == "A dog runs across the grass ."

    @pytest.mark.parametrize(
        "caption",
        [
            "commas, here, and there",
            '"quoted" and "',
            "it 's an apostrophe",
            'says " and , then | a pipe',
            "4 dogs",
            "a line\u2028separator",
            "a café 🐕",
            "a tab\tinside",
        ],
    )
    def test_captions_are_literal(self, tmp_path, caption):
        assert self.read(tmp_path, f"{HEADER}a.jpg| 0| {caption}\n").captions == [[caption]]

    def test_byte_order_mark_and_windows_line_ends(self, tmp_path):
        text = "\ufeff" + (HEADER + "a.jpg| 0| one\na.jpg| 1| two\n").replace("\n", "\r\n")
        assert self.read(tmp_path, text).captions == [["one", "two"]]

    def test_spaces_blank_lines_and_missing_last_line_end(self, tmp_path):
        text = "image_name|comment_number|comment\n a.jpg |1|  two  \n\n   \na.jpg|0|one"
        assert self.read(tmp_path, text).captions == [["one", "two"]]

    def test_captions_are_sorted_by_number_and_images_by_the_file(self, tmp_path):
        text = HEADER + "b.jpg| 10| b ten\na.jpg| 1| a one\nb.jpg| 2| b two\na.jpg| 0| a zero\n"
        data = self.read(tmp_path, text, ["a.jpg", "b.jpg"])
        assert [path.name for path in data.paths] == ["b.jpg", "a.jpg"]
        assert data.captions == [["b two", "b ten"], ["a zero", "a one"]]

    @pytest.mark.parametrize("blank", ["a.jpg| 1| \n", "a.jpg| 1|\n", "a.jpg| 1|"])
    def test_blank_caption_is_dropped(self, tmp_path, blank):
        assert self.read(tmp_path, f"{HEADER}a.jpg| 0| one\n{blank}").captions == [["one"]]

    def test_image_with_only_blank_captions_raises(self, tmp_path):
        with pytest.raises(DataError) as error:
            self.read(tmp_path, HEADER + "a.jpg| 0| one\nb.jpg| 0| \n", ["a.jpg", "b.jpg"])
        check_message(error, tmp_path / "results.csv", "b.jpg")

    @pytest.mark.parametrize(
        ("row", "found"),
        [
            ("a.jpg, 1, commas", "a.jpg, 1, commas"),
            ("a.jpg| one| words", "a.jpg| one| words"),
            ("a.jpg| 1", "a.jpg| 1"),
            ("a.jpg| | no number", "a.jpg| | no number"),
            ("| 1| no name", "| 1| no name"),
            ("a.jpg", "a.jpg"),
            ("a.jpg| 1st| row", "1st"),
        ],
    )
    def test_malformed_row_raises_with_line(self, tmp_path, row, found):
        with pytest.raises(DataError) as error:
            self.read(tmp_path, f"{HEADER}a.jpg| 0| one\n\n{row}\na.jpg| 2| three\n")
        check_message(error, tmp_path / "results.csv", "line 4", found, "expected")

    def test_missing_column_raises_with_header(self, tmp_path):
        with pytest.raises(DataError) as error:
            self.read(tmp_path, "image_name| comment\na.jpg| one\n")
        check_message(error, tmp_path / "results.csv", "line 1", "comment_number", "'image_name', 'comment'")

    @pytest.mark.parametrize("header", ["", "a.jpg| 0| one"])
    def test_missing_header_raises(self, tmp_path, header):
        with pytest.raises(DataError, match="line 1: no column image_name"):
            self.read(tmp_path, header + "\n")

    def test_other_column_order_raises(self, tmp_path):
        with pytest.raises(DataError, match="line 1: the columns are comment, comment_number, image_name"):
            self.read(tmp_path, "comment| comment_number| image_name\n")

    def test_header_without_rows_raises(self, tmp_path):
        with pytest.raises(DataError, match="lists no images"):
            self.read(tmp_path, HEADER)

    def test_other_encoding_raises_with_line(self, tmp_path):
        make_dataset(tmp_path, ["a.jpg"])
        (tmp_path / "results.csv").write_bytes(HEADER.encode() + b"a.jpg| 0| one\na.jpg| 1| caf\xe9\n")
        with pytest.raises(DataError) as error:
            Flickr30k(tmp_path, "all")
        check_message(error, tmp_path / "results.csv", "line 3", "UTF-8")

    @settings(deadline=None, derandomize=True, max_examples=60)
    @given(
        captions=st.lists(
            st.text(st.characters(codec="utf-8", exclude_characters="\n\0")).map(str.strip).filter(bool), min_size=1
        )
    )
    def test_roundtrip(self, tmp_path_factory, captions):
        folder = tmp_path_factory.mktemp("any")
        rows = "".join(f"a.jpg| {k}| {caption}\n" for k, caption in enumerate(captions))
        assert self.read(folder, HEADER + rows).captions == [captions]


class TestMissingFiles:
    def test_missing_folder_raises(self, tmp_path):
        with pytest.raises(FileNotFoundError) as error:
            Flickr30k(tmp_path / "typo")
        check_message(error, tmp_path / "typo", "results.csv")

    def test_empty_folder_raises(self, tmp_path):
        with pytest.raises(DataError) as error:
            Flickr30k(tmp_path)
        check_message(error, tmp_path, "results.csv", "dataset_*.json", "image_name| comment_number| comment")

    def test_missing_images_are_counted_and_the_first_named(self, tmp_path):
        names = [f"{k}.jpg" for k in range(6)]
        make_dataset(tmp_path, names)
        for name in names[1:]:
            (tmp_path / "images" / name).unlink()
        with pytest.raises(DataError) as error:
            Flickr30k(tmp_path, "all")
        check_message(error, tmp_path, "5 of the 6", "1.jpg, 2.jpg, 3.jpg, …")

    def test_table_without_images_raises(self, tmp_path):
        (tmp_path / "results.csv").write_text(table(NAMES))
        with pytest.raises(DataError, match="3 of the 3"):
            Flickr30k(tmp_path, "all")


SPLITS = {"a.jpg": "train", "b.jpg": "restval", "c.jpg": "val", "d.jpg": "test"}


class TestKarpathySplit:
    @pytest.fixture
    def root(self, tmp_path):
        make_dataset(tmp_path, ["e.jpg", *reversed(SPLITS)])
        write_split_file(tmp_path / "dataset_mine.json", SPLITS)
        return tmp_path

    def names(self, data: Captions) -> list[str]:
        return [path.name for path in data.paths]

    def test_split_from_file_and_captions_from_table(self, root):
        assert self.names(Flickr30k(root)) == ["b.jpg", "a.jpg"]  # restval is in train; order of the table
        assert self.names(Flickr30k(root, "val")) == ["c.jpg"]
        assert self.names(Flickr30k(root, "test")) == ["d.jpg"]
        assert Flickr30k(root, "val").captions == [["caption 0 of c.jpg", "caption 1 of c.jpg"]]

    def test_images_without_split_are_counted(self, root):
        (root / "images" / "e.jpg").unlink()  # the file is not needed
        data = Flickr30k(root, "all")
        assert self.names(data) == ["d.jpg", "c.jpg", "b.jpg", "a.jpg"]
        assert data.unsplit == 1

    def test_seed_has_no_effect(self, root):
        assert self.names(Flickr30k(root, "val", seed=1)) == self.names(Flickr30k(root, "val", seed=2))

    def test_split_file_above_the_table(self, tmp_path):
        make_dataset(tmp_path / "flickr30k_images", list(SPLITS), folder="flickr30k_images")
        write_split_file(tmp_path / "dataset_flickr30k.json", SPLITS)
        assert self.names(Flickr30k(tmp_path, "test")) == ["d.jpg"]

    def test_captions_from_split_file_without_table(self, root):
        (root / "results.csv").unlink()
        write_split_file(root / "dataset_mine.json", SPLITS, captions=(" one ", "", "two"))
        data = Flickr30k(root)
        assert self.names(data) == ["a.jpg", "b.jpg"]
        assert data.captions == [["one", "two"]] * 2

    def test_split_file_of_flickr30k_is_preferred(self, root):
        write_split_file(root / "dataset_flickr30k.json", {"e.jpg": "test"})
        assert self.names(Flickr30k(root, "test")) == ["e.jpg"]

    def test_several_other_split_files_raise(self, root):
        write_split_file(root / "dataset_other.json", {"e.jpg": "test"})
        with pytest.raises(DataError) as error:
            Flickr30k(root)
        check_message(error, root, "dataset_mine.json, dataset_other.json")

    def test_split_file_of_another_dataset_raises(self, root):
        write_split_file(root / "dataset_mine.json", {"z.jpg": "test"})
        with pytest.raises(DataError) as error:
            Flickr30k(root)
        check_message(error, root / "dataset_mine.json", root / "results.csv", "none of the 5")

    def test_unknown_split_raises_with_known_ones(self, root):
        write_split_file(root / "dataset_mine.json", {"a.jpg": "restval", "c.jpg": "val"})
        for split in ("test", "dev", "", "Train"):
            with pytest.raises(ValueError, match="has train, val; 'all'") as error:
                Flickr30k(root, split)
            check_message(error, repr(split), root / "dataset_mine.json")

    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ('{"images": [\n oops]}', "line 2: is not JSON"),
            ("[]", "Karpathy's layout"),
            ('{"images": 3}', "Karpathy's layout"),
            ('{"images": []}', "lists no images"),
            ('{"images": [{"filename": "a.jpg", "split": "val"}]}', r"images\[0\]"),
            ('{"images": [{"filename": 1, "split": "val", "sentences": []}]}', r"images\[0\]"),
            ('{"images": [{"filename": "a.jpg", "split": "val", "sentences": [{"raw": 1}]}]}', r"images\[0\]"),
            ('{"images": ["a.jpg"]}', r"images\[0\]"),
        ],
    )
    def test_malformed_split_file_raises(self, root, text, expected):
        (root / "dataset_flickr30k.json").write_text(text)
        with pytest.raises(DataError, match=expected) as error:
            Flickr30k(root)
        check_message(error, root / "dataset_flickr30k.json")


class TestDrawnSplit:
    def test_order_of_rows_has_no_effect(self, tmp_path):
        names = [f"{k}.jpg" for k in range(40)]
        make_dataset(tmp_path, names)
        first = {split: {path.name for path in Flickr30k(tmp_path, split).paths} for split in ("train", "val", "test")}
        assert [len(members) for members in first.values()] == [32, 4, 4]
        assert set().union(*first.values()) == set(names)
        random.Random(0).shuffle(names)
        (tmp_path / "results.csv").write_text(table(names))
        for split, members in first.items():
            data = Flickr30k(tmp_path, split)
            assert {path.name for path in data.paths} == members
            assert [path.name for path in data.paths] == [name for name in names if name in members]
            assert data.unsplit == 0

    def test_unknown_split_raises(self, tmp_path):
        make_dataset(tmp_path, NAMES)
        with pytest.raises(
            ValueError, match=r"no split 'dev': .*results\.csv \(3 images\) has train, val, test; 'all'"
        ):
            Flickr30k(tmp_path, "dev")

    @pytest.mark.parametrize("count", [1, 2])
    def test_very_small_dataset_has_a_train_split(self, tmp_path, count):
        make_dataset(tmp_path, NAMES[:count])
        assert len(Flickr30k(tmp_path, "all")) == count
        assert len(Flickr30k(tmp_path)) == 1
        with pytest.raises(ValueError, match=r"no split 'test': .*too small for a split.*add images"):
            Flickr30k(tmp_path, "test")
        make_dataset(tmp_path, NAMES)  # the advice works
        assert len(Flickr30k(tmp_path, "test")) == 1


@functools.cache
def shared(name: str, split: str) -> Captions:
    """A split of a shared dataset, of thousands of images: read once."""
    return Flickr30k(SHARED / name, split)


@needs_shared
class TestSharedDatasets:
    @pytest.mark.parametrize(
        ("name", "counts"),
        [
            ("emoji", {"train": 5350, "val": 383}),
            ("clipart", {"train": 5580, "val": 313, "test": 340}),
        ],
    )
    def test_counts(self, name, counts):
        everything, val = shared(name, "all"), shared(name, "val")  # each takes about a second
        assert Counter(everything.splits) == counts
        assert len(everything) == sum(counts.values())
        assert len(val) == counts["val"]
        for data in (everything, val):
            assert len(data) == len(data.captions) == len(data.paths)
            assert all(
                len(texts) == 5 and all(caption == caption.strip() != "" for caption in texts)
                for texts in data.captions
            )
            assert data.unsplit == 0
            image, captions = data[len(data) // 2]
            assert image.mode == "RGB"
            assert captions == data.captions[len(data) // 2]

    def test_first_emoji(self):
        data = shared("emoji", "val")
        assert data.paths[0].name == "google_1f600.jpg"
        assert data[0][1][:2] == ["grinning face", "grinning face, cheery"]

    def test_table_and_split_file_agree(self, tmp_path):
        (tmp_path / "images").symlink_to(SHARED / "emoji" / "images")
        shutil.copy(SHARED / "emoji" / "dataset_emoji.json", tmp_path)
        split_file_only = Flickr30k(tmp_path, "val")
        both = shared("emoji", "val")
        assert [path.name for path in split_file_only.paths] == [path.name for path in both.paths]
        assert split_file_only.captions == both.captions

    def test_missing_split_raises(self):
        with pytest.raises(ValueError, match=r"no split 'test'.*has train, val"):
            Flickr30k(SHARED / "emoji", "test")
