"""Sets of several files, as the Hub has them: parquet shards, a table for each split. A file's name says its split."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import NamedTuple

from miniclip.data.formats.json_lines import open_json_lines, read_json_lines
from miniclip.data.formats.parquet import open_parquet, read_parquet
from miniclip.data.formats.rows import Entry, is_url
from miniclip.data.formats.tables import open_table, read_table
from miniclip.data.skipping import SkipLog
from miniclip.data.splits import MEANING, in_name

LINES = {".jsonl", ".ndjson", ".json"}
SUFFIXES = (".csv", ".tsv", ".tab", ".txt", *sorted(LINES), ".parquet")


class Read(NamedTuple):
    """What is in a table: its rows, what it is, in words, and whether a column says the split."""

    entries: Iterator[Entry]
    about: str
    says_split: bool


def read_file(
    path: Path,
    skip_log: SkipLog,
    image: str | None = None,
    caption: str | Sequence[str] | None = None,
    split: str | None = None,
) -> Read:
    """Read one table of any kind; `split` is that of its rows where no column says it."""
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        file, columns = open_parquet(path, image, caption)
        return Read(read_parquet(file, columns, split), f"{path.name}, {columns}", columns.split is not None)
    if suffix in LINES:
        columns, rows = open_json_lines(path, skip_log, image, caption)
        entries = read_json_lines(columns, rows, skip_log, split)
        return Read(entries, f"{path.name}, {columns}", columns.split is not None)
    table = open_table(path, skip_log, image, caption)
    return Read(read_table(table, skip_log, split), table.about, table.columns.split is not None)


def read_several(
    files: Sequence[Path],
    skip_log: SkipLog,
    base: Path,
    image: str | None = None,
    caption: str | Sequence[str] | None = None,
) -> Read:
    """Read files that are one set, the pictures named from `base` on."""
    several = len({split_of(path) for path in files}) > 1  # then each may count its pictures from 0 on
    read = []
    for path in files:
        split = split_of(path)
        file = read_file(path, skip_log, image, caption, split)
        folder = path.parent.relative_to(base).as_posix()
        named = _named(file.entries, "" if folder == "." else f"{folder}/", f"{split}/" if several else "")
        read.append(file._replace(entries=named))
    more = f" and {len(files) - 1} more files" if len(files) > 1 else ""
    entries = chain.from_iterable(file.entries for file in read)
    return Read(entries, read[0].about + more, any(file.says_split for file in read))


def _named(entries: Iterator[Entry], folder: str, split: str) -> Iterator[Entry]:
    """Files by their way from the base on; stored pictures by their split, where there are several."""
    for entry in entries:
        if entry.picture is not None:
            yield entry._replace(name=split + entry.name)
        else:
            yield entry._replace(name=folder + entry.name) if folder and _is_relative(entry.name) else entry


def _is_relative(name: str) -> bool:
    return bool(name) and not is_url(name) and not Path(name).is_absolute()


def split_of(path: Path) -> str | None:
    """The split that a file's name speaks of, or its folder's: train-00000-of-00009.parquet, test/0000.parquet."""
    return in_name(path.stem) or MEANING.get(path.parent.name.lower())


def find_parquet(root: Path) -> list[Path]:
    """The parquet files in a folder, or one or two below it, in order."""
    found = (path for depth in ("*", "*/*", "*/*/*") for path in root.glob(f"{depth}.parquet"))
    return sorted(path for path in found if path.is_file() and not path.name.startswith("."))
