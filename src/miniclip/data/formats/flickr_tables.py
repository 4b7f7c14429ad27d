"""The captions of Flickr8k and Flickr30k: results.csv of the Kaggle release, and the .token files of the authors."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from miniclip.data.formats.rows import Entry
from miniclip.data.formats.text_files import read_text
from miniclip.data.skipping import SkipLog
from miniclip.errors import DataError

COLUMNS = ("image_name", "comment_number", "comment")

# The second pipe is missing in one row of the Kaggle file: "2199200615.jpg| 4   A dog runs across the grass .".
_PIPED = re.compile(r"(?P<name>[^|]*[^|\s])\s*\|\s*(?P<number>[0-9]{1,9})(?:\s*\||\s+(?=\S))(?P<caption>.*)", re.DOTALL)
_TOKEN = re.compile(r"(?P<name>[^\t]*[^\t\s])#(?P<number>[0-9]{1,9})\t(?P<caption>.*)", re.DOTALL)

SPLIT_LISTS = {"train": "trainImages", "val": "devImages", "test": "testImages"}


def read_piped(path: Path, skip_log: SkipLog) -> Iterator[Entry]:
    """Read results.csv, `image_name| comment_number| comment`. Quotes are literal, and pipes after the second.

    Raises:
        DataError: the header is another one, a row cannot be taken apart, the bytes are not UTF-8.
    """
    lines = read_text(path, skip_log.on_error).split("\n")  # not splitlines: captions may hold what it breaks at
    _check_header(path, lines[0])
    return _in_order(path, lines, 1, _PIPED, "'picture.jpg| 0| a caption'", skip_log)


def read_tokens(path: Path, skip_log: SkipLog) -> Iterator[Entry]:
    """Read Flickr8k.token.txt or results_20130124.token, a line a caption: `picture.jpg#0<tab>a caption`.

    Flickr8k's has five lines of a picture that never was, `2258277193_586949ec62.jpg.1`; they are passed over.

    Raises:
        DataError: a row cannot be taken apart, the bytes are not UTF-8.
    """
    lines = read_text(path, skip_log.on_error).split("\n")
    for entry in _in_order(path, lines, 0, _TOKEN, "'picture.jpg#0', a tab and a caption", skip_log):
        if not entry.name.endswith(".jpg.1"):
            yield entry


def read_split_lists(folder: Path) -> dict[str, str]:
    """The split of every picture in `…trainImages.txt`, `…devImages.txt` and `…testImages.txt`; {} without them."""
    splits: dict[str, str] = {}
    for split, word in SPLIT_LISTS.items():
        for path in sorted(folder.glob(f"*[._]{word}.txt")):
            splits |= dict.fromkeys(read_text(path).split(), split)
    return splits


def _check_header(path: Path, line: str) -> None:
    found = [column.strip() for column in line.split("|")]
    expected = "| ".join(COLUMNS)
    missing = [column for column in COLUMNS if column not in found]
    if missing:
        raise DataError(
            f"{path}, line 1: no column {', '.join(missing)}; found {', '.join(map(repr, found))}; "
            f"the first line must be {expected!r}"
        )
    if found != list(COLUMNS):
        raise DataError(f"{path}, line 1: the columns are {', '.join(found)}; the first line must be {expected!r}")


def _in_order(
    path: Path, lines: list[str], start: int, row: re.Pattern[str], expected: str, skip_log: SkipLog
) -> Iterator[Entry]:
    """The rows: pictures in the order of the file, the captions of each by their numbers."""
    numbered: dict[str, list[tuple[int, Entry]]] = {}
    for number, line in enumerate(lines[start:], start=start + 1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        match = row.match(line.strip())
        if match is None:
            shown = line.strip() if len(line) <= 80 else line.strip()[:80] + "…"
            skip_log.add(where, f"found {shown!r}; expected {expected}; mend the row")
            continue
        entry = Entry(where, match["name"], [match["caption"]])
        numbered.setdefault(entry.name, []).append((int(match["number"]), entry))
    for rows in numbered.values():
        yield from (entry for _, entry in sorted(rows, key=_number))


def _number(row: tuple[int, Entry]) -> int:
    return row[0]
