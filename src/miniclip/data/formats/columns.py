"""Which columns of a table hold the pictures, the captions and the split: those named, or those with a usual name."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from miniclip.errors import DataError
from miniclip.utils.checks import did_you_mean

# In the order in which they are believed, in lower case.
IMAGE = (
    "image",
    "images",
    "image_path",
    "img_path",
    "filepath",
    "file_path",
    "path",
    "image_file",
    "image_name",
    "filename",
    "file_name",
    "file",
    "img",
    "picture",
    "photo",
    "image_url",
    "url",
)
CAPTION = (
    "caption",
    "captions",
    "text",
    "texts",
    "txt",
    "comment",
    "sentence",
    "sentences",
    "raw",
    "description",
    "title",
    "alt_text",
    "alt",
    "prompt",
)
SPLIT = "split"
NAME = ("filename", "file_name", "image_name", "image_id", "img_id", "imgid", "cocoid")
_NUMBERED = re.compile(r"(caption|comment|sentence|text|raw|description)[ _-]?[0-9]+")


class Columns(NamedTuple):
    """The columns of a table, by name.

    Attributes:
        image: the pictures, or their paths.
        captions: one column, or several, each with a caption.
        split: the split; None where there is none.
        name: for pictures that lie in the table itself, what they are called; None where nothing says it.
    """

    image: str
    captions: tuple[str, ...]
    split: str | None
    name: str | None

    def __str__(self) -> str:
        return f"pictures from {self.image!r}, captions from {', '.join(map(repr, self.captions))}"


def choose(path: Path | str, found: Sequence[str], image: str | None, caption: str | Sequence[str] | None) -> Columns:
    """Say which columns are which.

    Args:
        path: the table, for the error.
        found: its columns.
        image: the pictures' column; None: the first of `IMAGE` that there is.
        caption: the captions' column or columns; None: the first of `CAPTION` that there is, or caption_0, caption_1, …

    Raises:
        DataError: a column is not there; the message lists those that are.
    """
    by_lower = {column.strip().lower(): column for column in reversed(found)}
    usual = next((by_lower[name] for name in IMAGE if name in by_lower), None)
    pictures = _named(path, found, image) if image else usual
    if caption is not None:
        asked = (caption,) if isinstance(caption, str) else tuple(caption)
        captions = tuple(_named(path, found, name) for name in asked)
    else:
        captions = _usual_captions(by_lower, found)
    if pictures is None or not captions:
        missing = "pictures" if pictures is None else "captions"
        names = IMAGE if pictures is None else CAPTION
        raise DataError(
            f"{path}: found the columns {', '.join(map(repr, found))}, and none with a usual name for the {missing} "
            f"({', '.join(names[:6])}, …): say which it is with {'image' if pictures is None else 'caption'}=, or "
            "write the names into the first line"
        )
    twice = next((column for column in (pictures, *captions) if list(found).count(column) > 1), None)
    if twice is not None:
        raise DataError(
            f"{path}: two columns are called {twice!r}; call them differently, such as caption_0, caption_1"
        )
    name = next((by_lower[name] for name in NAME if name in by_lower and by_lower[name] != pictures), None)
    return Columns(pictures, captions, by_lower.get(SPLIT), name)


def recognised(found: Iterable[str]) -> int:
    """How many of the names are usual ones: what tells a header, and its separator."""
    known = {*IMAGE, *CAPTION, SPLIT, *NAME}
    return sum(name.strip().lower() in known or bool(_NUMBERED.fullmatch(name.strip().lower())) for name in found)


def _named(path: Path | str, found: Sequence[str], name: str) -> str:
    if name not in found:
        raise DataError(f"{path}: no column {name!r}{did_you_mean(name, found)}")
    return name


def _usual_captions(by_lower: dict[str, str], found: Sequence[str]) -> tuple[str, ...]:
    for name in CAPTION:
        if name in by_lower:
            return (by_lower[name],)
    return tuple(column for column in found if _NUMBERED.fullmatch(column.strip().lower()))


def as_list(cell: str) -> list[Any] | None:
    """The captions of a cell that holds a list of strings, as JSON or as Python writes it; None for any other."""
    cell = cell.strip()
    if not (cell.startswith("[") and cell.endswith("]")):
        return None
    try:
        value = json.loads(cell)
    except ValueError:
        try:
            value = ast.literal_eval(cell)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            return None
    return value if isinstance(value, list) and all(isinstance(own, str) for own in value) else None
