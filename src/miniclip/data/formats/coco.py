"""COCO Captions: the official files, and Karpathy's split of them.

Sources:
    COCO: Lin et al. 2014, "Microsoft COCO: common objects in context"; its captions: Chen et al. 2015.
    The split: Karpathy and Fei-Fei 2015.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from miniclip.data.dataset import Captions
from miniclip.data.formats.files import find_files
from miniclip.data.formats.karpathy import Image, read_json, read_karpathy
from miniclip.data.formats.rows import Entry, Rule, collect
from miniclip.data.skipping import MAX_SKIP_FRACTION, OnError, SkipLog
from miniclip.data.splits import Split
from miniclip.errors import DataError

KARPATHY = "dataset_coco.json"
_OFFICIAL = re.compile(r"captions_(train|val)([0-9]{4})\.json")
PLACES = (".", "annotations", "annotations_trainval2017/annotations", "annotations_trainval2014/annotations")


class Official(NamedTuple):
    """One of the official files: captions_train2017.json."""

    path: Path
    split: str
    year: str


class CocoCaptions(Captions):
    """COCO Captions: 123,287 pictures, five captions each.

    `root` holds `annotations/captions_train2017.json` and `captions_val2017.json`, or those of 2014, and the pictures
    in folders such as `train2017/`, there or in `images/`. The official split has `train` and `val`; the captions of
    the test pictures were never published.

    With Karpathy's `dataset_coco.json` in `root` or `annotations/`, captions and split are his: 113,287 pictures in
    `train` with his `restval`, 5,000 in `val`, 5,000 in `test`; published retrieval figures are on his `test`. His
    file names the pictures of 2014; those of 2017, which are the same under other names, serve as well.

    Args:
        root: the folder.
        split: "train", "val", "test", or "all" for everything.
        seed: of a drawn split, where a part of the files is there alone.
        on_error: "raise" at an entry or a picture that cannot be used, or "skip" it, named in `skip_log`.
        max_skip_fraction: the share that may be left out.

    Raises:
        FileNotFoundError: there is no such folder.
        DataError: the folder's files are not as described.
        ValueError: no such split.
    """

    def __init__(
        self,
        root: str | Path,
        split: Split = "train",
        *,
        seed: int = 0,
        on_error: OnError = "raise",
        max_skip_fraction: float = MAX_SKIP_FRACTION,
    ) -> None:
        self.root = Path(root).expanduser()
        self.split = split
        if not self.root.is_dir():
            raise FileNotFoundError(f"{self.root}: no such folder; give the one that holds annotations/ and train2017/")
        rule, skip_log = Rule(split, seed, on_error, max_skip_fraction), SkipLog(on_error, max_skip_fraction)
        karpathy, official = find_coco(self.root)
        if karpathy is not None:
            entries = _of_karpathy(self.root, read_karpathy(karpathy, skip_log), split)
            source, about = karpathy, f"COCO Captions, Karpathy's {karpathy.name}"
        elif official:
            entries = [entry for file in official for entry in _read_official(self.root, file, split, skip_log)]
            source, about = official[0].path.parent, f"COCO Captions of {official[0].year}, {_names(official)}"
            if split == "test":
                raise ValueError(
                    f"no split 'test': {source} has {', '.join(file.split for file in official)} (the captions of the "
                    f"test pictures are not published); Karpathy's {KARPATHY} beside them has a test split"
                )
        else:
            raise DataError(
                f"{self.root}: holds no captions_train2017.json or captions_val2017.json (or of 2014) and no "
                f"{KARPATHY}; looked in {', '.join(PLACES)}; extract annotations_trainval2017.zip there"
            )
        found = collect(source, entries, rule, skip_log, about=about, base=self.root, exact=True)
        super().__init__(found.paths, found.captions, skip_log=found.skip_log, splits=found.splits, about=found.about)


def find_coco(root: Path) -> tuple[Path | None, list[Official]]:
    """Karpathy's file, and the official files of the newest year, train first."""
    folders = [root / place for place in PLACES if (root / place).is_dir()]
    karpathy = next((folder / KARPATHY for folder in folders if (folder / KARPATHY).is_file()), None)
    found: dict[tuple[str, str], Official] = {}
    for path in (path for folder in folders for path in sorted(folder.glob("captions_*.json"))):
        match = _OFFICIAL.fullmatch(path.name)
        if match:
            found.setdefault((match[2], match[1]), Official(path, match[1], match[2]))
    newest = max((year for year, _ in found), default="")
    return karpathy, [file for (year, _), file in sorted(found.items()) if year == newest]


def _names(files: Sequence[Official]) -> str:
    return " and ".join(file.path.name for file in files)


def _read_official(root: Path, file: Official, split: str, skip_log: SkipLog) -> Iterator[Entry]:
    """The pictures of an official file, with their captions by number."""
    content = read_json(file.path)
    images, annotations = (_list(file.path, content, key) for key in ("images", "annotations"))
    captions: dict[Any, list[tuple[int, str]]] = {}
    for position, annotation in enumerate(annotations):
        try:
            captions.setdefault(annotation["image_id"], []).append((annotation["id"], annotation["caption"]))
        except (KeyError, TypeError):
            where = f"{file.path}: annotations[{position}]"
            skip_log.add(where, f"is {str(annotation)[:80]!r}; expected 'image_id', 'id' and 'caption'")
    rows = []
    for position, image in enumerate(images):
        try:
            rows.append((f"{file.path}: images[{position}]", str(image["file_name"]), image["id"]))
        except (KeyError, TypeError):
            where = f"{file.path}: images[{position}]"
            skip_log.add(where, f"is {str(image)[:80]!r}; expected 'id' and 'file_name'")
    folder = f"{file.split}{file.year}"
    paths = {}
    if split in (file.split, "all"):  # the other split's pictures need not be there
        paths = find_files(root, [name for _, name, _ in rows], _places(folder))[1]
    for where, name, number in rows:
        own = [text for _, text in sorted(captions.get(number, []), key=_number)]
        yield Entry(where, f"{folder}/{name}", own, file.split, paths.get(name))


def _number(caption: tuple[int, str]) -> int:
    return caption[0]


def _list(path: Path, content: Any, key: str) -> list[Any]:
    value = content.get(key) if isinstance(content, dict) else None
    if not isinstance(value, list):
        raise DataError(f"{path}: expected COCO's layout, an object with lists 'images' and 'annotations'; no {key!r}")
    return value


def _places(*folders: str) -> tuple[str, ...]:
    return tuple(f"{above}{folder}" for folder in folders for above in ("", "images/", f"{folder}/"))


def _of_karpathy(root: Path, images: Sequence[Image], split: str) -> list[Entry]:
    """His pictures, by his names or, where those of 2017 are there, by theirs."""
    entries = []
    wanted = [image for image in images if split in ("all", image.split, "train" if image.split == "restval" else "")]
    paths: dict[str, Path] = {}
    for folder in sorted({image.folder for image in wanted}):
        names = [image.name for image in wanted if image.folder == folder]
        paths |= find_files(root, names, (*_places(folder), "images", "."))[1]
    lost = {f"{image.cocoid:012d}.jpg": image.name for image in wanted if image.cocoid and image.name not in paths}
    for year in ("train2017", "val2017"):  # each has some of them
        for place in _places(year) if lost else ():
            for name, path in find_files(root, list(lost), (place,))[1].items():
                paths.setdefault(lost[name], path)
    for image in images:
        name = f"{image.folder}/{image.name}" if image.folder else image.name
        entries.append(Entry(image.where, name, image.captions, image.split, paths.get(image.name)))
    return entries
