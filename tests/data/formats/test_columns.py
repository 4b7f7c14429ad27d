"""Columns of a table by their usual names."""

import pytest

from miniclip.data.formats.columns import ColumnNames, choose_columns


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
