"""JSONL, an object a line, and JSON files that hold one list of such objects."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from miniclip.data.formats.columns import Columns, choose
from miniclip.data.formats.rows import Entry
from miniclip.data.formats.text_files import read_text
from miniclip.data.skipping import SkipLog
from miniclip.errors import DataError

Rows = list[tuple[str, dict[str, Any]]]


def open_json_lines(
    path: Path, skip_log: SkipLog, image: str | None = None, caption: str | Sequence[str] | None = None
) -> tuple[Columns, Rows]:
    """Read a file of objects.

    Args:
        path: the file.
        skip_log: takes the lines that cannot be read.
        image: the key of the picture; None: a usual one of the first object.
        caption: the key or keys of the captions; likewise.

    Returns:
        Which key is what, and every object with where it stands.

    Raises:
        FileNotFoundError: there is no such file.
        DataError: a key is not there, a line is not JSON, the bytes are in another encoding.
    """
    text = read_text(path, skip_log.on_error)
    rows = list(_whole(path, text) if text.lstrip().startswith("[") else _lines(path, text, skip_log))
    if not rows:
        raise DataError(f'{path}: holds no objects; expected lines such as {{"image": "a.jpg", "caption": "a dog"}}')
    where, first = rows[0]
    return choose(where, list(first), image, caption), rows


def read_json_lines(columns: Columns, rows: Rows, skip_log: SkipLog, split: str | None = None) -> Iterator[Entry]:
    """The rows: each a picture with a caption, or a list of them."""
    for where, row in rows:
        missing = [name for name in (columns.image, *columns.captions) if name not in row]
        name = row.get(columns.image)
        if missing:
            found = ", ".join(map(repr, row)) or "nothing"
            skip_log.add(where, f"has no {', '.join(map(repr, missing))}; found {found}")
        elif not isinstance(name, str):
            skip_log.add(where, f"{columns.image!r} is {str(name)[:80]!r}, a {type(name).__name__}; expected a path")
        else:
            own = [caption for key in columns.captions for caption in _listed(row[key])]
            said = row.get(columns.split) if columns.split else None
            yield Entry(where, name.strip(), own, str(said) if said is not None else split)


def _listed(value: object) -> list[object]:
    return list(value) if isinstance(value, list) else [value]


def _lines(path: Path, text: str, skip_log: SkipLog) -> Iterator[tuple[str, dict[str, Any]]]:
    for number, line in enumerate(text.split("\n"), start=1):  # not splitlines: captions may hold what it breaks at
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        value, problem = _parsed(line)
        if problem is not None:
            skip_log.add(where, problem)
        else:
            yield where, value


def _parsed(line: str) -> tuple[dict[str, Any], str | None]:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        reason = f"{error.msg} (column {error.colno})" if isinstance(error, json.JSONDecodeError) else str(error)
        return {}, f"is not JSON: {reason}; expected an object a line"
    if not isinstance(value, dict):
        return {}, f"is {line.strip()[:80]!r}; expected an object with the picture and its captions"
    return value, None


def _whole(path: Path, text: str) -> Iterator[tuple[str, dict[str, Any]]]:
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        line = f", line {error.lineno}" if isinstance(error, json.JSONDecodeError) else ""
        raise DataError(f"{path}{line}: is not JSON: {error}; download or write the file again") from error
    for position, value in enumerate(values):
        if not isinstance(value, dict):
            raise DataError(f"{path}: [{position}] is {str(value)[:80]!r}; expected an object")
        yield f"{path}: [{position}]", value
