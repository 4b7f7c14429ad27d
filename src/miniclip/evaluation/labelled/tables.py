"""Labelled images of Hugging Face datasets on disk: parquet files, and folders of `save_to_disk`.

Only a column of class labels with names is taken. Numbers or texts without such names could mean other classes in
another split.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from miniclip.data.formats.columns import IMAGE_COLUMNS, SPLIT_COLUMN
from miniclip.data.formats.huggingface import HuggingFaceTable
from miniclip.data.formats.multifile import split_of
from miniclip.data.formats.parquet import ParquetFile
from miniclip.data.formats.saved import load_saved
from miniclip.data.splits import normalize_split
from miniclip.errors import DataError
from miniclip.evaluation.labelled.images import checked_class_names
from miniclip.evaluation.labelled.splits import rows_of_split
from miniclip.utils.checks import did_you_mean

REMEDY = "give it a column 'split', or name its files after their splits, as in train.parquet"
NO_NAMES = "expected class labels with names: dataset.class_encode_column({!r}), then save it again"


class Part(NamedTuple):
    """A table of a dataset: `values(column)` and `image(row)` read it.

    Attributes:
        table: `ParquetFile` or `HuggingFaceTable`.
        header: its columns.
        label_names: by column, the names of its class labels.
        split: the split of all its rows; None: a column gives it, or it has none.
    """

    table: Any
    header: list[str]
    label_names: Mapping[str, list[str]]
    split: str | None


class LabelledTable(Sequence[Any]):
    """Pairs of the bytes of an image and its class, from the tables of one dataset.

    Args:
        source: the dataset, for messages.
        parts: its tables.
        split: the split; "all" takes every row.
        label: the column of class labels; None: the only one.
        files: the files of the tables, for a fingerprint.

    Attributes:
        class_names: the names of the class labels.
        source_files: as `files`.
        about: source, split and columns.

    Raises:
        DataError: it is not certain which column holds the classes, a row has no class, or the split is missing.
    """

    def __init__(self, source: str, parts: list[Part], split: str, label: str | None, files: list[Path]) -> None:
        first = parts[0]
        self.label = _label_column(source, first, label)
        self.class_names = checked_class_names(first.label_names[self.label], f"{source}: the classes")
        if any(list(part.label_names.get(self.label, ())) != self.class_names for part in parts):
            raise DataError(f"{source}: its files have different names of the classes in {self.label!r}")
        self.source_files, self.about = files, repr((source, split, self.label, first.table.image_column))
        cells = [(part, row) for part in parts for row in range(len(part.table))]
        splits = [name for part in parts for name in _splits(part)]
        labels = [name for part in parts for name in part.table.values(self.label)]
        chosen = rows_of_split(source, splits, split, REMEDY)
        unlabelled = sum(labels[row] is None for row in chosen)
        if unlabelled:
            raise DataError(f"{source}: {unlabelled:,} images of {split} have no class; choose a split with classes")
        if any(isinstance(labels[row], list) for row in chosen):
            raise DataError(f"{source}: the column {self.label!r} holds lists of classes; expected one class per image")
        index = {name: number for number, name in enumerate(self.class_names)}
        self._rows = [(cells[row][0].table, cells[row][1], index[labels[row]]) for row in chosen]

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: Any) -> Any:
        """Read an image; return its bytes and the index of its class."""
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        table, row, label = self._rows[index]
        return table.image(row).read(), label


def open_parquet(source: str, files: list[Path], split: str, image: str | None, label: str | None) -> LabelledTable:
    """Open a split of parquet files that make up one dataset.

    Raises:
        DataError: a column is missing or not certain, or a file is damaged.
        ModuleNotFoundError: pyarrow is not installed.
    """
    parts = []
    for path in files:
        file = ParquetFile(path)
        file.image_column = _image_column(source, file.header, image)
        if file.is_text(file.image_column):
            raise DataError(f"{path}: {file.image_column!r} holds texts; expected stored images")
        parts.append(Part(file, file.header, file.label_names, split_of(path)))
    return LabelledTable(source, parts, split, label, files)


def open_saved(source: str, root: Path, split: str, image: str | None, label: str | None) -> LabelledTable:
    """Open a split of a folder of `save_to_disk`.

    Raises:
        DataError: a column is missing or not certain, or the folder is damaged.
        ImportError: the datasets library is not installed.
    """
    saved = load_saved(root)
    parts = []
    for name, dataset in (saved if isinstance(saved, dict) else {None: saved}).items():
        column = _image_column(source, list(dataset.column_names), image)
        table = HuggingFaceTable(dataset, column)
        names = {
            name: list(feature.names)
            for name, feature in dataset.features.items()
            if type(feature).__name__ == "ClassLabel" and feature.names
        }
        parts.append(Part(table, list(dataset.column_names), names, name and normalize_split(str(name))))
    return LabelledTable(source, parts, split, label, sorted(root.rglob("*.arrow")))


def _splits(part: Part) -> list[str | None]:
    if SPLIT_COLUMN not in part.header:
        return [part.split] * len(part.table)
    return [None if value is None else normalize_split(str(value)) for value in part.table.values(SPLIT_COLUMN)]


def _image_column(source: str, header: list[str], chosen: str | None) -> str:
    """Return the chosen column, or the first with a usual name."""
    usual = [name for name in IMAGE_COLUMNS if name in header]
    if chosen is None and not usual:
        raise DataError(f"{source}: found the columns {', '.join(header)}; choose that of the images with ?image=NAME")
    column = usual[0] if chosen is None else chosen
    if column not in header:
        raise DataError(f"{source}: no column {column!r}{did_you_mean(column, header)}")
    return column


def _label_column(source: str, part: Part, chosen: str | None) -> str:
    """Return the chosen column of class labels, or the only one."""
    names = list(part.label_names)
    if chosen is not None:
        if chosen not in part.header:
            raise DataError(f"{source}: no column {chosen!r}{did_you_mean(chosen, names or part.header)}")
        if chosen not in names:
            raise DataError(f"{source}: the column {chosen!r} has no names of classes; {NO_NAMES.format(chosen)}")
        return chosen
    if not names:
        raise DataError(f"{source}: none of {', '.join(part.header)} has names of classes; {NO_NAMES.format('label')}")
    if len(names) > 1:
        raise DataError(f"{source}: found the class labels {', '.join(names)}; choose one with ?label={names[0]}")
    return names[0]
