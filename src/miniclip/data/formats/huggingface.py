"""Datasets of Hugging Face's datasets library: captions without decoding an image, images one by one."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from miniclip.data.formats.columns import ColumnNames, choose_columns, read_columns
from miniclip.data.formats.rows import ImageRows
from miniclip.errors import UnreadableError


class HuggingFaceImage:
    """Image in a row of a `Dataset`."""

    def __init__(self, dataset: Any, column: str, row: int) -> None:
        self.dataset, self.column, self.row = dataset, column, row

    def __str__(self) -> str:
        return f"row {self.row}"

    def read(self) -> bytes:
        """Return the encoded image.

        Raises:
            DataError: the row has no image, or its file cannot be read.
        """
        value = self.dataset[self.row][self.column]
        if isinstance(value, dict):  # an Image feature with decode=False
            value = value.get("bytes") or value.get("path")
        if isinstance(value, str):
            try:
                return Path(value).read_bytes()
            except OSError as error:
                raise UnreadableError(str(self), f"{value} cannot be read: {error.strerror}") from error
        if hasattr(value, "save"):  # a PIL image, made by a transform or by the dataset
            file = io.BytesIO()
            value.save(file, "PNG")
            return file.getvalue()
        if not isinstance(value, bytes):
            raise UnreadableError(str(self), f"{self.column!r} is a {type(value).__name__}; expected an image")
        return value


class HuggingFaceTable:
    """Columns of a `Dataset`. The other columns are not read, and no image is decoded."""

    def __init__(self, dataset: Any, image_column: str) -> None:
        feature = getattr(dataset, "features", {}).get(image_column)
        if feature is not None and hasattr(feature, "decode") and hasattr(dataset, "cast_column"):
            dataset = dataset.cast_column(image_column, type(feature)(decode=False))
        self.dataset, self.image_column = dataset, image_column
        self._images = self._select(image_column)

    def __len__(self) -> int:
        return len(self.dataset)

    def is_text(self, column: str) -> bool:
        """Return whether a column holds text."""
        feature = getattr(self.dataset, "features", {}).get(column)
        return getattr(feature, "dtype", None) in ("string", "large_string")

    def values(self, column: str) -> list[Any]:
        """Read all values of a column."""
        return list(self._select(column)[column])

    def image(self, row: int) -> HuggingFaceImage:
        """Return the image of a row, without reading it."""
        return HuggingFaceImage(self._images, self.image_column, row)

    def row_name(self, row: int) -> str:
        """Return the name of an image without a name of its own."""
        return str(row)

    def _select(self, column: str) -> Any:
        return self.dataset.select_columns([column]) if hasattr(self.dataset, "select_columns") else self.dataset


def read_dataset(dataset: Any, names: ColumnNames) -> ImageRows:
    """Read a `datasets.Dataset`.

    Raises:
        TypeError: the dataset is a dict of splits, or is streamed.
        DataError: a column is missing.
    """
    if isinstance(dataset, dict):  # DatasetDict
        splits = ", ".join(map(str, dataset))
        raise TypeError(f"found several splits ({splits}); pass one of them, such as dataset[{next(iter(dataset))!r}]")
    if not hasattr(dataset, "column_names") or not hasattr(dataset, "__len__"):
        raise TypeError(
            f"found a {type(dataset).__name__}; expected a datasets.Dataset: load it without streaming, since its "
            "length and its captions are needed at the start"
        )
    columns = choose_columns("the dataset", list(dataset.column_names), names)
    rows = read_columns(HuggingFaceTable(dataset, columns.image), columns)
    about, exact = f"a Hugging Face dataset, {columns}", columns.split is not None
    return ImageRows(Path("the dataset"), rows, about, folder=Path.cwd(), exact_split=exact)
