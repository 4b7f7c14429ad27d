"""Tables of paths and captions: CSV, TSV, JSONL and parquet; errors have the line."""

import contextlib
import csv
import io
import json
import pickle
import warnings
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from miniclip.data import Captions
from miniclip.data.formats.columns import ColumnNames, choose_columns, parse_list
from miniclip.data.formats.rows import MAX_CAPTION_LENGTH
from miniclip.errors import DataError

TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\0"))
CAPTION = TEXT.map(str.strip).filter(bool)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Folder with four images, a.jpg to d.jpg; tables are written beside them."""
    root = tmp_path_factory.mktemp("tables")
    for name in "abcd":
        Image.new("RGB", (4, 3), (200, 30, 30)).save(root / f"{name}.jpg")
    return root


@pytest.fixture
def read(folder):
    """Write a table beside the images and read it."""

    def write_and_read(content: str | bytes, name: str = "table.csv", **options):
        path = folder / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        reader = Captions.from_jsonl if path.suffix in {".jsonl", ".json"} else Captions.from_csv
        return reader(path, **options)

    return write_and_read


def names(data) -> list[str]:
    return [path.name for path in data.paths]


def error_of(call, *arguments, **options) -> str:
    with pytest.raises(DataError) as error:
        call(*arguments, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


def skipped(call, *arguments, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return call(*arguments, on_error="skip", max_skip_fraction=options.pop("max_skip_fraction", 0.9), **options)


class TestCsv:
    @settings(max_examples=60)
    @given(rows=st.lists(st.tuples(st.sampled_from("abcd"), CAPTION), min_size=1), separator=st.sampled_from(",\t;|"))
    def test_roundtrip(self, folder, rows, separator):
        if all(parse_list(caption) is not None for _, caption in rows):
            return  # a column of lists
        file = io.StringIO(newline="")
        writer = csv.writer(file, delimiter=separator)
        writer.writerows([("image", "caption"), *((f"{name}.jpg", caption) for name, caption in rows)])
        (folder / "any.csv").write_text(file.getvalue(), encoding="utf-8", newline="")
        data = Captions.from_csv(folder / "any.csv")
        expected: dict[str, list[str]] = {}
        for name, caption in rows:
            expected.setdefault(f"{name}.jpg", []).append(caption)
        assert dict(zip(names(data), data.captions, strict=True)) == expected

    def test_rows_of_one_image_are_grouped(self, read):
        data = read("image,caption\nb.jpg,one\na.jpg,two\nb.jpg,three\n")
        assert names(data) == ["b.jpg", "a.jpg"]
        assert data.captions == [["one", "three"], ["two"]]
        assert data[1][0].size == (4, 3)
        assert "separated by comma, images from 'image', captions from 'caption'" in data.about

    @pytest.mark.parametrize("separator", [",", "\t", ";", "|"])
    @pytest.mark.parametrize("name", ["x.csv", "x.tsv", "x.txt"])
    def test_separator_is_detected_from_first_line(self, read, separator, name):
        text = "\n".join(
            separator.join(row) for row in [("filepath", "title"), ("a.jpg", "says: one"), ("b.jpg", "two")]
        )
        assert read(text, name).captions == [["says: one"], ["two"]]

    def test_chosen_columns(self, read):
        text = "id,bild,what,where\n1,a.jpg,a dog,here\n2,b.jpg,a cat,there\n"
        assert read(text, image="bild", caption="what").captions == [["a dog"], ["a cat"]]
        assert read(text, image="bild", caption=["what", "where"]).captions == [["a dog", "here"], ["a cat", "there"]]

    def test_missing_column_raises(self, read):
        message = error_of(read, "id,image,what\n1,a.jpg,a dog\n")
        assert "found the columns 'id', 'image', 'what', and none with a usual name for the captions" in message
        assert "caption=" in message
        assert "'what'" in error_of(read, "id,image,what\n1,a.jpg,a dog\n", caption="wat")
        assert "for the images" in error_of(read, "a.jpg,a dog\nb.jpg,a cat\n")  # no header

    def test_duplicate_column_raises(self, read):
        assert "two columns are called 'caption'" in error_of(read, "image,caption,caption\na.jpg,one,two\n")

    def test_folder_is_not_an_image(self, read):
        assert "1 of the 1 images" in error_of(read, "image,caption\n.,one\n")

    def test_captions_in_numbered_columns(self, read):
        data = read("file_name,caption_0,caption_1\na.jpg,one,two\nb.jpg,three,\n")
        assert data.captions == [["one", "two"], ["three"]]

    @pytest.mark.parametrize("cell", ['"[""one"", ""two""]"', "\"['one', 'two']\""])
    def test_lists_in_cells(self, read, cell):
        assert read(f"image,raw\na.jpg,{cell}\n").captions == [["one", "two"]]

    def test_brackets_are_text_unless_all_cells_are_lists(self, read):
        assert read("image,caption\na.jpg,['one']\nb.jpg,two\n").captions == [["['one']"], ["two"]]

    def test_numbers_are_text(self, read):
        assert read("image,caption\na.jpg,12\nb.jpg,0.50\n").captions == [["12"], ["0.50"]]

    def test_blank_captions_are_dropped_and_an_image_without_captions_raises(self, read):
        text = "image,caption\na.jpg,one\na.jpg,  \nb.jpg,\n"
        assert "line 4: b.jpg: has no caption" in error_of(read, text)
        data = skipped(read, text)
        assert data.captions == [["one"]]
        assert len(data.skip_log) == 1

    def test_missing_image_raises_or_is_skipped(self, read, folder):
        text = "image,caption\na.jpg,one\nno.jpg,two\nb.jpg,three\n"
        assert "1 of the 3 images with captions are missing from" in error_of(read, text)
        data = skipped(read, text)
        assert names(data) == ["a.jpg", "b.jpg"]
        assert list(data.skip_log.reasons) == [str(folder / "no.jpg")]
        assert "line 3" in data.skip_log.reasons[str(folder / "no.jpg")]

    def test_too_many_missing_images_raise(self, read):
        with pytest.warns(UserWarning, match="no.jpg"), pytest.raises(DataError, match="1 of 2 cannot be used"):
            read("image,caption\na.jpg,one\nno.jpg,two\n", on_error="skip")

    @pytest.mark.parametrize("url", ["https://example.org/a.jpg", "s3://bucket/a.jpg", "data:image/png;base64,AAAA"])
    def test_urls_raise(self, read, url):
        message = error_of(read, f'url,caption\n"{url}",one\n')
        assert "line 2" in message
        assert "img2dataset" in message

    def test_paths_with_backslashes_spaces_and_umlauts(self, tmp_path):
        (tmp_path / "drei Bäume").mkdir()
        Image.new("RGB", (4, 3)).save(tmp_path / "drei Bäume" / "ä 1.jpg")
        (tmp_path / "t.csv").write_text("image,caption\ndrei Bäume\\ä 1.jpg,one\n", encoding="utf-8")
        assert Captions.from_csv(tmp_path / "t.csv")[0][1] == ["one"]

    def test_images_in_a_usual_folder(self, tmp_path):
        (tmp_path / "images").mkdir()
        Image.new("RGB", (4, 3)).save(tmp_path / "images" / "a.jpg")
        (tmp_path / "t.csv").write_text("image,caption\na.jpg,one\n")
        assert Captions.from_csv(tmp_path / "t.csv").paths == [tmp_path / "images" / "a.jpg"]

    def test_moved_dataset_with_absolute_paths_keeps_its_split(self, tmp_path):
        splits = []
        for place in ("here", "there"):
            root = tmp_path / place
            root.mkdir()
            for k in range(20):
                Image.new("RGB", (1, 1)).save(root / f"{k}.png")
            (root / "t.csv").write_text("image,caption\n" + "".join(f"{root / f'{k}.png'},{k}\n" for k in range(20)))
            splits.append(Captions.from_csv(root / "t.csv", split="val").captions)
        assert splits[0] == splits[1]

    def test_split_column(self, read):
        text = "image,caption,split\na.jpg,one,train\nb.jpg,two,validation\nc.jpg,three,train\n"
        assert names(read(text, split="val")) == ["b.jpg"]
        assert names(read(text, split="train")) == ["a.jpg", "c.jpg"]
        with pytest.raises(ValueError, match="has train, val; 'all'"):
            read(text, split="test")
        assert "line 3: a.jpg has the split 'train' in" in error_of(
            read, "image,caption,split\na.jpg,1,train\na.jpg,2,test\n"
        )


class TestBrokenCsv:
    def test_last_column_may_hold_the_separator(self, read):
        assert read("image,caption\na.jpg,one, two, three\n").captions == [["one, two, three"]]
        assert read("image,caption,,\na.jpg,one,,\n".replace(",,\n", "\n", 1)).captions == [["one"]]

    def test_wrong_number_of_fields_raises(self, read):
        message = error_of(read, "caption,image\none, two,a.jpg\n")
        assert "line 2: found 3 fields, separated by comma, expected 2" in message
        assert "line 3: found 1 fields" in error_of(read, "image,caption\na.jpg,one\nb.jpg\n")

    @pytest.mark.parametrize(
        ("row", "reason"),
        [('b.jpg,"two', "opened and never closed"), ('b.jpg,"two" three', "after a closing double quote")],
    )
    def test_unpaired_quotes(self, read, row, reason):
        text = f"image,caption\na.jpg,one\n{row}\nc.jpg,three\nd.jpg,four\n"
        message = error_of(read, text)
        assert "line 3: " in message
        assert reason in message
        data = skipped(read, text)
        assert names(data) == ["a.jpg", "c.jpg", "d.jpg"]
        assert len(data.skip_log) == 1

    def test_lone_quotes_in_tsv_are_literal(self, read):
        data = read('image\tcaption\na.jpg\t"one\nb.jpg\t"two" three\n', "x.tsv")
        assert data.captions == [['"one'], ['"two" three']]

    @pytest.mark.parametrize("length", [MAX_CAPTION_LENGTH + 1, 200_000])
    def test_long_caption(self, read, length):
        text = f"image,caption\na.jpg,one\nb.jpg,{'x' * length}\n"
        message = error_of(read, text)
        assert "line 3: " in message
        assert "characters" in message
        assert len(message) < 400
        assert names(skipped(read, text)) == ["a.jpg"]
        assert len(read(f"image,caption\na.jpg,{'x' * MAX_CAPTION_LENGTH}\n").captions[0][0]) == MAX_CAPTION_LENGTH

    def test_nul_bytes(self, read):
        text = "image,caption\na.jpg,one\nb.jpg,t\0wo\n"
        assert "line 3: the caption holds a NUL byte" in error_of(read, text)
        assert names(skipped(read, text)) == ["a.jpg"]
        assert "line 1: holds NUL bytes; if the file is UTF-16" in error_of(read, text.encode("utf-16-le"))

    @pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
    def test_byte_order_marks(self, read, encoding):
        assert read("image,caption\na.jpg,ein Bär 🐻\n".encode(encoding)).captions == [["ein Bär 🐻"]]

    def test_other_encoding_raises_with_line_and_byte(self, read):
        content = "image,caption\na.jpg,one\nb.jpg,caf\xe9\n".encode("latin-1")
        message = error_of(read, content)
        assert "line 3: byte b'\\xe9' (at 33) is not UTF-8" in message
        data = skipped(read, content)
        assert names(data) == ["a.jpg"]
        assert "b'\\xe9' is not UTF-8" in next(iter(data.skip_log.reasons.values()))

    @pytest.mark.parametrize("content", ["", "\n", "image,caption\n"])
    def test_empty_table_raises(self, read, content):
        error_of(read, content)

    def test_missing_file_raises(self, tmp_path):
        with pytest.raises(FileNotFoundError, match="does not exist"):
            Captions.from_csv(tmp_path / "no.csv")
        with pytest.raises(FileNotFoundError, match="not a regular file"):
            Captions.from_csv("/dev/null")
        with pytest.raises(FileNotFoundError, match="a folder"):
            Captions.from_csv(tmp_path)

    @given(content=st.binary(max_size=200))
    def test_any_bytes_are_read_or_raise_data_error(self, folder, content):
        (folder / "any.csv").write_bytes(b"image,caption\na.jpg,one\n" + content)
        with contextlib.suppress(DataError):
            assert names(skipped(Captions.from_csv, folder / "any.csv", max_skip_fraction=1.0))[0] == "a.jpg"


class TestJsonLines:
    @given(rows=st.lists(st.tuples(st.sampled_from("abcd"), st.lists(CAPTION, min_size=1)), min_size=1))
    @pytest.mark.parametrize("whole", [False, True])
    def test_roundtrip(self, folder, rows, whole):
        objects = [{"image": f"{name}.jpg", "caption": texts if len(texts) > 1 else texts[0]} for name, texts in rows]
        text = json.dumps(objects) if whole else "\n".join(json.dumps(row, ensure_ascii=False) for row in objects)
        (folder / "any.jsonl").write_text(text, encoding="utf-8", newline="")
        data = Captions.from_jsonl(folder / "any.jsonl")
        expected: dict[str, list[str]] = {}
        for name, texts in rows:
            expected.setdefault(f"{name}.jpg", []).extend(texts)
        assert dict(zip(names(data), data.captions, strict=True)) == expected

    def test_chosen_keys(self, read):
        data = read('{"f": "a.jpg", "t": ["one", 2, null, " "]}\n\n', "x.jsonl", image="f", caption="t")
        assert data.captions == [["one", "2"]]

    @pytest.mark.parametrize(
        ("line", "reason"),
        [
            ('{"image": "b.jpg", "caption": ', "is not JSON"),
            ("[" * 100_000, "is not JSON"),
            ('"b.jpg"', "expected an object"),
            ('{"image": "b.jpg", "text": "two"}', "has no 'caption'; found 'image', 'text'"),
            ('{"image": 7, "caption": "two"}', "'image' is '7', a int; expected a path"),
            ('{"image": "b.jpg", "caption": true}', "the caption is 'True', a bool; expected text"),
            ('{"image": "b.jpg", "caption": {"en": "two"}}', "a dict; expected text"),
            ('{"image": "b.jpg", "caption": "\\ud83d"}', "half a surrogate pair"),
            ('{"image": "b.jpg", "caption": "a\\u0000b"}', "NUL"),
            ('{"image": "", "caption": "two"}', "names no image"),
            ('{"image": "http://x/b.jpg", "caption": "two"}', "img2dataset"),
        ],
    )
    def test_bad_line_raises_or_is_skipped(self, read, line, reason):
        text = f'{{"image": "a.jpg", "caption": "one"}}\n{line}\n'
        message = error_of(read, text, "x.jsonl")
        assert "line 2: " in message
        assert reason in message
        data = skipped(read, text, "x.jsonl")
        assert names(data) == ["a.jpg"]
        assert len(data.skip_log) == 1

    def test_line_separator_inside_a_caption(self, read):
        assert read('{"image": "a.jpg", "caption": "one\u2028two\x85"}', "x.jsonl").captions == [["one\u2028two"]]


class TestColumns:
    @pytest.mark.parametrize(
        ("header", "image", "captions", "split"),
        [
            (["image", "caption"], "image", ("caption",), None),
            (["raw", "sentids", "split", "filename", "img_id"], "filename", ("raw",), "split"),  # the Hub's Flickr30k
            (["image", "caption", "sentids", "img_id", "filename"], "image", ("caption",), None),
            (["title", "filepath"], "filepath", ("title",), None),  # open_clip's
            (["image_name", "comment_number", "comment"], "image_name", ("comment",), None),
            (["Image Name ", "file_name", "Text"], "file_name", ("Text",), None),
        ],
    )
    def test_usual_names(self, header, image, captions, split):
        columns = choose_columns("t", header, ColumnNames())
        assert (columns.image, columns.captions, columns.split) == (image, captions, split)


class TestParquet:
    @pytest.fixture
    def write(self, folder):
        pa = pytest.importorskip("pyarrow")
        from pyarrow import parquet

        def write(name: str, row_group_size: int = 2, **columns):
            path = folder / name
            parquet.write_table(pa.table(columns), path, row_group_size=row_group_size)
            return path

        return write

    def encode_image(self, value: int) -> bytes:
        file = io.BytesIO()
        Image.new("RGB", (8, 8), (value, value, value)).save(file, "PNG")
        return file.getvalue()

    @settings(max_examples=25)
    @given(rows=st.lists(st.tuples(st.sampled_from("abcd"), st.lists(CAPTION, min_size=1)), min_size=1))
    def test_roundtrip(self, folder, rows):
        pa = pytest.importorskip("pyarrow")
        from pyarrow import parquet

        table = pa.table({"image": [f"{name}.jpg" for name, _ in rows], "caption": [texts for _, texts in rows]})
        parquet.write_table(table, folder / "any.parquet")
        data = Captions.from_parquet(folder / "any.parquet")
        expected: dict[str, list[str]] = {}
        for name, texts in rows:
            expected.setdefault(f"{name}.jpg", []).extend(texts)
        assert dict(zip(names(data), data.captions, strict=True)) == expected

    def test_stored_images_as_bytes_or_structs(self, write):
        images = [self.encode_image(value) for value in (0, 50, 100, 150, 200)]
        captions = ["one", "two", "three", "four", "five"]
        as_bytes = Captions.from_parquet(write("b.parquet", image=images, caption=captions))
        structs = [{"bytes": image, "path": None} for image in images]
        as_structs = Captions.from_parquet(write("s.parquet", image=structs, caption=captions))
        for data in (as_bytes, as_structs, pickle.loads(pickle.dumps(as_structs))):
            assert data.captions == [[caption] for caption in captions]
            for index in (4, 0, 2, 1, 3, -1):
                assert data[index][0].getpixel((0, 0)) == ((index % 5) * 50,) * 3
        assert data.name(3).endswith("s.parquet, row 3")
        assert data.encoded(1) == images[1]

    def test_rows_of_one_stored_image_are_grouped(self, write):
        image = self.encode_image(9)
        path = write("n.parquet", image=[image] * 3, text=["one", "two", "three"], image_id=[7, 7, 8])
        assert Captions.from_parquet(path).captions == [["one", "two"], ["three"]]

    def test_struct_with_path_or_without_image(self, write, folder):
        structs = [{"bytes": None, "path": "a.jpg"}, {"bytes": None, "path": None}, {"bytes": None, "path": "no.jpg"}]
        data = Captions.from_parquet(write("p.parquet", image=structs, caption=["one", "two", "three"]))
        assert data[0][0].size == (4, 3)
        assert "row 1: holds no image" in error_of(data.__getitem__, 1)
        assert "no.jpg" in error_of(data.__getitem__, 2)

    def test_numbers_and_nan_captions(self, write):
        path = write("m.parquet", image=["a.jpg", "b.jpg", "c.jpg"], caption=[1.5, 2.0, float("nan")])
        assert "row 2: c.jpg: has no caption" in error_of(Captions.from_parquet, path)
        assert skipped(Captions.from_parquet, path).captions == [["1.5"], ["2.0"]]

    def test_missing_parquet_column_raises(self, write):
        path = write("c.parquet", bild=["a.jpg"], caption=["one"])
        assert "found the columns 'bild', 'caption'" in error_of(Captions.from_parquet, path)
        assert Captions.from_parquet(path, image="bild").captions == [["one"]]

    def test_damaged_file_raises(self, write):
        path = write("d.parquet", image=["a.jpg"], caption=["one"])
        path.write_bytes(path.read_bytes()[:-20])
        assert "cannot be read as parquet" in error_of(Captions.from_parquet, path)
        path.write_bytes(b"")
        assert "cannot be read as parquet" in error_of(Captions.from_parquet, path)

    def test_split_from_shard_names(self, write, folder):
        for name, first in (("train-00000-of-00002", 0), ("train-00001-of-00002", 2), ("validation-00000-of-00001", 4)):
            (folder / "hub").mkdir(exist_ok=True)
            images = [self.encode_image(value) for value in (first, first + 1)]
            write(f"hub/{name}.parquet", image=images, caption=[f"{first}", f"{first + 1}"], image_id=[0, 1 + first])
        train = Captions.from_parquet(folder / "hub", split="train")
        assert train.captions == [
            ["0", "2"],
            ["1"],
            ["3"],
        ]  # image 0 of both train shards is the same, that of validation another
        assert Captions.from_parquet(folder / "hub", split="val").captions == [["4"], ["5"]]
        assert "and 2 more files" in train.about
