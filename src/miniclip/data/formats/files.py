"""Search for image files by their names in the usual folders of a dataset; each folder is listed once."""

from __future__ import annotations

import os
from collections.abc import Sequence
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
