"""Files of COCO's format and Karpathy's files of COCO: their images, captions and image files.

COCO's format has a list "images" with `id` and `file_name`, and a list "annotations" with `image_id` and `caption`.
VizWiz, NoCaps and many tools write it too, under other names.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from miniclip.data.formats.files import IMAGE_FOLDERS, find_files
from miniclip.data.formats.karpathy import KarpathyImage, read_json
from miniclip.data.formats.rows import ImageRow, shown
from miniclip.data.skipping import SkipLog
from miniclip.data.splits import SPLIT_NAMES
from miniclip.errors import DataError

_WORD = re.compile(r"[A-Za-z]+[0-9]*")
_SPLIT_WORD = re.compile(rf"({'|'.join(SPLIT_NAMES)})[0-9]*", re.IGNORECASE)


class CocoFile(NamedTuple):
    """A file of COCO's format.

    Attributes:
        path: the file.
        split: of its images, None if it is not certain.
        prefix: put before the names of its images, such as "train2017/"; file names of two splits may be equal.
        folders: folders that may hold the images, from `bases`.
        bases: the folders to start from.
    """

    path: Path
    split: str | None
    prefix: str
    folders: tuple[str, ...]
    bases: tuple[Path, ...]


def any_coco_file(path: Path, split: str | None) -> CocoFile:
    """Describe a file of any name: its images are beside it, or in a usual folder such as images/ or train/."""
    words = [word for word in _WORD.findall(path.stem) if _SPLIT_WORD.fullmatch(word)]
    folders = [folder for word in words for folder in image_folders(word)]
    bases = [path.parent]
    if path.parent.name.lower().startswith("annotation"):
        bases.append(path.parent.parent)
    return CocoFile(path, split, "", tuple(dict.fromkeys([*folders, *IMAGE_FOLDERS])), tuple(bases))


def image_folders(folder: str) -> tuple[str, ...]:
    """Return the usual places of a folder of images such as "train2017"."""
    return folder, f"images/{folder}", f"{folder}/{folder}"


def read_coco(file: CocoFile, skip_log: SkipLog, locate: bool = True) -> Iterator[ImageRow]:
    """Read a file of COCO's format; the captions of an image are sorted by their numbers.

    Args:
        file: the file.
        skip_log: receives the entries that cannot be used.
        locate: find the image files.

    Raises:
        DataError: the file has another layout, or has no captions.
    """
    content = read_json(file.path)
    captions = _captions(file.path, content, skip_log)
    images = _images(file.path, content, captions, skip_log)
    paths = find_images(file, [name for _, name, _ in images]) if locate else {}
    for location, name, image_id in images:
        texts = [text for _, text in sorted(captions.pop(image_id, []), key=lambda caption: caption[0])]
        yield ImageRow(location, f"{file.prefix}{name}", texts, file.split, paths.get(name))
    if captions:
        first = next(iter(captions))
        skip_log.add(
            f"{file.path}: annotations of {first!r}",
            f"{len(captions):,} values of 'image_id' are the 'id' of no image; add the images, or remove the captions",
        )


def _captions(path: Path, content: Any, skip_log: SkipLog) -> dict[Any, list[tuple[tuple[bool, int], str]]]:
    """Return the numbered captions of each image id."""
    captions: dict[Any, list[tuple[tuple[bool, int], str]]] = {}
    entries = list(_entries(path, content, "annotations"))
    if entries and not any(isinstance(entry, dict) and "caption" in entry for _, entry in entries):
        keys = ", ".join(map(repr, entries[0][1])) if isinstance(entries[0][1], dict) else "no object"
        raise DataError(
            f"{path}: its annotations have no 'caption' ({keys}), as those of boxes and keypoints; give a file with "
            "captions, such as COCO's captions_train2017.json"
        )
    for position, (location, annotation) in enumerate(entries):
        try:
            number = annotation.get("id")
            has_number = isinstance(number, int)
            caption = (not has_number, number if has_number else position), annotation["caption"]
            captions.setdefault(annotation["image_id"], []).append(caption)
        except (KeyError, TypeError, AttributeError):
            skip_log.add(location, f"is {shown(annotation)!r}; expected 'image_id', 'id' and 'caption'")
    return captions


def _images(
    path: Path, content: Any, captions: dict[Any, list[tuple[tuple[bool, int], str]]], skip_log: SkipLog
) -> list[tuple[str, str, Any]]:
    """Return the location, the file name and the id of each image; drop the captions of an id of two images."""
    images: list[tuple[str, str, Any]] = []
    name_of: dict[Any, str] = {}
    for location, image in _entries(path, content, "images"):
        try:
            name, image_id = str(image["file_name"]), image["id"]
            first = name_of.setdefault(image_id, name)
        except (KeyError, TypeError):
            skip_log.add(location, f"is {shown(image)!r}; expected 'id' and 'file_name'")
            continue
        if first == name:
            images.append((location, name, image_id))
        else:
            skip_log.add(location, f"{name} has the id {image_id!r} of {first}; give each image an id of its own")
            captions.pop(image_id, None)  # the captions of both images
    return images


def _entries(path: Path, content: Any, key: str) -> Iterator[tuple[str, Any]]:
    """Yield the location and the content of each entry of a list in the file."""
    entries = content.get(key) if isinstance(content, dict) else None
    if not isinstance(entries, list):
        raise DataError(f"{path}: expected COCO's layout, an object with lists 'images' and 'annotations'; no {key!r}")
    return ((f"{path}: {key}[{position}]", entry) for position, entry in enumerate(entries))


def find_images(file: CocoFile, names: Sequence[str]) -> dict[str, Path]:
    """Return the paths of the image files below the base that has most of them."""
    found: dict[str, Path] = {}
    for base in file.bases:
        paths = find_files(base, names, file.folders)[1]
        found = paths if len(paths) > len(found) else found
        if len(found) == len(names):
            break
    return found


# Karpathy's file


def karpathy_rows(images: Iterable[KarpathyImage], paths: Mapping[tuple[str, str], Path]) -> list[ImageRow]:
    """Return the rows of Karpathy's file; COCO's images are named with their folder."""
    return [
        ImageRow(
            image.location,
            f"{image.folder}/{image.name}" if image.folder else image.name,
            image.captions,
            image.split,
            paths.get((image.folder, image.name)),
        )
        for image in images
    ]


def find_karpathy_images(root: Path, images: Sequence[KarpathyImage]) -> dict[tuple[str, str], Path]:
    """Find image files, by folder and name, under their names of 2014, and the rest under those of 2017."""
    paths: dict[tuple[str, str], Path] = {}
    for folder in sorted({image.folder for image in images}):
        names = [image.name for image in images if image.folder == folder]
        listed = find_files(root, names, (*image_folders(folder), "images", "."))[1]
        paths |= {(folder, name): path for name, path in listed.items()}
    keys = {f"{image.coco_id:012d}.jpg": (image.folder, image.name) for image in images if image.coco_id}
    missing = {name: key for name, key in keys.items() if key not in paths}
    for folder in _all_image_folders(("train2017", "val2017")) if missing else ():
        for name, path in find_files(root, list(missing), (folder,))[1].items():
            paths.setdefault(missing[name], path)
    return paths


def _all_image_folders(folders: Iterable[str]) -> Iterator[str]:
    return (place for folder in folders for place in image_folders(folder))
