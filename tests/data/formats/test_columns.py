"""Columns of a table by their usual names."""

import pytest

from miniclip.data import Captions, open_data
from miniclip.data.formats.columns import ColumnNames, choose_columns
from miniclip.errors import DataError


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
def test_usual_names(header, image, captions, split):
    columns = choose_columns("t", header, ColumnNames())
    assert (columns.image, columns.captions, columns.split) == (image, captions, split)


@pytest.mark.parametrize(
    ("header", "captions"),
    [
        (["image", "caption", "caption_1", "caption_2"], ("caption", "caption_1", "caption_2")),
        (["image", "caption_2", "Caption"], ("Caption", "caption_2")),
        (["image", "title", "title 2", "alt"], ("title", "title 2")),
        (["image", "text1", "text2"], ("text1", "text2")),
        (["image", "captions", "caption"], ("caption", "captions")),
        (["image", "sentences", "sentence-1"], ("sentences", "sentence-1")),
    ],
)
def test_numbered_columns_are_read_with_the_first(header, captions):
    assert choose_columns("t", header, ColumnNames()).captions == captions


@pytest.mark.parametrize(
    "header",
    [
        ["image", "text", "caption_1", "caption_2"],
        ["image", "text_1", "caption_1"],
        ["image", "caption", "Caption"],
        ["image", "Image", "caption"],
        ["image", "caption", "split", "split"],
    ],
)
def test_columns_that_are_not_certain_raise(header):
    with pytest.raises(DataError, match=r"choose one or several with caption=|two columns are called"):
        choose_columns("t", header, ColumnNames())


def test_chosen_column_may_differ_from_another_in_case_only():
    assert choose_columns("t", ["image", "caption", "Caption"], ColumnNames(caption="Caption")).captions == ("Caption",)


class TestOtherColumnsOfCaptions:
    @pytest.mark.parametrize("name", ["alt_caption", "caption_long", "Captions (German)", "machine caption"])
    def test_are_named_in_a_warning(self, read, name):
        with pytest.warns(UserWarning, match="captions are read from 'caption' and not from") as caught:
            data = read(f"image,caption,{name}\na.jpg,one,two\nb.jpg,three,four\n")
        assert f"{name!r}; choose one or several with caption=" in str(caught[0].message)
        assert data.captions == [["one"], ["three"]]

    @pytest.mark.parametrize("name", ["caption_id", "caption_length", "captioned", "caption_1", "notes"])
    def test_no_warning_for_columns_of_another_kind(self, read, recwarn, name):
        read(f"image,caption,{name}\na.jpg,one,two\n")
        assert not recwarn.list

    def test_no_warning_for_a_choice(self, read, recwarn):
        content = "image,caption,alt_caption\na.jpg,one,two\n"
        assert read(content, caption="caption").captions == [["one"]]
        assert read(content, caption=["caption", "alt_caption"]).captions == [["one", "two"]]
        assert not recwarn.list

    def test_json_and_parquet(self, folder, tmp_path):
        pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
        table = pyarrow.table({"image": [str(folder / "a.jpg")], "caption": ["one"], "alt_caption": ["two"]})
        parquet.write_table(table, tmp_path / "t.parquet")
        (tmp_path / "t.jsonl").write_text(str(table.to_pylist()[0]).replace("'", '"') + "\n")
        for name, reader in (("t.parquet", Captions.from_parquet), ("t.jsonl", Captions.from_jsonl)):
            with pytest.warns(UserWarning, match="not from 'alt_caption'"):
                reader(tmp_path / name)


class TestNumbers:
    @pytest.mark.parametrize("values", ["3,7", "0,0", "1.0,-2"])
    def test_captions_of_numbers_only_are_refused(self, read, values):
        first, second = values.split(",")
        with pytest.raises(DataError, match=f"all captions are numbers, such as '{first}'; .* write the name"):
            read(f"image,label\na.jpg,{first}\nb.jpg,{second}\n", caption="label")

    def test_captions_with_numbers_are_read(self, read):
        """A text that is a number is possible; a column of nothing else was chosen by mistake."""
        assert read("image,a\na.jpg,7\nb.jpg,seven\n", caption="a").captions == [["7"], ["seven"]]
        assert read("image,a\na.jpg,7.5\nb.jpg,2\n", caption="a").captions == [["7.5"], ["2"]]
        assert read("image,caption\na.jpg,1984\n").captions == [["1984"]]

    def test_labels_of_other_tables_are_refused(self, folder, tmp_path):
        (tmp_path / "t.jsonl").write_text(f'{{"image": "{folder}/a.jpg", "label": 3}}\n')
        with pytest.raises(DataError, match="all captions are numbers, such as '3'"):
            open_data(f"{tmp_path}/t.jsonl?caption=label", "all")
