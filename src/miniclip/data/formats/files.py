"""Search for files: images by their names in the usual folders of a dataset, and files by patterns and brace ranges."""

from __future__ import annotations

import glob
import itertools
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

# Usual image folders below the folder of the table. A literal list: walking over 31,000 files is slow on network disks.
IMAGE_FOLDERS = (
    ".",
    "images",
    "Images",
    "flickr30k_images",
    "flickr30k-images",
    "Flicker8k_Dataset",
    "Flickr8k_Dataset",
    "flickr30k_images/flickr30k_images",
    "Flicker8k_Dataset/Flicker8k_Dataset",
    "Flickr8k_Dataset/Flicker8k_Dataset",
)


def find_files(
    base: Path, names: Sequence[str], folders: Sequence[str] = IMAGE_FOLDERS
) -> tuple[Path, dict[str, Path]]:
    """Find the folder below `base` that image names start from: the first with all files, else the one with most.

    Returns:
        The folder, and the paths of the files that exist.
    """
    best: tuple[Path, dict[str, Path]] = (base, {})
    for below in folders:
        folder = base if below == "." else base / below
        if not folder.is_dir():
            continue
        listing = Listing()
        paths = {name: path for name in names if (path := listing.find(folder, name)) is not None}
        if len(paths) == len(names):
            return folder, paths
        if len(paths) > len(best[1]):
            best = (folder, paths)
    return best


def list_folder(folder: Path) -> tuple[list[str], list[str]]:
    """Return the sorted names of the files and of the folders in a folder, without those that begin with a dot."""
    files: list[str] = []
    folders: list[str] = []
    with os.scandir(folder) as entries:  # a `stat` call for each file would take minutes on a network disk
        for entry in entries:
            if not entry.name.startswith("."):
                (folders if entry.is_dir() else files).append(entry.name)
    return sorted(files), sorted(folders)


class Listing:
    """File names of folders, each read once: one `stat` call for each of a million files takes minutes."""

    def __init__(self) -> None:
        self._names: dict[str, frozenset[str]] = {}

    def find(self, folder: Path, name: str) -> Path | None:
        r"""Return the path of a file in or below a folder; `images\a.jpg` also finds `images/a.jpg`."""
        for variant in (name, name.replace("\\", "/")) if "\\" in name else (name,):
            path = folder / variant
            if path.name in self._list(str(path.parent)):
                return path
        return None

    def _list(self, folder: str) -> frozenset[str]:
        if folder not in self._names:
            try:
                with os.scandir(folder) as entries:
                    names = frozenset(entry.name for entry in entries if not entry.is_dir(follow_symlinks=False))
            except (OSError, ValueError):
                names = frozenset()
            self._names[folder] = names
        return self._names[folder]


# Patterns

MAX_RANGE = 10_000_000  # limit for a brace range
_BRACES = re.compile(r"\{([^{}]*)\}")


def is_pattern(spec: str) -> bool:
    """Return whether a path has wildcards or braces."""
    return glob.has_magic(spec) or _BRACES.search(spec) is not None


def expand(spec: str) -> list[Path]:
    """Return the paths of a spec with wildcards (`*`, `**`, `?`, `[…]`) and braces (`{0..2}`, `{a,b}`), in order.

    Paths of a range are included if they do not exist.

    Raises:
        ValueError: the spec has an invalid range.
    """
    paths: list[Path] = []
    for name in _expand_braces(spec):
        names = glob.glob(name, recursive=True) if glob.has_magic(name) else [name]  # noqa: PTH207  # absolute patterns
        paths += sorted(map(Path, names))
    return list(dict.fromkeys(paths))


def _expand_braces(text: str) -> Iterator[str]:
    """Expand `a{0..2}b` or `a{0,1,2}b` to three strings; leading zeros are kept."""
    parts = _BRACES.split(text)  # every second part was in braces
    choices = [[part] if i % 2 == 0 else _alternatives(part, text) for i, part in enumerate(parts)]
    return map("".join, itertools.product(*choices))


def _alternatives(inner: str, text: str) -> list[str]:
    ends = re.fullmatch(r"(\d+)\.\.(\d+)", inner)
    if not ends:
        return inner.split(",")
    first, last = int(ends[1]), int(ends[2])
    if not first <= last < first + MAX_RANGE:
        raise ValueError(f"{text}: the range {{{inner}}} runs backwards, or has more than {MAX_RANGE:,} files")
    width = len(ends[1]) if ends[1].startswith("0") else 0
    return [f"{number:0{width}}" for number in range(first, last + 1)]
