"""Layout of a JSON file, found from its start: Karpathy's, COCO's, or a table. The file's name has no part in it."""

from __future__ import annotations

import json
import mmap
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from miniclip.data.formats.files import list_folder
from miniclip.utils.files import open_regular

HEAD_BYTES = 1 << 16  # part of a file that is read to find its layout
MAX_FILES = 100  # JSON files of a folder whose start is read

JsonLayout = Literal["karpathy", "coco", "table"]

_IMAGES = re.compile(r'"images"\s*:\s*\[')
_ANNOTATIONS = re.compile(r'"annotations"\s*:\s*\[')


def read_head(path: Path) -> str:
    """Read the start of a file as text; bytes that are not UTF-8 are replaced. A file that cannot be read gives ""."""
    try:
        with open_regular(path) as file:  # reading a pipe would wait
            head = file.read(HEAD_BYTES)
    except OSError:
        return ""
    return head.decode("utf-16" if head.startswith((b"\xff\xfe", b"\xfe\xff")) else "utf-8-sig", "replace")


def json_layout(path: Path) -> JsonLayout:
    """Return the layout of a JSON file; "table" for any other than Karpathy's and COCO's."""
    head = read_head(path)
    if not head.lstrip().startswith("{"):
        return "table"
    entries = list(first_entries(head))
    if any("sentences" in entry and "filename" in entry for entry in entries):
        return "karpathy"
    is_coco = any("file_name" in entry and "id" in entry for entry in entries)
    if not entries and _ANNOTATIONS.search(head):  # the images come later
        is_coco = '"image_id"' in head
    return "coco" if is_coco else "table"


def first_entries(head: str) -> Iterator[dict[str, Any]]:
    """Yield the complete objects of a list "images" in the start of a file."""
    match = _IMAGES.search(head)
    decoder, position = json.JSONDecoder(), match.end() if match else len(head)
    while (position := _next_object(head, position)) >= 0:
        try:
            entry, position = decoder.raw_decode(head, position)
        except (ValueError, RecursionError):
            return
        if isinstance(entry, dict):
            yield entry


def _next_object(head: str, position: int) -> int:
    """Return the position of the next object of a list, -1 at the end of the list or of the text."""
    rest = head[position : position + 1000].lstrip(", \t\r\n")
    return len(head[: position + 1000]) - len(rest) if rest.startswith("{") else -1


def holds_captions(path: Path) -> bool:
    """Return whether a COCO file has captions; the files of boxes and keypoints have none."""
    try:
        with open_regular(path) as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return content.find(b'"caption"') >= 0
    except (OSError, ValueError):  # an empty file
        return False


def json_files(folder: Path) -> list[Path]:
    """Return the JSON files in a folder, without those of one image, such as img2dataset's `a.json` of `a.jpg`."""
    names, _ = list_folder(folder)
    stems = {name.rpartition(".")[0] for name in names if not name.lower().endswith((".json", ".txt"))}
    files = [name for name in names if name.lower().endswith(".json") and name[:-5] not in stems]
    return [folder / name for name in files[:MAX_FILES]]
