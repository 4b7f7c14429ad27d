"""Karpathy's split files of Flickr8k, Flickr30k and COCO: images[].filename, .split, .sentences[].raw.

Source: Karpathy and Fei-Fei 2015, "Deep visual-semantic alignments for generating image descriptions".
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from miniclip.data.formats.json_layouts import json_files, json_layout
from miniclip.data.formats.text_files import read_text
from miniclip.data.skipping import SkipLog
from miniclip.errors import DataError
from miniclip.utils.files import parse_json


class KarpathyImage(NamedTuple):
    """Entry of a split file.

    Attributes:
        location: its place in the file, for messages.
        folder: COCO's "val2014"; "" in the other datasets.
        name: the file name.
        split: "train", "restval", "val" or "test".
        captions: its sentences.
        coco_id: COCO's number of the image; None in the other datasets.
    """

    location: str
    folder: str
    name: str
    split: str
    captions: list[str]
    coco_id: int | None


def read_karpathy(path: Path, skip_log: SkipLog) -> list[KarpathyImage]:
    """Read a split file.

    Raises:
        FileNotFoundError: the file does not exist.
        DataError: the file or an entry has another layout.
    """
    content = read_json(path)
    entries = content.get("images") if isinstance(content, dict) else None
    if not isinstance(entries, list):
        raise DataError(f"{path}: expected Karpathy's layout, an object with a list 'images'; found none")
    if not entries:
        raise DataError(f"{path}: lists no images")
    images = []
    for position, entry in enumerate(entries):
        location = f"{path}: images[{position}]"
        image = _parse(location, entry)
        if image is None:
            expected = "an object with 'filename', 'split' and 'sentences', each of which has 'raw'"
            skip_log.add(location, f"is {str(entry)[:80]!r}; expected {expected}")
        else:
            images.append(image)
    skip_log.check_fraction(len(entries))
    return images


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        FileNotFoundError: the file does not exist.
        DataError: the file is not JSON, or not UTF-8.
    """
    text = read_text(path)
    try:
        return parse_json(text)
    except json.JSONDecodeError as error:
        raise DataError(f"{path}, line {error.lineno}: is not JSON: {error.msg}; download the file again") from error
    except (ValueError, MemoryError) as error:
        reason = str(error) or "does not fit in this machine's memory"
        raise DataError(f"{path}: is not JSON: {reason}; download the file again") from error


def _parse(location: str, entry: Any) -> KarpathyImage | None:
    try:
        name, split = entry["filename"], entry["split"]
        captions = [sentence["raw"] for sentence in entry["sentences"]]
        folder, coco_id = entry.get("filepath", ""), entry.get("cocoid")
    except (KeyError, TypeError, AttributeError):
        return None
    if not all(isinstance(value, str) for value in [name, split, folder, *captions]):
        return None
    return KarpathyImage(location, folder, name, split, captions, coco_id if isinstance(coco_id, int) else None)


def find_split_file(folders: Iterable[Path], preferred: str) -> Path | None:
    """Find the split file in the first of the folders that has one.

    Args:
        folders: where to search.
        preferred: the name of this dataset's file. Karpathy's download holds the files of three datasets.

    Raises:
        DataError: a folder has several, and none has the preferred name.
    """
    for folder in folders:
        if (folder / preferred).is_file():
            return folder / preferred
        paths = [path for path in json_files(folder) if json_layout(path) == "karpathy"]
        if len(paths) > 1:
            names = ", ".join(path.name for path in paths)
            raise DataError(
                f"{folder}: holds {len(paths)} split files ({names}); keep only the one of this dataset there"
            )
        if paths:
            return paths[0]
    return None
