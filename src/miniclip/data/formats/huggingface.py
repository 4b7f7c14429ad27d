"""Datasets of Hugging Face's datasets library: captions without decoding an image, images one by one."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from miniclip.data.decoding import read_encoded
from miniclip.data.formats.cells import name_labels
from miniclip.data.formats.columns import ColumnNames, choose_columns, read_columns, warn_of_other_captions
from miniclip.data.formats.rows import ImageRows
from miniclip.data.skipping import SkipLog
from miniclip.errors import DataError, UnreadableError

TRANSFORMED_ROWS = 100  # rows that the user's transform receives at a time


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
        with _readable(str(self)):
            value = self.dataset[self.row][self.column]
        if isinstance(value, dict):  # an Image feature with decode=False
            value = value.get("bytes") or value.get("path")
        if isinstance(value, str):
            try:
                return read_encoded(Path(value))
            except OSError as error:
                reason = error.strerror or str(error).rpartition(": ")[2]
                raise UnreadableError(str(self), f"{value} cannot be read: {reason}; add the file") from error
        if hasattr(value, "save"):  # a PIL image, made by a transform or by the dataset
            file = io.BytesIO()
            with _readable(str(self)):
                value = value.convert("RGB") if value.mode in ("CMYK", "YCbCr", "HSV", "LAB") else value
                value.save(file, "TIFF" if value.mode in ("I", "F") else "PNG")
            return file.getvalue()
        if not isinstance(value, bytes):
            raise UnreadableError(str(self), f"{self.column!r} is a {type(value).__name__}; expected an image")
        return value


class HuggingFaceTable:
    """Columns of a `Dataset`. The other columns are not read, and no image is decoded.

    A transform of the user (`set_transform`) is applied. If it needs other columns, it receives whole rows, and the
    images are decoded for the captions too. Other formats, such as "torch", change types and no values: they are not
    applied.
    """

    def __init__(self, dataset: Any, image_column: str) -> None:
        self.features = getattr(dataset, "features", None) or {}
        feature = self.features.get(image_column)
        self.has_transform = getattr(dataset, "format", {}).get("type") == "custom"
        if not self.has_transform:
            dataset = dataset.with_format(None) if hasattr(dataset, "with_format") else dataset
            if feature is not None and hasattr(feature, "decode") and hasattr(dataset, "cast_column"):
                dataset = dataset.cast_column(image_column, type(feature)(decode=False))
        self.dataset, self.image_column = dataset, image_column
        self._images = self._select(image_column)

    def __len__(self) -> int:
        return len(self.dataset)

    def is_text(self, column: str) -> bool:
        """Return whether a column holds text; under a transform, whether that returns text."""
        if self.has_transform and len(self):
            with _readable("row 0"):
                return isinstance(self._select(column)[0][column], str)
        return getattr(self.features.get(column), "dtype", None) in ("string", "large_string", "string_view")

    def values(self, column: str) -> list[Any]:
        """Read all values of a column; class labels are given by their names."""
        dataset = self._select(column)
        names = _label_names(self.features.get(column))
        with _readable(f"the column {column!r}"):
            if getattr(dataset, "format", {}).get("type") == "custom":
                starts = range(0, len(dataset), TRANSFORMED_ROWS)
                values = [value for start in starts for value in dataset[start : start + TRANSFORMED_ROWS][column]]
            else:
                values = list(dataset[column])
            if len(values) != len(dataset):
                raise ValueError(f"the transform returns {len(values):,} values for {len(dataset):,} rows")
            return values if names is None else [name_labels(value, names) for value in values]

    def image(self, row: int) -> HuggingFaceImage:
        """Return the image of a row, without reading it."""
        return HuggingFaceImage(self._images, self.image_column, row)

    def row_name(self, row: int) -> str:
        """Return the name of an image without a name of its own."""
        return f"row {row}"

    def _select(self, column: str) -> Any:
        """Return the dataset without its other columns, unless a transform needs them, or without the transform."""
        if not hasattr(self.dataset, "select_columns"):
            return self.dataset
        if not self.has_transform:
            return self.dataset.select_columns([column])
        try:
            row = self.dataset[0]
            if column not in row and column != self.image_column:  # the transform is not for this column
                return self.dataset.with_format(None).select_columns([column])
            selected = self.dataset.select_columns([column])
            return selected if bool(selected[0][column] == row[column]) else self.dataset
        except Exception:  # the user's function may raise any; reading a row raises it again
            return self.dataset


@contextmanager
def _readable(name: str) -> Iterator[None]:
    """Turn the errors of a transform, and of values that cannot be read, into an `UnreadableError`."""
    try:
        yield
    except DataError:
        raise
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        advice = "if a transform of the dataset is the cause, pass dataset.with_format(None)"
        raise UnreadableError(name, f"cannot be read ({reason}); {advice}") from error


def _label_names(feature: Any) -> list[str] | None:
    """Return the names of the class labels of a column, which may hold lists of them; None for other columns."""
    while isinstance(feature, list) or hasattr(feature, "feature"):
        feature = next(iter(feature), None) if isinstance(feature, list) else feature.feature
    return list(feature.names) if type(feature).__name__ == "ClassLabel" and feature.names else None


def read_dataset(dataset: Any, skip_log: SkipLog, names: ColumnNames) -> ImageRows:
    """Read a `datasets.Dataset`.

    Raises:
        TypeError: the dataset is a dict of splits, or is streamed.
        DataError: a column is missing, or cannot be read.
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
    warn_of_other_captions("the dataset", list(dataset.column_names), columns, names)
    rows = read_columns(HuggingFaceTable(dataset, columns.image), columns, skip_log)
    about, exact = f"a Hugging Face dataset, {columns}", columns.split is not None
    return ImageRows(Path("the dataset"), rows, about, folder=Path.cwd(), exact_split=exact)
