"""COCO Captions: the official files, and Karpathy's split of them.

Sources:
    Lin et al. 2014, "Microsoft COCO: common objects in context"; Chen et al. 2015, "Microsoft COCO captions".
    Split: Karpathy and Fei-Fei 2015.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Unpack

from miniclip.data.formats.captions import Captions
from miniclip.data.formats.files import find_files
from miniclip.data.formats.karpathy import KarpathyImage, read_json, read_karpathy
from miniclip.data.formats.options import ReadKeywords, ReadOptions
from miniclip.data.formats.rows import ImageRow, ImageRows, select, shown
from miniclip.data.skipping import SkipLog
from miniclip.data.splits import Split, normalize_split
from miniclip.errors import DataError

KARPATHY = "dataset_coco.json"
CAPTION_FOLDERS = (".", "annotations", "annotations_trainval2017/annotations", "annotations_trainval2014/annotations")
_OFFICIAL = re.compile(r"captions_(train|val)([0-9]{4})\.json")


class OfficialFile(NamedTuple):
    """One of the official files, such as captions_train2017.json."""

    path: Path
    split: str
    year: str

    @property
    def folder(self) -> str:
        """Name of the image folder, such as "train2017"."""
        return f"{self.split}{self.year}"


class CocoCaptions(Captions):
    """COCO Captions: 123,287 images with five captions each.

    `root` holds `annotations/captions_train2017.json` and `captions_val2017.json`, or those of 2014. The images are in
    folders such as `train2017/`, there or in `images/`. The official split has `train` and `val`; the captions of the
    test images were never published.

    With Karpathy's `dataset_coco.json` in `root` or `annotations/`, captions and split are his: 113,287 images in
    `train` (`restval` included), 5,000 in `val` and 5,000 in `test`. Published retrieval results are on his `test`. His
    file has the names of 2014; the same images under their names of 2017 also work.

    Args:
        root: the folder.
        split: "train", "val", "test", or "all".
        **options: as in `Captions`.

    Raises:
        FileNotFoundError: the folder does not exist.
        DataError: the files in the folder are not as described.
        ValueError: the split does not exist.
    """

    def __init__(self, root: str | Path, split: Split = "train", **options: Unpack[ReadKeywords]) -> None:
        self.root = Path(root).expanduser()
        self.split = split
        if not self.root.is_dir():
            raise FileNotFoundError(
                f"{self.root}: the folder does not exist; give the one that holds annotations/ and train2017/"
            )
        read_options = ReadOptions(split, **options)
        skip_log = read_options.new_skip_log()
        karpathy, official = find_coco(self.root)
        if karpathy is not None:
            dataset = _read_karpathy(self.root, karpathy, split, skip_log)
        elif official:
            dataset = _read_official(self.root, official, split, skip_log)
        else:
            raise DataError(
                f"{self.root}: holds no captions_train2017.json or captions_val2017.json (or of 2014) and no "
                f"{KARPATHY}; searched {', '.join(CAPTION_FOLDERS)}; extract annotations_trainval2017.zip there"
            )
        super().__init__(*select(dataset, read_options, skip_log))


def find_coco(root: Path) -> tuple[Path | None, list[OfficialFile]]:
    """Return Karpathy's file, and the official files of the newest year, train first."""
    folders = [root / folder for folder in CAPTION_FOLDERS if (root / folder).is_dir()]
    karpathy = next((folder / KARPATHY for folder in folders if (folder / KARPATHY).is_file()), None)
    official: dict[tuple[str, str], OfficialFile] = {}
    for path in (path for folder in folders for path in sorted(folder.glob("captions_*.json"))):
        match = _OFFICIAL.fullmatch(path.name)
        if match:
            official.setdefault((match[2], match[1]), OfficialFile(path, match[1], match[2]))
    newest = max((year for year, _ in official), default="")
    return karpathy, [file for (year, _), file in sorted(official.items()) if year == newest]


# The official files


def _read_official(root: Path, files: Sequence[OfficialFile], split: str, skip_log: SkipLog) -> ImageRows:
    source = files[0].path.parent
    if split == "test":
        raise ValueError(
            f"no split 'test': {source} has {', '.join(file.split for file in files)} (the captions of the test images "
            f"are not published); add Karpathy's {KARPATHY}, which has a test split"
        )
    rows = [row for file in files for row in _read_file(root, file, split, skip_log)]
    names = " and ".join(file.path.name for file in files)
    return ImageRows(source, rows, f"COCO Captions of {files[0].year}, {names}", root, exact_split=True)


def _read_file(root: Path, file: OfficialFile, split: str, skip_log: SkipLog) -> Iterator[ImageRow]:
    """Read one official file; captions are sorted by their numbers."""
    content = read_json(file.path)
    captions: dict[Any, list[tuple[int, str]]] = {}
    for location, annotation in _entries(file.path, content, "annotations"):
        try:
            captions.setdefault(annotation["image_id"], []).append((int(annotation["id"]), annotation["caption"]))
        except (KeyError, TypeError, ValueError):
            skip_log.add(location, f"is {shown(annotation)!r}; expected 'image_id', 'id' and 'caption'")
    images = []
    names: dict[Any, str] = {}
    for location, image in _entries(file.path, content, "images"):
        try:
            name, image_id = str(image["file_name"]), image["id"]
            first = names.setdefault(image_id, name)
        except (KeyError, TypeError):
            skip_log.add(location, f"is {shown(image)!r}; expected 'id' and 'file_name'")
            continue
        if first != name:
            skip_log.add(location, f"{name} has the id {image_id!r} of {first}; give each image an id of its own")
            captions.pop(image_id, None)  # of either image
        else:
            images.append((location, name, image_id))
    paths: dict[str, Path] = {}
    if split in (file.split, "all"):  # the image files of the other split are not needed
        paths = find_files(root, [name for _, name, _ in images], _image_folders(file.folder))[1]
    for location, name, image_id in images:
        texts = [text for _, text in sorted(captions.get(image_id, []), key=lambda caption: caption[0])]
        yield ImageRow(location, f"{file.folder}/{name}", texts, file.split, paths.get(name))


def _entries(path: Path, content: Any, key: str) -> Iterator[tuple[str, Any]]:
    """Yield the location and the content of each entry of a list in the file."""
    entries = content.get(key) if isinstance(content, dict) else None
    if not isinstance(entries, list):
        raise DataError(f"{path}: expected COCO's layout, an object with lists 'images' and 'annotations'; no {key!r}")
    return ((f"{path}: {key}[{position}]", entry) for position, entry in enumerate(entries))


def _image_folders(folder: str) -> tuple[str, ...]:
    return folder, f"images/{folder}", f"{folder}/{folder}"


# Karpathy's file


def _read_karpathy(root: Path, file: Path, split: str, skip_log: SkipLog) -> ImageRows:
    images = read_karpathy(file, skip_log)
    paths = _find_images(root, [image for image in images if split in ("all", normalize_split(image.split))])
    rows = [
        ImageRow(
            image.location,
            f"{image.folder}/{image.name}" if image.folder else image.name,
            image.captions,
            image.split,
            paths.get((image.folder, image.name)),
        )
        for image in images
    ]
    return ImageRows(file, rows, f"COCO Captions, Karpathy's {file.name}", root, exact_split=True)


def _find_images(root: Path, images: Sequence[KarpathyImage]) -> dict[tuple[str, str], Path]:
    """Find image files, by folder and name, under their names of 2014, and the rest under those of 2017."""
    paths: dict[tuple[str, str], Path] = {}
    for folder in sorted({image.folder for image in images}):
        names = [image.name for image in images if image.folder == folder]
        listed = find_files(root, names, (*_image_folders(folder), "images", "."))[1]
        paths |= {(folder, name): path for name, path in listed.items()}
    keys = {f"{image.coco_id:012d}.jpg": (image.folder, image.name) for image in images if image.coco_id}
    missing = {name: key for name, key in keys.items() if key not in paths}
    for folder in _all_image_folders(("train2017", "val2017")) if missing else ():
        for name, path in find_files(root, list(missing), (folder,))[1].items():
            paths.setdefault(missing[name], path)
    return paths


def _all_image_folders(folders: Iterable[str]) -> Iterator[str]:
    return (place for folder in folders for place in _image_folders(folder))
