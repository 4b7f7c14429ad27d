"""JSONL files with one object a line, and JSON files of such objects: a list, one a split, or `{"a.jpg": "a dog"}`."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from miniclip.data.formats.cells import optional_text, read_cells
from miniclip.data.formats.columns import (
    CAPTION_COLUMNS,
    IMAGE_COLUMNS,
    SPLIT_COLUMN,
    ColumnNames,
    Columns,
    choose_columns,
    warn_of_other_captions,
)
from miniclip.data.formats.rows import ImageRow, ImageRows, shown
from miniclip.data.formats.text_files import read_text
from miniclip.data.skipping import SkipLog
from miniclip.data.splits import SPLIT_NAMES
from miniclip.errors import DataError

_IN_PANDAS = ' (in pandas: to_json(path, orient="records"))'
MAX_LINE_LENGTH = 1 << 24  # characters; parsed JSON takes many times its size in memory

Located = tuple[str, dict[str, Any]]  # location of an object, and the object


def read_json_lines(path: Path, skip_log: SkipLog, names: ColumnNames, split: str | None = None) -> ImageRows:
    """Read a file of objects.

    Args:
        path: the file.
        skip_log: receives the objects that cannot be used.
        names: keys that the user chose.
        split: the split of all objects, without a key of splits.

    Raises:
        FileNotFoundError: the file does not exist.
        DataError: a key is missing, a line is not JSON, or the file has another encoding.
    """
    text = read_text(path, skip_log.on_error)
    content = _parse_whole(path, text)
    objects = list(_read_lines(path, text, skip_log) if content is None else _read_objects(path, content, names))
    if not objects:
        raise DataError(f'{path}: holds no objects; expected lines such as {{"image": "a.jpg", "caption": "a dog"}}')
    header = dict.fromkeys(key for _, content in objects for key in content)  # the first may have fewer captions
    columns = choose_columns(path, list(header), names)
    warn_of_other_captions(path, list(header), columns, names)
    rows = _read_rows(objects, columns, names, skip_log, split)
    return ImageRows(path, rows, f"{path.name}, {columns}", exact_split=columns.split is not None)


def first_objects(path: Path, names: ColumnNames, count: int) -> list[dict[str, Any]]:
    """Return the first objects of a file, without those that cannot be parsed.

    Raises:
        OSError: the file cannot be read.
        DataError: it is not JSON, or has another encoding.
    """
    text = read_text(path)
    content = _parse_whole(path, text)
    if content is not None:
        return [entry for _, entry in islice(_read_objects(path, content, names), count)]
    lines = (line for line in text.split("\n") if line.strip())
    return [entry for entry, problem in map(_parse, islice(lines, count)) if problem is None]


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
            group = (optional_text(content.get(columns.group)) or "") if columns.group else None
            yield ImageRow(location, name.strip(), texts, own_split or split, group=group)


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
    if len(line) > MAX_LINE_LENGTH:
        return {}, f"has {len(line):,} characters, more than {MAX_LINE_LENGTH:,}; expected an image with its captions"
    try:
        content = json.loads(line, object_pairs_hook=_unique_keys)
    except (ValueError, RecursionError) as error:
        reason = f"{error.msg} (column {error.colno})" if isinstance(error, json.JSONDecodeError) else str(error)
        return {}, f"is not JSON: {reason}; expected one object a line"
    if not isinstance(content, dict):
        return {}, f"is {line.strip()[:80]!r}; expected an object with an image and its captions"
    return content, None


def _parse_whole(path: Path, text: str) -> Any:
    """Return the list or the object of a JSON file; None for a file of lines.

    Raises:
        DataError: the file is not JSON.
    """
    is_list = text.lstrip().startswith("[")
    try:
        content = json.loads(text, object_pairs_hook=_unique_keys)
    except (ValueError, RecursionError) as error:
        syntax_error = error if isinstance(error, json.JSONDecodeError) else None
        are_lines = syntax_error is not None and syntax_error.msg == "Extra data"
        if not text.strip() or not (is_list or (path.suffix.lower() == ".json" and not are_lines)):
            return None
        line = f", line {syntax_error.lineno}" if syntax_error else ""
        raise DataError(f"{path}{line}: is not JSON: {error}; download or write the file again") from error
    return content if isinstance(content, list | dict) else None


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    counts = Counter(key for key, _ in pairs)
    if len(counts) < len(pairs):
        key = max(counts, key=counts.__getitem__)
        raise ValueError(f"an object has the key {key[:80]!r} twice; give several captions as a list")
    return dict(pairs)


def _read_objects(path: Path, content: Any, names: ColumnNames) -> Iterator[Located]:
    """Yield the objects of a JSON file and their locations.

    Raises:
        DataError: the file has another layout.
    """
    if isinstance(content, dict) and _is_mapping(path, content, names):
        yield from _read_mapping(path, content, names)
        return
    for position, entry in enumerate([content] if isinstance(content, dict) else content):
        if not isinstance(entry, dict):
            raise DataError(f"{path}: [{position}] is {shown(entry)!r}; expected an object{_IN_PANDAS}")
        yield f"{path}: [{position}]", entry


def _read_mapping(path: Path, content: dict[str, Any], names: ColumnNames) -> Iterator[Located]:
    """Yield the objects of a JSON object that has names of images or of splits as its keys, or one list of objects."""
    lists = {key: value for key, value in content.items() if _is_list_of_objects(value)}
    if lists and (len(lists) == 1 or all(key.lower() in SPLIT_NAMES for key in lists)):
        for key, entries in lists.items():
            split = {SPLIT_COLUMN: key} if key.lower() in SPLIT_NAMES else {}
            yield from ((f"{path}: {key}[{position}]", split | entry) for position, entry in enumerate(entries))
        return
    for key, value in content.items():
        location = f"{path}: {key!r}"
        is_text = isinstance(value, str) or (isinstance(value, list) and all(isinstance(text, str) for text in value))
        if key.lower() in (*IMAGE_COLUMNS, *CAPTION_COLUMNS) or not (is_text or isinstance(value, dict)):
            raise DataError(
                f'{path}: {key!r} is {shown(value)!r}; expected {{"a.jpg": "a dog"}} with all images, or a list '
                f'of objects, [{{"image": "a.jpg", "caption": "a dog"}}]{_IN_PANDAS}'
            )
        if is_text:
            yield location, {IMAGE_COLUMNS[0]: key, CAPTION_COLUMNS[0]: value}
        else:
            yield location, value if _is_row(path, value, names) else {IMAGE_COLUMNS[0]: key} | value


def _is_mapping(path: Path, content: dict[str, Any], names: ColumnNames) -> bool:
    """Return whether an object holds several images, and is not one."""
    holds_more = any(
        isinstance(value, dict) or (isinstance(value, list) and not all(isinstance(item, str) for item in value))
        for value in content.values()
    )
    return not _is_row(path, content, names) and (holds_more or any(Path(key).suffix for key in content))


def _is_row(path: Path, content: dict[str, Any], names: ColumnNames) -> bool:
    """Return whether an object is an image with its captions."""
    try:
        columns = choose_columns(path, list(content), names)
    except DataError:
        return False
    return not isinstance(content[columns.image], list | dict)


def _is_list_of_objects(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(entry, dict) for entry in value)
