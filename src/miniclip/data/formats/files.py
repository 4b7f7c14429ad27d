"""Where the picture files of a set are: the folder that their names lead from, each folder read once."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

# Where the pictures of a set lie, below the folder of its table. A literal list, since a walk over 31,000 files to
# find one is slow on the network disks that such sets live on.
PLACES = (
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


def find_files(base: Path, names: Sequence[str], places: Sequence[str] = PLACES) -> tuple[Path, dict[str, Path]]:
    """Find the folder, at or below `base`, that the names lead from: the first with all, else that with most.

    Returns:
        The folder, and the paths of those that are there.
    """
    best: tuple[Path, dict[str, Path]] = (base, {})
    for place in places:
        folder = base if place == "." else base / place
        if not folder.is_dir():
            continue
        listing = Listing()
        paths = {name: path for name in names if (path := listing.find(folder, name)) is not None}
        if len(paths) == len(names):
            return folder, paths
        if len(paths) > len(best[1]):
            best = (folder, paths)
    return best


class Listing:
    """What is in folders, each read once: asking a disk for every one of a million files takes minutes."""

    def __init__(self) -> None:
        self._names: dict[str, frozenset[str]] = {}

    def find(self, folder: Path, name: str) -> Path | None:
        r"""The path of a file from the folder on; `images\a.jpg` is found as `images/a.jpg`, too."""
        for written in (name, name.replace("\\", "/")) if "\\" in name else (name,):
            path = folder / written
            if path.name in self._in(str(path.parent)):
                return path
        return None

    def _in(self, folder: str) -> frozenset[str]:
        if folder not in self._names:
            try:
                with os.scandir(folder) as found:
                    self._names[folder] = frozenset(
                        entry.name for entry in found if not entry.is_dir(follow_symlinks=False)
                    )
            except (OSError, ValueError):
                self._names[folder] = frozenset()
        return self._names[folder]
