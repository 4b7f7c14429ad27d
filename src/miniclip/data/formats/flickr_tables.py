"""Captions of Flickr8k and Flickr30k: results.csv of the Kaggle release, and the .token files of the authors."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from miniclip.data.formats.rows import ImageRow, ImageRows
from miniclip.data.formats.text_files import read_text
from miniclip.data.skipping import SkipLog
from miniclip.errors import DataError

COLUMNS = ("image_name", "comment_number", "comment")
SPLIT_LISTS = {"train": "trainImages", "val": "devImages", "test": "testImages"}

# One row of the Kaggle file lacks the second pipe: "2199200615.jpg| 4   A dog runs across the grass .".
_PIPED = re.compile(r"(?P<name>[^|]*[^|\s])\s*\|\s*(?P<number>[0-9]{1,9})(?:\s*\||\s+(?=\S))(?P<caption>.*)", re.DOTALL)
_TOKEN = re.compile(r"(?P<name>[^\t]*[^\t\s])#(?P<number>[0-9]{1,9})\t(?P<caption>.*)", re.DOTALL)


def is_flickr_table(first_line: str) -> bool:
    """Return whether a file is results.csv or a .token file of the authors, by its first line; the name may differ."""
    return _is_piped(first_line) or _TOKEN.fullmatch(first_line.strip()) is not None


def read_flickr_table(path: Path, first_line: str, skip_log: SkipLog, split: str | None = None) -> ImageRows:
    """Read a file of which `is_flickr_table` is true. The authors' lists beside a .token file are the split."""
    piped = _is_piped(first_line)
    splits = {} if piped else read_split_lists(path.parent)
    rows = read_piped(path, skip_log) if piped else read_tokens(path, skip_log)
    rows = (row._replace(split=splits.get(row.name, None if splits else split)) for row in rows)
    return ImageRows(path, rows, f"{path.name} with pipes" if piped else path.name, exact_split=bool(splits))


def _is_piped(first_line: str) -> bool:
    return tuple(column.strip() for column in first_line.split("|")) == COLUMNS


def read_piped(path: Path, skip_log: SkipLog) -> Iterator[ImageRow]:
    """Read results.csv, `image_name| comment_number| comment`. Quotes and later pipes are part of the caption.

    Raises:
        DataError: the header is different, a row cannot be parsed, or the file is not UTF-8.
    """
    lines = read_text(path, skip_log.on_error).split("\n")  # splitlines would break inside captions
    _check_header(path, lines[0])
    return _parse(path, lines, 1, _PIPED, "'image.jpg| 0| a caption'", skip_log)


def read_tokens(path: Path, skip_log: SkipLog) -> Iterator[ImageRow]:
    """Read Flickr8k.token.txt or results_20130124.token, one caption a line: `image.jpg#0<tab>a caption`.

    Flickr8k's file has five captions of an image that does not exist, `2258277193_586949ec62.jpg.1`; they are ignored.

    Raises:
        DataError: a row cannot be parsed, or the file is not UTF-8.
    """
    lines = read_text(path, skip_log.on_error).split("\n")
    rows = _parse(path, lines, 0, _TOKEN, "'image.jpg#0', a tab and a caption", skip_log)
    return (row for row in rows if not row.name.endswith(".jpg.1"))


def read_split_lists(folder: Path) -> dict[str, str]:
    """Read the split of every image from `…trainImages.txt`, `…devImages.txt` and `…testImages.txt`, if they exist.

    Raises:
        DataError: an image is in two lists.
    """
    splits: dict[str, str] = {}
    for split, ending in SPLIT_LISTS.items():
        for path in sorted(folder.glob(f"*[._]{ending}.txt")):
            for name in read_text(path).split():
                if splits.setdefault(name, split) != split:
                    raise DataError(f"{path}: {name} is in the list of {splits[name]!r} too; remove it from one")
    return splits


def _check_header(path: Path, line: str) -> None:
    header = tuple(column.strip() for column in line.split("|"))
    expected = f"the first line must be {'| '.join(COLUMNS)!r}"
    missing = [column for column in COLUMNS if column not in header]
    if missing:
        found = ", ".join(map(repr, header))
        raise DataError(f"{path}, line 1: no column {', '.join(missing)}; found {found}; {expected}")
    if header != COLUMNS:
        raise DataError(f"{path}, line 1: the columns are {', '.join(header)}; {expected}")


def _parse(
    path: Path, lines: list[str], start: int, pattern: re.Pattern[str], expected: str, skip_log: SkipLog
) -> Iterator[ImageRow]:
    """Parse the rows from line `start` on: images in the order of the file, the captions of each by their numbers."""
    numbered: dict[str, list[tuple[int, ImageRow]]] = {}
    for number, line in enumerate(lines[start:], start=start + 1):
        if not line.strip():
            continue
        location = f"{path}, line {number}"
        match = pattern.match(line.strip())
        if match is None:
            shown = line.strip() if len(line) <= 80 else line.strip()[:80] + "…"
            skip_log.add(location, f"found {shown!r}; expected {expected}; fix the row")
            continue
        row = ImageRow(location, match["name"], [match["caption"]])
        numbered.setdefault(row.name, []).append((int(match["number"]), row))
    for rows in numbered.values():
        yield from (row for _, row in sorted(rows, key=lambda numbered_row: numbered_row[0]))
