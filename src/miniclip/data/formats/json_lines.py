"""JSONL files with one object a line, and JSON files that hold one list of such objects."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from miniclip.data.formats.cells import optional_text, read_cells
from miniclip.data.formats.columns import ColumnNames, Columns, choose_columns
from miniclip.data.formats.rows import ImageRow, ImageRows, shown
from miniclip.data.formats.text_files import read_text
from miniclip.data.skipping import SkipLog
from miniclip.errors import DataError

Located = tuple[str, dict[str, Any]]  # location of an object, and the object


def read_json_lines(path: Path, skip_log: SkipLog, names: ColumnNames, split: str | None = None) -> ImageRows:
    """Read a file of objects.

    Args:
        path: the file.
        skip_log: receives the objects that cannot be used.
        names: keys that the user chose.
        split: of all objects, if there is no key of splits.

    Raises:
        FileNotFoundError: the file does not exist.
        DataError: a key is missing, a line is not JSON, or the file has another encoding.
    """
    text = read_text(path, skip_log.on_error)
    objects = list(_read_list(path, text) if text.lstrip().startswith("[") else _read_lines(path, text, skip_log))
    if not objects:
        raise DataError(f'{path}: holds no objects; expected lines such as {{"image": "a.jpg", "caption": "a dog"}}')
    header = dict.fromkeys(key for _, content in objects for key in content)  # the first may have fewer captions
    columns = choose_columns(path, list(header), names)
    rows = _read_rows(objects, columns, names, skip_log, split)
    return ImageRows(path, rows, f"{path.name}, {columns}", exact_split=columns.split is not None)


def _read_rows(
    objects: Iterable[Located], columns: Columns, names: ColumnNames, skip_log: SkipLog, split: str | None
) -> Iterator[ImageRow]:
    for location, content in objects:
        missing = [key for key in (columns.image, *columns.captions) if key not in content]
        if not names.caption and any(key in content for key in columns.captions):  # caption_1, caption_2, …
            missing = [key for key in missing if key == columns.image]
        name = content.get(columns.image)
        texts, problem = read_cells(content[key] for key in columns.captions if key in content)
        if missing:
            keys = ", ".join(map(repr, content)) or "nothing"
            skip_log.add(location, f"has no {', '.join(map(repr, missing))}; found {keys}")
        elif not isinstance(name, str):
            reason = f"{columns.image!r} is {shown(name)!r}, a {type(name).__name__}; expected a path"
            skip_log.add(location, reason)
        elif problem is not None:
            skip_log.add(location, problem)
        else:
            own_split = optional_text(content.get(columns.split)) if columns.split else None
            yield ImageRow(location, name.strip(), texts, own_split or split)


def _read_lines(path: Path, text: str, skip_log: SkipLog) -> Iterator[Located]:
    for number, line in enumerate(text.split("\n"), start=1):  # splitlines would break inside captions
        if not line.strip():
            continue
        location = f"{path}, line {number}"
        content, problem = _parse(line)
        if problem is not None:
            skip_log.add(location, problem)
        else:
            yield location, content


def _parse(line: str) -> tuple[dict[str, Any], str | None]:
    try:
        content = json.loads(line, object_pairs_hook=_unique_keys)
    except (ValueError, RecursionError) as error:
        reason = f"{error.msg} (column {error.colno})" if isinstance(error, json.JSONDecodeError) else str(error)
        return {}, f"is not JSON: {reason}; expected one object a line"
    if not isinstance(content, dict):
        return {}, f"is {line.strip()[:80]!r}; expected an object with an image and its captions"
    return content, None


def _read_list(path: Path, text: str) -> Iterator[Located]:
    try:
        objects = json.loads(text, object_pairs_hook=_unique_keys)
    except (ValueError, RecursionError) as error:
        line = f", line {error.lineno}" if isinstance(error, json.JSONDecodeError) else ""
        raise DataError(f"{path}{line}: is not JSON: {error}; download or write the file again") from error
    for position, content in enumerate(objects):
        if not isinstance(content, dict):
            raise DataError(f"{path}: [{position}] is {shown(content)!r}; expected an object")
        yield f"{path}: [{position}]", content


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    counts = Counter(key for key, _ in pairs)
    if len(counts) < len(pairs):
        key = max(counts, key=counts.__getitem__)
        raise ValueError(f"an object has the key {key[:80]!r} twice; give several captions as a list")
    return dict(pairs)
