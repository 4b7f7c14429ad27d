"""Tables by suffix, and datasets of several table files: parquet shards, or a table for each split.

The name of a file gives its split, as on the Hugging Face Hub.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path

from miniclip.data.formats.columns import ColumnNames
from miniclip.data.formats.json_lines import read_json_lines
from miniclip.data.formats.parquet import read_parquet
from miniclip.data.formats.rows import ImageRow, ImageRows, is_url
from miniclip.data.formats.tables import read_table
from miniclip.data.skipping import SkipLog
from miniclip.data.splits import SPLIT_NAMES, split_in_name

JSON_SUFFIXES = {".jsonl", ".ndjson", ".json"}
TABLE_SUFFIXES = (".csv", ".tsv", ".tab", ".txt", *sorted(JSON_SUFFIXES), ".parquet")


def read_file(path: Path, skip_log: SkipLog, names: ColumnNames, split: str | None = None) -> ImageRows:
    """Read a table of any kind; `split` is that of its rows if no column gives it."""
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        return read_parquet(path, names, split)
    if suffix in JSON_SUFFIXES:
        return read_json_lines(path, skip_log, names, split)
    return read_table(path, skip_log, names, split)


def read_files(files: Sequence[Path], root: Path, skip_log: SkipLog, names: ColumnNames) -> ImageRows:
    """Read table files that make up one dataset.

    Args:
        files: the tables, at or below `root`.
        root: the folder that image names start from.
        skip_log: receives the rows that cannot be used.
        names: columns that the user chose.
    """
    splits = [split_of(path) for path in files]
    several = len(set(splits)) > 1  # then the row numbers of each split may start at 0
    tables = []
    for path, split in zip(files, splits, strict=True):
        table = read_file(path, skip_log, names, split)
        folder = path.parent.relative_to(root).as_posix()
        prefix = "" if folder == "." else f"{folder}/"
        tables.append(table._replace(rows=_prefix_names(table.rows, prefix, f"{split}/" if several else "")))
    more = f" and {len(files) - 1} more files" if len(files) > 1 else ""
    return ImageRows(
        files[0] if len(files) == 1 else root,
        chain.from_iterable(table.rows for table in tables),
        tables[0].about + more,
        root,
        any(table.exact_split for table in tables),
    )


def _prefix_names(rows: Iterable[ImageRow], folder: str, split: str) -> Iterator[ImageRow]:
    """Prefix the names of files by their table's folder, and those of stored images by their split."""
    for row in rows:
        if row.image is not None:
            yield row._replace(name=split + row.name)
        else:
            yield row._replace(name=folder + row.name) if folder and _is_relative(row.name) else row


def _is_relative(name: str) -> bool:
    return bool(name) and not is_url(name) and not Path(name).is_absolute()


def split_of(path: Path) -> str | None:
    """Return the split in the name of a file or its folder: train-00000-of-00009.parquet, test/0000.parquet."""
    return split_in_name(path.stem) or SPLIT_NAMES.get(path.parent.name.lower())


def find_parquet(root: Path) -> list[Path]:
    """Return the parquet files in a folder, or up to two folders below it, sorted."""
    files = (path for depth in ("*", "*/*", "*/*/*") for path in root.glob(f"{depth}.parquet"))
    return sorted(path for path in files if path.is_file() and not path.name.startswith("."))
