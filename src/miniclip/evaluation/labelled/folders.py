"""Images in one folder per class."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from miniclip.data.formats.folder import find_images
from miniclip.data.splits import SPLIT_NAMES, normalize_split
from miniclip.errors import DataError
from miniclip.evaluation.labelled.images import checked_class_names


class ClassFolders:
    """Images in one folder per class; the folders' names are the class names, in alphabetical order.

    A folder without images is a class without images: a possible wrong answer. Hidden files and folders are
    ignored.

    Args:
        root: folder of class folders.
        class_names: names in place of the folders' names, in the folders' order; None: the folders' names, with "_"
            read as a space.

    Raises:
        DataError: the folder lacks class folders or images, or an image is in a format that is not read.
        ValueError: the names are not unique.
        TypeError: the names have no order, as in a set or a dict.
    """

    def __init__(self, root: str | Path, class_names: Sequence[str] | None = None) -> None:
        self.root = Path(root)
        if not self.root.is_dir():
            raise DataError(f"{root}: not a folder; expected one with a folder per class")
        folders = folders_in(self.root)
        if not folders:
            raise DataError(f"{root}: holds no folders; expected one folder per class, named after it")
        if class_names is None:
            names = [folder.name.replace("_", " ") for folder in folders]
            self.class_names = checked_class_names(names, f"{root}: the names of the class folders, with _ as a space")
        else:
            self.class_names = checked_class_names(class_names)
        if len(self.class_names) != len(folders):
            raise DataError(f"{root}: {len(folders)} class folders and {len(self.class_names)} class names")
        self.samples = [(path, label) for label, folder in enumerate(folders) for path in find_images(folder)]
        if not self.samples:
            raise DataError(f"{root}: its {len(folders)} class folders hold no images")

    @property
    def paths(self) -> list[Path]:
        """The N image files."""
        return [path for path, _ in self.samples]

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Path, int]:
        """Return an image's path and the index of its class."""
        return self.samples[index]


def folders_in(root: Path) -> list[Path]:
    """Return the folders in a folder, sorted, without hidden ones and those that macOS adds to archives."""
    return sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith((".", "__MACOSX")))


def split_folders(root: Path) -> dict[str, Path]:
    """Return the folders of splits, if all have usual names such as "validation", or train, val or test holds folders.

    A folder such as train/ without folders, beside others, is a class.

    Raises:
        DataError: two folders stand for one split.
    """
    folders = folders_in(root)
    known = all(folder.name.lower() in SPLIT_NAMES for folder in folders)
    if not known and not any(folder.name in ("train", "val", "test") and folders_in(folder) for folder in folders):
        return {}
    splits: dict[str, Path] = {}
    for folder in folders:
        split = normalize_split(folder.name)
        if split in splits:
            raise DataError(f"{root}: {splits[split].name} and {folder.name} both stand for {split}; rename one")
        if folder.name.lower() in SPLIT_NAMES:
            splits[split] = folder
    return splits
