"""CSV and TSV tables; errors have the line."""

import contextlib
import csv
import io

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image

from miniclip.data import Captions
from miniclip.data.formats.cells import read_cell
from miniclip.data.formats.rows import MAX_CAPTION_LENGTH
from miniclip.errors import DataError
from tests.data.formats.helpers import CAPTION, error_of, names, skipped


class TestCsv:
    @settings(max_examples=60)
    @given(rows=st.lists(st.tuples(st.sampled_from("abcd"), CAPTION), min_size=1), separator=st.sampled_from(",\t;|"))
    def test_roundtrip(self, folder, rows, separator):
        assume(all(read_cell(caption) == ([caption], None) for _, caption in rows))  # no lists
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

    def test_cells_may_hold_texts_and_lists(self, read):
        assert read("image,caption\na.jpg,['one']\nb.jpg,two\n").captions == [["one"], ["two"]]

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

    ROWS = ("a.jpg|one", 'b.jpg|"two, of 19', "c.jpg|three", 'd.jpg|a monitor of 19"')

    @pytest.mark.parametrize("columns", [("image", "caption"), ("caption", "image")])
    def test_lone_quote_does_not_swallow_the_next_rows(self, read, columns):
        order = 1 if columns[0] == "image" else -1
        text = "\n".join(";".join(row.split("|")[::order]) for row in ("image|caption", *self.ROWS)) + "\n"
        message = error_of(read, text)
        assert "line 3: a double quote is opened, and not closed before the row of 'c.jpg'" in message
        assert names(skipped(read, text)) == ["a.jpg", "c.jpg", "d.jpg"]

    def test_two_lone_quotes_in_tsv_are_literal(self, read):
        text = "\n".join(row.replace("|", "\t") for row in ("image|caption", *self.ROWS)) + "\n"
        captions = ["one", '"two, of 19', "three", 'a monitor of 19"']
        assert read(text, "x.tsv").captions == [[caption] for caption in captions]

    def test_quoted_captions_may_have_several_lines(self, read):
        text = 'image;caption\na.jpg;"a poem\nof two; lines, b.jpg"\nb.jpg;two\n'
        assert read(text).captions == [["a poem\nof two; lines, b.jpg"], ["two"]]

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
        with pytest.raises(FileNotFoundError, match="no such file"):
            Captions.from_csv(tmp_path / "no.csv")
        with pytest.raises(FileNotFoundError, match="a device; expected a regular file"):
            Captions.from_csv("/dev/null")
        with pytest.raises(FileNotFoundError, match="a directory"):
            Captions.from_csv(tmp_path)

    @given(content=st.binary(max_size=200))
    def test_any_bytes_are_read_or_raise_data_error(self, folder, content):
        (folder / "any.csv").write_bytes(b"image,caption\na.jpg,one\n" + content)
        with contextlib.suppress(DataError):
            assert names(skipped(Captions.from_csv, folder / "any.csv", max_skip_fraction=1.0))[0] == "a.jpg"
