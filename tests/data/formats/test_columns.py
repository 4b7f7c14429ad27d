"""Columns of a table by their usual names."""

import pytest

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
