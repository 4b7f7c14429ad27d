"""Flickr30k layouts: folders, broken rows, splits and errors; and the decoding of their images."""

import json
import pickle
import random
import shutil
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from miniclip.data import Captions, Flickr30k, ImageCaptionDataset
from miniclip.data.decoding import open_image
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

    @pytest.mark.parametrize("header", ["", "a.jpg| 0| one", "image_name,comment_number,comment"])
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

    def test_file_instead_of_folder_raises(self, tmp_path):
        make_dataset(tmp_path, NAMES)
        with pytest.raises(FileNotFoundError, match="a file, not a folder"):
            Flickr30k(tmp_path / "results.csv")

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
        (root / "dataset_mine.json").write_text(text)
        with pytest.raises(DataError, match=expected) as error:
            Flickr30k(root)
        check_message(error, root / "dataset_mine.json")


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

    def test_single_image_has_no_train_split(self, tmp_path):
        make_dataset(tmp_path, ["a.jpg"])
        assert len(Flickr30k(tmp_path, "all")) == 1
        with pytest.raises(ValueError, match="no split 'train'"):
            Flickr30k(tmp_path)


@needs_shared
class TestSharedSets:
    @pytest.mark.parametrize(
        ("name", "counts"),
        [
            ("emoji", {"train": 5350, "val": 383, "all": 5733}),
            ("clipart", {"train": 5580, "val": 313, "test": 340, "all": 6233}),
        ],
    )
    def test_counts(self, name, counts):
        for split, count in counts.items():
            data = Flickr30k(SHARED / name, split)
            assert len(data) == len(data.captions) == len(data.paths) == count
            assert all(
                len(texts) == 5 and all(caption == caption.strip() != "" for caption in texts)
                for texts in data.captions
            )
            assert data.unsplit == 0
            image, captions = data[count // 2]
            assert image.mode == "RGB"
            assert captions == data.captions[count // 2]

    def test_first_emoji(self):
        data = Flickr30k(SHARED / "emoji", "val")
        assert data.paths[0].name == "google_1f600.jpg"
        assert data[0][1][:2] == ["grinning face", "grinning face, cheery"]

    def test_table_and_split_file_agree(self, tmp_path):
        (tmp_path / "images").symlink_to(SHARED / "emoji" / "images")
        shutil.copy(SHARED / "emoji" / "dataset_emoji.json", tmp_path)
        split_file_only = Flickr30k(tmp_path, "val")
        both = Flickr30k(SHARED / "emoji", "val")
        assert [path.name for path in split_file_only.paths] == [path.name for path in both.paths]
        assert split_file_only.captions == both.captions

    def test_missing_split_raises(self):
        with pytest.raises(ValueError, match=r"no split 'test'.*has train, val"):
            Flickr30k(SHARED / "emoji", "test")


class TestCaptions:
    def test_indexing(self, tmp_path):
        write_images(tmp_path, NAMES)
        data = Captions([tmp_path / name for name in NAMES], [["one"], ["two"], ["three", "four"]])
        pairs: ImageCaptionDataset = data
        assert len(pairs) == 3
        assert data[-1][1] == data[2][1] == ["three", "four"]
        assert [captions for _, captions in data] == data.captions
        for index in (3, -4):
            with pytest.raises(IndexError, match="3 images"):
                data[index]
        assert repr(data) == "Captions(3 images, 4 captions)"

    def test_can_be_pickled(self, tmp_path):
        write_images(tmp_path, ["a.jpg"])
        data = pickle.loads(pickle.dumps(Captions([tmp_path / "a.jpg"], [["one"]])))
        assert data[0][1] == ["one"]

    def test_returned_captions_are_a_copy(self, tmp_path):
        write_images(tmp_path, ["a.jpg"])
        data = Captions([tmp_path / "a.jpg"], [["one"]])
        data[0][1].append("two")
        assert data.captions == [["one"]]

    def test_invalid_arguments_raise(self):
        with pytest.raises(ValueError, match="1 paths but 2"):
            Captions([Path("a.jpg")], [["one"], ["two"]])
        with pytest.raises(TypeError, match=r"\['one'\]"):
            Captions([Path("a.jpg")], ["one"])
        with pytest.raises(ValueError, match=r"a\.jpg has no caption"):
            Captions([Path("a.jpg")], [[]])


class TestOpenImage:
    @pytest.mark.parametrize(
        "name", ["truncated.jpg", "truncated.png", "empty.jpg", "text.jpg", "missing.jpg", "dir.jpg"]
    )
    def test_unreadable_file_raises_in_one_line(self, tmp_path, name):
        image = Image.effect_noise((64, 64), 50)
        for whole in ("truncated.jpg", "truncated.png"):
            image.save(tmp_path / whole)
            content = (tmp_path / whole).read_bytes()
            (tmp_path / whole).write_bytes(content[: len(content) // 2])
        (tmp_path / "empty.jpg").touch()
        (tmp_path / "text.jpg").write_text("<html>not\nfound</html>")
        (tmp_path / "dir.jpg").mkdir()
        reason = {"empty.jpg": "the file is empty", "text.jpg": "<html>", "missing.jpg": "no such file"}
        with pytest.raises(DataError) as error:
            open_image(tmp_path / name)
        check_message(error, tmp_path / name, reason.get(name, ""), "take it out")
        with pytest.raises(DataError, match=name):
            Captions([tmp_path / name], [["one"]])[0]

    def test_jpeg_equals_pillow(self, tmp_path):
        Image.effect_noise((40, 30), 50).convert("RGB").save(tmp_path / "a.jpg")
        image = open_image(str(tmp_path / "a.jpg"))
        assert image.tobytes() == Image.open(tmp_path / "a.jpg").convert("RGB").tobytes()
        assert image.resize((5, 5)).size == (5, 5)

    @pytest.mark.parametrize("orientation", range(1, 9))
    @pytest.mark.parametrize("kind", ["jpg", "png", "webp", "tif"])
    def test_orientation_is_applied_once(self, tmp_path, orientation, kind):
        upright = Image.new("RGB", (48, 32), "white")
        upright.paste((255, 0, 0), (0, 0, 16, 16))  # the top left corner of the upright image
        undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}
        stored = upright.transpose(Image.Transpose(undo[orientation])) if orientation in undo else upright
        exif = Image.Exif()
        exif[0x0112] = orientation
        path = tmp_path / f"a.{kind}"
        stored.save(path, exif=exif)
        image = open_image(path)
        assert image.size == (48, 32)
        assert image.getpixel((5, 5))[1] < 60
        assert image.getpixel((43, 27))[1] > 200
        assert image.getexif().get(0x0112, 1) == 1

    @pytest.mark.filterwarnings("ignore:Corrupt EXIF")  # from Pillow
    def test_broken_exif_is_ignored(self, tmp_path):
        Image.new("RGB", (8, 8)).save(tmp_path / "a.jpg", exif=b"Exif\x00\x00MM\x00*\xff\xff\xff\xff" + b"\xff" * 20)
        assert open_image(tmp_path / "a.jpg").size == (8, 8)

    @pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "P-bytes", "RGB-key", "L-key"])
    def test_transparency_becomes_white(self, tmp_path, mode):
        path = tmp_path / "a.png"
        if mode in {"RGBA", "LA"}:
            image = Image.new(mode, (2, 1), (0,) * len(mode))
            image.putpixel((1, 0), (*(0,) * (len(mode) - 1), 255))
            image.save(path)
        elif mode.startswith("P"):
            image = Image.new("P", (2, 1), 0)
            image.putpalette([0, 0, 0, 0, 0, 0])
            image.putpixel((1, 0), 1)
            image.save(path, transparency=0 if mode == "P" else b"\x00\xff")
        else:
            base_mode = mode[:-4]
            image = Image.new(base_mode, (2, 1), 0)
            image.putpixel((1, 0), (1,) * 3 if base_mode == "RGB" else 1)
            image.save(path, transparency=(0, 0, 0) if base_mode == "RGB" else 0)
        opened = open_image(path)
        assert opened.mode == "RGB"
        assert opened.getpixel((0, 0)) == (255, 255, 255)
        assert max(opened.getpixel((1, 0))) <= 1

    def test_half_transparent_becomes_half_white(self, tmp_path):
        Image.new("RGBA", (1, 1), (255, 0, 0, 128)).save(tmp_path / "a.png")
        assert open_image(tmp_path / "a.png").getpixel((0, 0)) == (255, 127, 127)

    def test_16_bit_grey_is_scaled(self, tmp_path):
        image = Image.new("I;16", (3, 1))
        for x, value in enumerate((0, 32768, 65535)):
            image.putpixel((x, 0), value)
        image.save(tmp_path / "a.png")
        image.save(tmp_path / "a.tif")
        image.save(tmp_path / "key.png", transparency=40_000)
        for name in ("a.png", "a.tif", "key.png"):
            opened = open_image(tmp_path / name)
            assert [opened.getpixel((x, 0))[0] for x in range(3)] == [0, 128, 255]

    @pytest.mark.parametrize("white", [1.0, 255.0])
    def test_float_grey_is_scaled(self, tmp_path, white):
        image = Image.new("F", (2, 1), white)
        image.putpixel((0, 0), 0.0)
        image.save(tmp_path / "a.tif")
        opened = open_image(tmp_path / "a.tif")
        assert [opened.getpixel((x, 0)) for x in range(2)] == [(0, 0, 0), (255, 255, 255)]

    @pytest.mark.parametrize(
        ("mode", "kind"), [("L", "jpg"), ("CMYK", "jpg"), ("1", "png"), ("P", "gif"), ("YCbCr", "jpg")]
    )
    def test_other_modes_become_rgb(self, tmp_path, mode, kind):
        Image.new("RGB", (8, 8), "white").convert(mode).save(tmp_path / f"a.{kind}")
        opened = open_image(tmp_path / f"a.{kind}")
        assert opened.mode == "RGB"
        assert min(opened.getpixel((4, 4))) > 250

    def test_first_frame_is_read(self, tmp_path):
        frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
        frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
        assert open_image(tmp_path / "a.gif").getpixel((0, 0)) == (255, 0, 0)
