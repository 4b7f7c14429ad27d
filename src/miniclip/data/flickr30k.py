"""Flickr30k as people have it on disk, and any set in the layout of its Kaggle release.

Sources:
    Flickr30k: Young et al. 2014, "From image descriptions to visual denotations", in the layout of its Kaggle release.
    The split file: Karpathy and Fei-Fei 2015, "Deep visual-semantic alignments for generating image descriptions".
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from miniclip.data.pairs import Captions
from miniclip.errors import DataError

Split = Literal["train", "val", "test", "all"]

TABLE = "results.csv"
COLUMNS = ("image_name", "comment_number", "comment")

# Where the table lies below the folder that a user names, and where the pictures lie below the table's folder. Literal
# lists, since a walk over 31,000 files to find one is slow on the network disks that such sets live on.
TABLE_PLACES = (".", "flickr30k_images", "flickr30k-images", "flickr30k", "flickr30k_images/flickr30k_images")
PICTURE_PLACES = (
    "flickr30k_images",
    "flickr30k-images",
    "images",
    "Images",
    "Flicker8k_Dataset",
    "Flickr8k_Dataset",
    "flickr30k_images/flickr30k_images",
    ".",
)

# The second pipe is missing in one row of the Kaggle file: "2199200615.jpg| 4   A dog runs across the grass .".
_ROW = re.compile(r"(?P<name>[^|]*[^|\s])\s*\|\s*(?P<number>[0-9]{1,9})(?:\s*\||\s+(?=\S))(?P<caption>.*)", re.DOTALL)


class Flickr30k(Captions):
    """Flickr30k (31,783 pictures, five captions each), or any set in the layout of its Kaggle release.

    A folder holds `results.csv`, whose header is `image_name| comment_number| comment`, and the pictures, beside it or
    in a folder such as `flickr30k_images/` or `images/`. `root` is that folder, or the one above.

    The split is Karpathy's where his `dataset_flickr30k.json` (or another `dataset_*.json` of that layout) lies beside
    `results.csv` or in `root`; `restval` counts as `train`, and pictures that he left out are left out, also of "all"
    (`left_out` counts them: 769 of Flickr30k). Without `results.csv`, the captions come from that file too. Without
    his file, a hash of the seed and the picture's name draws 1,000 pictures for `val` and 1,000 for `test`, or a tenth
    of a smaller set for each, and the rest is `train`; the order of the rows does not matter to it.

    Args:
        root: the folder.
        split: "train", "val", "test", or "all" for everything.
        seed: of the drawn split; without effect where there is a split file.

    Raises:
        FileNotFoundError: there is no such folder.
        DataError: the folder's files are not as described: the message names the file, and the line where there is one.
        ValueError: no such split.
    """

    def __init__(self, root: str | Path, split: Split = "train", *, seed: int = 0) -> None:
        self.root = _existing_folder(root)
        self.split = split
        base, table, split_file = _find_files(self.root)
        karpathy = None if split_file is None else _read_split_file(split_file)
        captions = _read_table(table) if table else karpathy.captions if karpathy else {}
        splits = karpathy.splits if karpathy else _drawn_splits(captions, seed)
        kept = [name for name in captions if name in splits]
        self.left_out = len(captions) - len(kept)
        if not kept:
            raise DataError(
                f"{split_file}: names none of the {len(captions)} pictures of {table}; is it another set's?"
            )
        folder = _find_pictures(base, kept)
        chosen = _choose(kept, splits, split, split_file)
        super().__init__([folder / name for name in chosen], [captions[name] for name in chosen])


# Finding the files


def _existing_folder(root: str | Path) -> Path:
    folder = Path(root).expanduser()
    if not folder.is_dir():
        found = "a file, not a folder" if folder.exists() else "nothing there"
        raise FileNotFoundError(f"{folder}: {found}; give the folder that holds {TABLE} and the pictures")
    return folder


def _find_files(root: Path) -> tuple[Path, Path | None, Path | None]:
    """The folder of the set, its table and its split file; at least one of the two is there."""
    bases = [root / place for place in TABLE_PLACES if (root / place).is_dir()]
    table = next((base / TABLE for base in bases if (base / TABLE).is_file()), None)
    split_file = _find_split_file([table.parent, root] if table else bases)
    named_by = table or split_file
    if named_by is None:
        looked = ", ".join(TABLE_PLACES)
        raise DataError(
            f"{root}: holds no {TABLE} (header {'| '.join(COLUMNS)}) and no dataset_*.json (Karpathy's layout); "
            f"looked in {looked}; extract the Kaggle release of Flickr30k there, or give the folder that holds them"
        )
    return named_by.parent, table, split_file


def _find_split_file(folders: Iterable[Path]) -> Path | None:
    for folder in folders:
        found = sorted(folder.glob("dataset_*.json"))
        # Karpathy's download holds the files of three sets, and people extract all of it
        own = [path for path in found if path.name == "dataset_flickr30k.json"] or found
        if len(own) > 1:
            names = ", ".join(path.name for path in own)
            raise DataError(f"{folder}: holds {len(own)} split files ({names}); leave only the one of this set there")
        if own:
            return own[0]
    return None


def _find_pictures(base: Path, names: Sequence[str]) -> Path:
    """The folder, at or below the set's, that holds every one of the pictures."""
    nearest, missing = base, list(names)
    for place in PICTURE_PLACES:
        folder = base / place
        if not folder.is_dir():
            continue
        with os.scandir(folder) as entries:
            present = {entry.name for entry in entries}
        absent = [name for name in names if name not in present]
        if not absent:
            return folder
        if len(absent) < len(missing):
            nearest, missing = folder, absent
    first = ", ".join(missing[:3]) + (", …" if len(missing) > 3 else "")
    raise DataError(
        f"{base}: {len(missing)} of the {len(names)} pictures that have captions are not in {nearest}: {first}; "
        f"extract all the pictures there, or take the rows of the missing ones out"
    )


# Reading the files


def _read_text(path: Path) -> str:
    data = path.read_bytes()
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        found = data[error.start : error.start + 1]
        raise DataError(f"{path}, line {line}: byte {found!r} is not UTF-8; save the file as UTF-8") from error


def _read_table(path: Path) -> dict[str, list[str]]:
    """Read results.csv: the captions of each picture by their numbers, the pictures in the order of the file."""
    lines = _read_text(path).split("\n")  # not splitlines: captions may hold other characters that it breaks at
    _check_header(path, lines[0])
    numbered: dict[str, list[tuple[int, str]]] = {}
    for number, line in enumerate(lines[1:], start=2):
        if not line.strip():
            continue
        name, comment_number, caption = _parse_row(path, number, line)
        rows = numbered.setdefault(name, [])
        if caption:  # a blank caption is left out: it describes nothing
            rows.append((comment_number, caption))
    return _complete(path, {name: [text for _, text in sorted(rows, key=_number)] for name, rows in numbered.items()})


def _number(row: tuple[int, str]) -> int:
    return row[0]


def _check_header(path: Path, line: str) -> None:
    found = [column.strip() for column in line.split("|")]
    expected = "| ".join(COLUMNS)
    missing = [column for column in COLUMNS if column not in found]
    if missing:
        raise DataError(
            f"{path}, line 1: no column {', '.join(missing)}; found {', '.join(map(repr, found))}; "
            f"the first line must be {expected!r}"
        )
    if found != list(COLUMNS):
        raise DataError(f"{path}, line 1: the columns are {', '.join(found)}; the first line must be {expected!r}")


def _parse_row(path: Path, number: int, line: str) -> tuple[str, int, str]:
    """Take a row apart. Quotes are literal, and so is every pipe after the second."""
    match = _ROW.match(line.strip())
    if match is None:
        shown = line.strip() if len(line) <= 80 else line.strip()[:80] + "…"
        raise DataError(f"{path}, line {number}: found {shown!r}; expected 'picture.jpg| 0| a caption'; mend the row")
    return match["name"], int(match["number"]), match["caption"].strip()


def _complete(path: Path, captions: dict[str, list[str]]) -> dict[str, list[str]]:
    """Return the captions if there are any, and some for every picture."""
    if not captions:
        raise DataError(f"{path}: names no pictures; expected rows such as 'picture.jpg| 0| a caption'")
    bare = next((name for name, own in captions.items() if not own), None)
    if bare is not None:
        raise DataError(f"{path}: {bare} has no caption that is not blank; write one, or take its rows out")
    return captions


class _SplitFile(NamedTuple):
    splits: dict[str, str]
    captions: dict[str, list[str]]


def _read_split_file(path: Path) -> _SplitFile:
    """Read a file in Karpathy's layout: images[].filename, .split, .sentences[].raw."""
    try:
        content = json.loads(_read_text(path))
    except json.JSONDecodeError as error:
        raise DataError(f"{path}, line {error.lineno}: is not JSON: {error.msg}; download the file again") from error
    images = content.get("images") if isinstance(content, dict) else None
    if not isinstance(images, list):
        raise DataError(f"{path}: expected Karpathy's layout, an object with a list 'images'; found none")
    splits: dict[str, str] = {}
    captions: dict[str, list[str]] = {}
    for position, image in enumerate(images):
        name, split, sentences = _parse_image(path, position, image)
        splits[name] = "train" if split == "restval" else split
        captions[name] = [sentence for sentence in sentences if sentence]
    return _SplitFile(splits, _complete(path, captions))


def _parse_image(path: Path, position: int, image: Any) -> tuple[str, str, list[str]]:
    try:
        name, split = image["filename"], image["split"]
        sentences = [sentence["raw"].strip() for sentence in image["sentences"]]
    except (KeyError, TypeError, AttributeError):
        name = split = None
    if not isinstance(name, str) or not isinstance(split, str):
        expected = "an object with 'filename', 'split' and 'sentences', each of which has 'raw'"
        raise DataError(f"{path}: images[{position}] is {str(image)[:80]!r}; expected {expected}")
    return name, split, sentences


# Splitting


def _drawn_splits(names: Iterable[str], seed: int) -> dict[str, str]:
    """Draw a split by picture: 1,000 for val and for test, or a tenth of a small set, at least one.

    The rank of a picture is a hash of the seed and its name, so neither the order of the rows nor Python's random
    generator enters, and a picture that is added moves few others.

    Returns:
        The split of every name; nothing is ever in "train" of a set of one or two pictures.
    """
    ranked = sorted(names, key=lambda name: (hashlib.sha256(f"{seed}/{name}".encode()).digest(), name))
    share = max(1, min(1000, len(ranked) // 10))
    bounds = {"val": ranked[:share], "test": ranked[share : 2 * share], "train": ranked[2 * share :]}
    return {name: split for split, members in bounds.items() for name in members}


def _choose(names: Sequence[str], splits: Mapping[str, str], split: str, split_file: Path | None) -> list[str]:
    """The names of one split, in order.

    Raises:
        ValueError: there is no such split; the message names those that there are.
    """
    if split == "all":
        return list(names)
    chosen = [name for name in names if splits[name] == split]
    if not chosen:
        held = {splits[name] for name in names}
        known = [known for known in ("train", "val", "test") if known in held] + sorted(held - {"train", "val", "test"})
        by = f"{split_file} has" if split_file else f"these {len(names)} pictures have"
        raise ValueError(f"no split {split!r}: {by} {', '.join(known)}; 'all' takes everything")
    return chosen
