"""StepMetrics pictures with captions: the layouts people have, the broken rows, the splits, and what goes wrong."""

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
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason=f"the shared picture sets are not at {SHARED}")


def write_pictures(folder: Path, names: list[str], size: tuple[int, int] = (4, 3)) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        Image.new("RGB", size, (200, 30, 30)).save(folder / name)


def table(names: list[str], per_picture: int = 2) -> str:
    rows = [f"{name}| {k}| caption {k} of {name}\n" for name in names for k in range(per_picture)]
    return HEADER + "".join(rows)


def make_set(root: Path, names: list[str], text: str | None = None, pictures: str = "images") -> Path:
    write_pictures(root / pictures, names)
    (root / "results.csv").write_text(table(names) if text is None else text, encoding="utf-8", newline="")
    return root


def write_split_file(path: Path, splits: dict[str, str], captions: tuple[str, ...] = ("from the split file",)) -> None:
    images = [
        {"filename": name, "split": split, "sentences": [{"raw": raw} for raw in captions]}
        for name, split in splits.items()
    ]
    path.write_text(json.dumps({"images": images}), encoding="utf-8")


def one_line(error: pytest.ExceptionInfo[BaseException], *parts: object) -> None:
    message = str(error.value)
    assert "\n" not in message
    for part in parts:
        assert str(part) in message


NAMES = ["b.jpg", "a.jpg", "c.jpg"]


class TestLayouts:
    @pytest.mark.parametrize(
        ("table_at", "pictures_at"),
        [
            ("flickr30k_images", "flickr30k_images/flickr30k_images"),  # Kaggle's, from the folder above
            (".", "flickr30k_images"),  # Kaggle's, from the folder itself
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
    def test_each_layout_reads(self, tmp_path, table_at, pictures_at):
        write_pictures(tmp_path / pictures_at, NAMES)
        (tmp_path / table_at / "results.csv").write_text(table(NAMES))
        data = Flickr30k(tmp_path, "all")
        assert [path.name for path in data.paths] == NAMES
        picture, captions = data[1]
        assert picture.mode == "RGB"
        assert picture.size == (4, 3)
        assert captions == ["caption 0 of a.jpg", "caption 1 of a.jpg"]

    def test_the_folder_with_most_of_the_pictures_is_the_one_named_as_incomplete(self, tmp_path):
        make_set(tmp_path, NAMES, pictures="images")
        write_pictures(tmp_path, ["a.jpg"])
        (tmp_path / "images" / "b.jpg").unlink()
        with pytest.raises(DataError) as error:
            Flickr30k(tmp_path, "all")
        one_line(error, tmp_path / "images", "1 of the 3", "b.jpg")

    def test_a_path_may_be_a_string_or_start_at_home(self, tmp_path, monkeypatch):
        make_set(tmp_path / "set", NAMES)
        monkeypatch.setenv("HOME", str(tmp_path))
        assert len(Flickr30k("~/set", "all")) == 3
        assert len(Flickr30k(str(tmp_path / "set"), "all")) == 3


class TestTable:
    def read(self, tmp_path: Path, text: str, names: list[str] | None = None) -> Flickr30k:
        return Flickr30k(make_set(tmp_path, ["a.jpg"] if names is None else names, text), "all")

    def test_the_known_broken_row_is_mended(self, tmp_path):
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
    def test_captions_are_taken_literally(self, tmp_path, caption):
        assert self.read(tmp_path, f"{HEADER}a.jpg| 0| {caption}\n").captions == [[caption]]

    def test_byte_order_mark_and_windows_line_ends(self, tmp_path):
        text = "\ufeff" + (HEADER + "a.jpg| 0| one\na.jpg| 1| two\n").replace("\n", "\r\n")
        assert self.read(tmp_path, text).captions == [["one", "two"]]

    def test_spaces_and_blank_lines_and_a_missing_last_line_end(self, tmp_path):
        text = "image_name|comment_number|comment\n a.jpg |1|  two  \n\n   \na.jpg|0|one"
        assert self.read(tmp_path, text).captions == [["one", "two"]]

    def test_captions_go_by_number_and_pictures_by_the_file(self, tmp_path):
        text = HEADER + "b.jpg| 10| b ten\na.jpg| 1| a one\nb.jpg| 2| b two\na.jpg| 0| a zero\n"
        data = self.read(tmp_path, text, ["a.jpg", "b.jpg"])
        assert [path.name for path in data.paths] == ["b.jpg", "a.jpg"]
        assert data.captions == [["b two", "b ten"], ["a zero", "a one"]]

    @pytest.mark.parametrize("blank", ["a.jpg| 1| \n", "a.jpg| 1|\n", "a.jpg| 1|"])
    def test_a_blank_caption_is_left_out(self, tmp_path, blank):
        assert self.read(tmp_path, f"{HEADER}a.jpg| 0| one\n{blank}").captions == [["one"]]

    def test_a_picture_with_blank_captions_only_is_named(self, tmp_path):
        with pytest.raises(DataError) as error:
            self.read(tmp_path, HEADER + "a.jpg| 0| one\nb.jpg| 0| \n", ["a.jpg", "b.jpg"])
        one_line(error, tmp_path / "results.csv", "b.jpg")

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
    def test_a_malformed_row_is_named_with_its_line(self, tmp_path, row, found):
        with pytest.raises(DataError) as error:
            self.read(tmp_path, f"{HEADER}a.jpg| 0| one\n\n{row}\na.jpg| 2| three\n")
        one_line(error, tmp_path / "results.csv", "line 4", found, "expected")

    def test_a_missing_column_is_named_with_those_found(self, tmp_path):
        with pytest.raises(DataError) as error:
            self.read(tmp_path, "image_name| comment\na.jpg| one\n")
        one_line(error, tmp_path / "results.csv", "line 1", "comment_number", "'image_name', 'comment'")

    @pytest.mark.parametrize("header", ["", "a.jpg| 0| one", "image_name,comment_number,comment"])
    def test_no_header(self, tmp_path, header):
        with pytest.raises(DataError, match="line 1: no column image_name"):
            self.read(tmp_path, header + "\n")

    def test_columns_in_another_order(self, tmp_path):
        with pytest.raises(DataError, match="line 1: the columns are comment, comment_number, image_name"):
            self.read(tmp_path, "comment| comment_number| image_name\n")

    def test_a_header_alone(self, tmp_path):
        with pytest.raises(DataError, match="names no pictures"):
            self.read(tmp_path, HEADER)

    def test_another_encoding_is_named_with_its_line(self, tmp_path):
        make_set(tmp_path, ["a.jpg"])
        (tmp_path / "results.csv").write_bytes(HEADER.encode() + b"a.jpg| 0| one\na.jpg| 1| caf\xe9\n")
        with pytest.raises(DataError) as error:
            Flickr30k(tmp_path, "all")
        one_line(error, tmp_path / "results.csv", "line 3", "UTF-8")

    @settings(deadline=None, derandomize=True, max_examples=60)
    @given(
        captions=st.lists(
            st.text(st.characters(codec="utf-8", exclude_characters="\n\0")).map(str.strip).filter(bool), min_size=1
        )
    )
    def test_any_caption_comes_back(self, tmp_path_factory, captions):
        folder = tmp_path_factory.mktemp("any")
        rows = "".join(f"a.jpg| {k}| {caption}\n" for k, caption in enumerate(captions))
        assert self.read(folder, HEADER + rows).captions == [captions]


class TestMissing:
    def test_no_such_folder(self, tmp_path):
        with pytest.raises(FileNotFoundError) as error:
            Flickr30k(tmp_path / "typo")
        one_line(error, tmp_path / "typo", "results.csv")

    def test_a_file_for_a_folder(self, tmp_path):
        make_set(tmp_path, NAMES)
        with pytest.raises(FileNotFoundError, match="a file, not a folder"):
            Flickr30k(tmp_path / "results.csv")

    def test_an_empty_folder(self, tmp_path):
        with pytest.raises(DataError) as error:
            Flickr30k(tmp_path)
        one_line(error, tmp_path, "results.csv", "dataset_*.json", "image_name| comment_number| comment")

    def test_pictures_that_are_not_there_are_counted_and_the_first_named(self, tmp_path):
        names = [f"{k}.jpg" for k in range(6)]
        make_set(tmp_path, names)
        for name in names[1:]:
            (tmp_path / "images" / name).unlink()
        with pytest.raises(DataError) as error:
            Flickr30k(tmp_path, "all")
        one_line(error, tmp_path, "5 of the 6", "1.jpg, 2.jpg, 3.jpg, …")

    def test_a_table_without_any_picture(self, tmp_path):
        (tmp_path / "results.csv").write_text(table(NAMES))
        with pytest.raises(DataError, match="3 of the 3"):
            Flickr30k(tmp_path, "all")


SPLITS = {"a.jpg": "train", "b.jpg": "restval", "c.jpg": "val", "d.jpg": "test"}


class TestKarpathySplit:
    @pytest.fixture
    def root(self, tmp_path):
        make_set(tmp_path, ["e.jpg", *reversed(SPLITS)])
        write_split_file(tmp_path / "dataset_mine.json", SPLITS)
        return tmp_path

    def names(self, data: Captions) -> list[str]:
        return [path.name for path in data.paths]

    def test_the_split_is_the_files_and_the_captions_the_tables(self, root):
        assert self.names(Flickr30k(root)) == ["b.jpg", "a.jpg"]  # restval trains; the table's order
        assert self.names(Flickr30k(root, "val")) == ["c.jpg"]
        assert self.names(Flickr30k(root, "test")) == ["d.jpg"]
        assert Flickr30k(root, "val").captions == [["caption 0 of c.jpg", "caption 1 of c.jpg"]]

    def test_pictures_that_it_lacks_are_left_out_and_counted(self, root):
        (root / "images" / "e.jpg").unlink()  # and need not be there
        data = Flickr30k(root, "all")
        assert self.names(data) == ["d.jpg", "c.jpg", "b.jpg", "a.jpg"]
        assert data.unsplit == 1

    def test_the_seed_does_not_enter(self, root):
        assert self.names(Flickr30k(root, "val", seed=1)) == self.names(Flickr30k(root, "val", seed=2))

    def test_in_the_root_above_the_table(self, tmp_path):
        make_set(tmp_path / "flickr30k_images", list(SPLITS), pictures="flickr30k_images")
        write_split_file(tmp_path / "dataset_flickr30k.json", SPLITS)
        assert self.names(Flickr30k(tmp_path, "test")) == ["d.jpg"]

    def test_without_a_table_its_captions_are_taken(self, root):
        (root / "results.csv").unlink()
        write_split_file(root / "dataset_mine.json", SPLITS, captions=(" one ", "", "two"))
        data = Flickr30k(root)
        assert self.names(data) == ["a.jpg", "b.jpg"]
        assert data.captions == [["one", "two"]] * 2

    def test_flickr30ks_is_chosen_among_several(self, root):
        write_split_file(root / "dataset_flickr30k.json", {"e.jpg": "test"})
        assert self.names(Flickr30k(root, "test")) == ["e.jpg"]

    def test_several_others_are_an_error(self, root):
        write_split_file(root / "dataset_other.json", {"e.jpg": "test"})
        with pytest.raises(DataError) as error:
            Flickr30k(root)
        one_line(error, root, "dataset_mine.json, dataset_other.json")

    def test_one_of_another_set_is_an_error(self, root):
        write_split_file(root / "dataset_mine.json", {"z.jpg": "test"})
        with pytest.raises(DataError) as error:
            Flickr30k(root)
        one_line(error, root / "dataset_mine.json", root / "results.csv", "none of the 5")

    def test_an_unknown_split_names_those_there_are(self, root):
        write_split_file(root / "dataset_mine.json", {"a.jpg": "restval", "c.jpg": "val"})
        for split in ("test", "dev", "", "Train"):
            with pytest.raises(ValueError, match="has train, val; 'all'") as error:
                Flickr30k(root, split)
            one_line(error, repr(split), root / "dataset_mine.json")

    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ('{"images": [\n oops]}', "line 2: is not JSON"),
            ("[]", "Karpathy's layout"),
            ('{"images": 3}', "Karpathy's layout"),
            ('{"images": []}', "names no pictures"),
            ('{"images": [{"filename": "a.jpg", "split": "val"}]}', r"images\[0\]"),
            ('{"images": [{"filename": 1, "split": "val", "sentences": []}]}', r"images\[0\]"),
            ('{"images": [{"filename": "a.jpg", "split": "val", "sentences": [{"raw": 1}]}]}', r"images\[0\]"),
            ('{"images": ["a.jpg"]}', r"images\[0\]"),
        ],
    )
    def test_a_malformed_file_is_named(self, root, text, expected):
        (root / "dataset_mine.json").write_text(text)
        with pytest.raises(DataError, match=expected) as error:
            Flickr30k(root)
        one_line(error, root / "dataset_mine.json")


class TestDrawnSplit:
    def test_through_the_files(self, tmp_path):
        names = [f"{k}.jpg" for k in range(40)]
        make_set(tmp_path, names)
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

    def test_an_unknown_split(self, tmp_path):
        make_set(tmp_path, NAMES)
        with pytest.raises(ValueError, match="no split 'dev': these 3 pictures have train, val, test; 'all'"):
            Flickr30k(tmp_path, "dev")

    def test_too_few_to_train_on(self, tmp_path):
        make_set(tmp_path, ["a.jpg"])
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
    def test_counts_captions_and_pictures(self, name, counts):
        for split, count in counts.items():
            data = Flickr30k(SHARED / name, split)
            assert len(data) == len(data.captions) == len(data.paths) == count
            assert all(
                len(own) == 5 and all(caption == caption.strip() != "" for caption in own) for own in data.captions
            )
            assert data.unsplit == 0
            picture, captions = data[count // 2]
            assert picture.mode == "RGB"
            assert captions == data.captions[count // 2]

    def test_the_first_emoji(self):
        data = Flickr30k(SHARED / "emoji", "val")
        assert data.paths[0].name == "google_1f600.jpg"
        assert data[0][1][:2] == ["grinning face", "grinning face, cheery"]

    def test_the_table_and_the_split_file_say_the_same(self, tmp_path):
        (tmp_path / "images").symlink_to(SHARED / "emoji" / "images")
        shutil.copy(SHARED / "emoji" / "dataset_emoji.json", tmp_path)
        alone = Flickr30k(tmp_path, "val")
        both = Flickr30k(SHARED / "emoji", "val")
        assert [path.name for path in alone.paths] == [path.name for path in both.paths]
        assert alone.captions == both.captions

    def test_a_split_that_it_does_not_hold(self):
        with pytest.raises(ValueError, match=r"no split 'test'.*has train, val"):
            Flickr30k(SHARED / "emoji", "test")


class TestCaptions:
    def test_indexing(self, tmp_path):
        write_pictures(tmp_path, NAMES)
        data = Captions([tmp_path / name for name in NAMES], [["one"], ["two"], ["three", "four"]])
        pairs: ImageCaptionDataset = data
        assert len(pairs) == 3
        assert data[-1][1] == data[2][1] == ["three", "four"]
        assert [captions for _, captions in data] == data.captions
        for index in (3, -4):
            with pytest.raises(IndexError, match="3 pictures"):
                data[index]
        assert repr(data) == "Captions(3 pictures, 4 captions)"

    def test_it_travels_to_worker_processes(self, tmp_path):
        write_pictures(tmp_path, ["a.jpg"])
        data = pickle.loads(pickle.dumps(Captions([tmp_path / "a.jpg"], [["one"]])))
        assert data[0][1] == ["one"]

    def test_what_it_returns_can_be_changed_without_harm(self, tmp_path):
        write_pictures(tmp_path, ["a.jpg"])
        data = Captions([tmp_path / "a.jpg"], [["one"]])
        data[0][1].append("two")
        assert data.captions == [["one"]]

    def test_arguments_that_do_not_fit(self):
        with pytest.raises(ValueError, match="1 paths but 2"):
            Captions([Path("a.jpg")], [["one"], ["two"]])
        with pytest.raises(TypeError, match=r"\['one'\]"):
            Captions([Path("a.jpg")], ["one"])
        with pytest.raises(ValueError, match=r"a\.jpg has no caption"):
            Captions([Path("a.jpg")], [[]])


class TestOpenPicture:
    @pytest.mark.parametrize(
        "name", ["truncated.jpg", "truncated.png", "empty.jpg", "text.jpg", "missing.jpg", "dir.jpg"]
    )
    def test_what_cannot_be_read_is_named_in_one_line(self, tmp_path, name):
        picture = Image.effect_noise((64, 64), 50)
        for whole in ("truncated.jpg", "truncated.png"):
            picture.save(tmp_path / whole)
            content = (tmp_path / whole).read_bytes()
            (tmp_path / whole).write_bytes(content[: len(content) // 2])
        (tmp_path / "empty.jpg").touch()
        (tmp_path / "text.jpg").write_text("<html>not\nfound</html>")
        (tmp_path / "dir.jpg").mkdir()
        reason = {"empty.jpg": "the file is empty", "text.jpg": "<html>", "missing.jpg": "no such file"}
        with pytest.raises(DataError) as error:
            open_image(tmp_path / name)
        one_line(error, tmp_path / name, reason.get(name, ""), "take it out")
        with pytest.raises(DataError, match=name):
            Captions([tmp_path / name], [["one"]])[0]

    def test_a_plain_jpeg_is_what_pillow_reads(self, tmp_path):
        Image.effect_noise((40, 30), 50).convert("RGB").save(tmp_path / "a.jpg")
        picture = open_image(str(tmp_path / "a.jpg"))
        assert picture.tobytes() == Image.open(tmp_path / "a.jpg").convert("RGB").tobytes()
        assert picture.resize((5, 5)).size == (5, 5)

    @pytest.mark.parametrize("orientation", range(1, 9))
    @pytest.mark.parametrize("kind", ["jpg", "png", "webp", "tif"])
    def test_the_orientation_is_applied_once(self, tmp_path, orientation, kind):
        upright = Image.new("RGB", (48, 32), "white")
        upright.paste((255, 0, 0), (0, 0, 16, 16))  # the top left corner, wherever the file's rows begin
        undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}
        stored = upright.transpose(Image.Transpose(undo[orientation])) if orientation in undo else upright
        exif = Image.Exif()
        exif[0x0112] = orientation
        path = tmp_path / f"a.{kind}"
        stored.save(path, exif=exif)
        picture = open_image(path)
        assert picture.size == (48, 32)
        assert picture.getpixel((5, 5))[1] < 60
        assert picture.getpixel((43, 27))[1] > 200
        assert picture.getexif().get(0x0112, 1) == 1

    @pytest.mark.filterwarnings("ignore:Corrupt EXIF")  # Pillow's own
    def test_broken_exif_is_passed_over(self, tmp_path):
        Image.new("RGB", (8, 8)).save(tmp_path / "a.jpg", exif=b"Exif\x00\x00MM\x00*\xff\xff\xff\xff" + b"\xff" * 20)
        assert open_image(tmp_path / "a.jpg").size == (8, 8)

    @pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "P-bytes", "RGB-key", "L-key"])
    def test_transparency_lies_over_white(self, tmp_path, mode):
        path = tmp_path / "a.png"
        if mode in {"RGBA", "LA"}:
            picture = Image.new(mode, (2, 1), (0,) * len(mode))
            picture.putpixel((1, 0), (*(0,) * (len(mode) - 1), 255))
            picture.save(path)
        elif mode.startswith("P"):
            picture = Image.new("P", (2, 1), 0)
            picture.putpalette([0, 0, 0, 0, 0, 0])
            picture.putpixel((1, 0), 1)
            picture.save(path, transparency=0 if mode == "P" else b"\x00\xff")
        else:
            own = mode[:-4]
            picture = Image.new(own, (2, 1), 0)
            picture.putpixel((1, 0), (1,) * len(own) if own == "RGB" else 1)
            picture.save(path, transparency=(0, 0, 0) if own == "RGB" else 0)
        opened = open_image(path)
        assert opened.mode == "RGB"
        assert opened.getpixel((0, 0)) == (255, 255, 255)
        assert max(opened.getpixel((1, 0))) <= 1

    def test_half_transparent_is_half_white(self, tmp_path):
        Image.new("RGBA", (1, 1), (255, 0, 0, 128)).save(tmp_path / "a.png")
        assert open_image(tmp_path / "a.png").getpixel((0, 0)) == (255, 127, 127)

    def test_grey_of_16_bits_is_scaled(self, tmp_path):
        picture = Image.new("I;16", (3, 1))
        for x, value in enumerate((0, 32768, 65535)):
            picture.putpixel((x, 0), value)
        picture.save(tmp_path / "a.png")
        picture.save(tmp_path / "a.tif")
        picture.save(tmp_path / "key.png", transparency=40_000)
        for name in ("a.png", "a.tif", "key.png"):
            opened = open_image(tmp_path / name)
            assert [opened.getpixel((x, 0))[0] for x in range(3)] == [0, 128, 255]

    @pytest.mark.parametrize("white", [1.0, 255.0])
    def test_grey_of_floats_is_scaled(self, tmp_path, white):
        picture = Image.new("F", (2, 1), white)
        picture.putpixel((0, 0), 0.0)
        picture.save(tmp_path / "a.tif")
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

    def test_the_first_of_several_frames(self, tmp_path):
        frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
        frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
        assert open_image(tmp_path / "a.gif").getpixel((0, 0)) == (255, 0, 0)
