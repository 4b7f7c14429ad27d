"""A `Dataset` of Hugging Face's datasets library: captions without decoding a picture, pictures one by one."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from miniclip.data.formats.columns import Columns, choose
from miniclip.data.formats.rows import Entry
from miniclip.errors import DataError


class HuggingFaceImage:
    """A picture in a row of a `Dataset`."""

    def __init__(self, dataset: Any, column: str, row: int) -> None:
        self.dataset, self.column, self.row = dataset, column, row

    def __str__(self) -> str:
        return f"row {self.row}"

    def read(self) -> bytes:
        """The bytes of the picture file.

        Raises:
            DataError: there are none.
        """
        value = self.dataset[self.row][self.column]
        if isinstance(value, dict):  # an Image column that does not decode
            value = value.get("bytes") or value.get("path")
        if isinstance(value, str):
            try:
                return Path(value).read_bytes()
            except OSError as error:
                raise DataError(f"{self}: {value} cannot be read: {error.strerror}") from error
        if hasattr(value, "save"):  # a picture that a transform or the data set has made
            file = io.BytesIO()
            value.save(file, "PNG")
            return file.getvalue()
        if not isinstance(value, bytes):
            raise DataError(f"{self}: {self.column!r} is a {type(value).__name__}; expected a picture")
        return value


def open_dataset(dataset: Any, image: str | None, caption: str | Sequence[str] | None) -> tuple[Any, Columns]:
    """Say which columns are which, and keep the pictures from being decoded.

    Raises:
        TypeError: it is no `Dataset`.
        DataError: a column is not there.
    """
    if isinstance(dataset, dict):  # DatasetDict
        names = ", ".join(map(str, dataset))
        raise TypeError(f"found several splits ({names}); pass one of them, such as dataset[{next(iter(dataset))!r}]")
    if not hasattr(dataset, "column_names") or not hasattr(dataset, "__len__"):
        raise TypeError(
            f"found a {type(dataset).__name__}; expected a datasets.Dataset: load it without streaming, since its "
            "length and its captions have to be known"
        )
    columns = choose("the data set", list(dataset.column_names), image, caption)
    feature = getattr(dataset, "features", {}).get(columns.image)
    if feature is not None and hasattr(feature, "decode") and hasattr(dataset, "cast_column"):
        dataset = dataset.cast_column(columns.image, type(feature)(decode=False))
    return dataset, columns


def read_dataset(dataset: Any, columns: Columns) -> Iterator[Entry]:
    """The rows: each a picture with a caption, or a list of them.

    Each row is a picture of its own, unless a column such as `filename` or `image_id` names it, or the column of the
    pictures holds paths: then rows of one picture belong together.
    """
    feature = getattr(dataset, "features", {}).get(columns.image)
    paths = _column(dataset, columns.image) if getattr(feature, "dtype", None) in ("string", "large_string") else None
    captions = [_column(dataset, name) for name in columns.captions]
    names = _column(dataset, columns.name) if columns.name else None
    splits = _column(dataset, columns.split) if columns.split else None
    pictures = dataset.select_columns([columns.image]) if hasattr(dataset, "select_columns") else dataset
    for row in range(len(dataset)):
        own = [caption for column in captions for caption in _listed(column[row])]
        split = None if splits is None or splits[row] is None else str(splits[row])
        if paths is not None:
            yield Entry(f"row {row}", str(paths[row] or ""), own, split)
        else:
            name = str(row) if names is None or names[row] is None else str(names[row])
            yield Entry(f"row {row}", name, own, split, HuggingFaceImage(pictures, columns.image, row))


def _column(dataset: Any, name: str) -> list[Any]:
    """All values of a column; of the others, nothing is read."""
    if hasattr(dataset, "select_columns"):
        dataset = dataset.select_columns([name])
    return list(dataset[name])


def _listed(value: object) -> list[object]:
    return list(value) if isinstance(value, list) else [value]
