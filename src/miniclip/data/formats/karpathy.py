"""Karpathy's split files, as of Flickr8k, Flickr30k and COCO: images[].filename, .split, .sentences[].raw.

Source: Karpathy and Fei-Fei 2015, "Deep visual-semantic alignments for generating image descriptions".
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from miniclip.data.formats.text_files import read_text
from miniclip.data.skipping import SkipLog
from miniclip.errors import DataError


class Image(NamedTuple):
    """One picture of the file.

    Attributes:
        where: its place in the file.
        folder: COCO's "val2014"; "" in the others.
        name: the file's name.
        split: "train", "restval", "val" or "test".
        captions: its sentences.
        cocoid: COCO's number; None in the others.
    """

    where: str
    folder: str
    name: str
    split: str
    captions: list[str]
    cocoid: int | None


def read_karpathy(path: Path, skip_log: SkipLog) -> list[Image]:
    """Read a split file.

    Raises:
        FileNotFoundError: there is no such file.
        DataError: it is no such file, or an entry of it cannot be taken apart.
    """
    content = read_json(path)
    images = content.get("images") if isinstance(content, dict) else None
    if not isinstance(images, list):
        raise DataError(f"{path}: expected Karpathy's layout, an object with a list 'images'; found none")
    if not images:
        raise DataError(f"{path}: names no pictures")
    found = []
    for position, image in enumerate(images):
        where = f"{path}: images[{position}]"
        read = _parse(where, image)
        if read is None:
            expected = "an object with 'filename', 'split' and 'sentences', each of which has 'raw'"
            skip_log.add(where, f"is {str(image)[:80]!r}; expected {expected}")
        else:
            found.append(read)
    skip_log.require_few(len(images))
    return found


def read_json(path: Path) -> Any:
    """The content of a JSON file.

    Raises:
        FileNotFoundError: there is no such file.
        DataError: it is not JSON, or not UTF-8.
    """
    try:
        return json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise DataError(f"{path}, line {error.lineno}: is not JSON: {error.msg}; download the file again") from error


def _parse(where: str, image: Any) -> Image | None:
    try:
        name, split = image["filename"], image["split"]
        sentences = [sentence["raw"] for sentence in image["sentences"]]
        folder, cocoid = image.get("filepath", ""), image.get("cocoid")
    except (KeyError, TypeError, AttributeError):
        return None
    words = [name, split, folder, *sentences]
    if not all(isinstance(word, str) for word in words):
        return None
    return Image(where, folder, name, split, sentences, cocoid if isinstance(cocoid, int) else None)


def find_split_file(folders: Iterable[Path], own: str) -> Path | None:
    """The split file in the first of the folders that has one.

    Args:
        folders: where to look.
        own: the name of this set's, which wins: Karpathy's download holds the files of three sets.

    Raises:
        DataError: a folder has several, and none is this set's.
    """
    for folder in folders:
        found = sorted(folder.glob("dataset_*.json"))
        best = [path for path in found if path.name == own] or found
        if len(best) > 1:
            names = ", ".join(path.name for path in best)
            raise DataError(f"{folder}: holds {len(best)} split files ({names}); leave only the one of this set there")
        if best:
            return best[0]
    return None
