"""Images to embed: all image files of a folder, or those of any dataset that `open_data` opens."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from miniclip.data.cache.reading import CachedDataset, require_pixels
from miniclip.data.dataset import ImageFiles, file_of, image_of, name_of
from miniclip.data.formats.options import ReadKeywords
from miniclip.data.given import Concatenation, as_dataset, original
from miniclip.data.image_types import as_image
from miniclip.data.opening import open_data, stores_images
from miniclip.data.shapes import Shapes
from miniclip.data.skipping import SkipLog
from miniclip.data.subset import Subset
from miniclip.search.updating.walking import Listing, walk

SAMPLED = 500  # one image of as many is compared by its content, if it has no file of its own


class FolderImages(Sequence[str]):
    """All image files at or below a folder, sorted by name; names start from the folder. An image needs no caption.

    Args:
        root: the folder.
        listing: its files, from `walk`.
        skip_log: receives the files and folders that cannot be listed.

    Raises:
        UnreadableError: one cannot be listed, and the log's `on_error` is "raise".
    """

    unit = "images"

    def __init__(self, root: Path, listing: Listing, skip_log: SkipLog) -> None:
        self.root, self.names = root, list(listing.images)
        for name, problem in listing.problems.items():
            skip_log.add(name or str(root), problem)

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: Any) -> str:
        """Return the path of an image."""
        return os.path.join(self.root, self.names[index])  # noqa: PTH118  # a Path has several times the size

    def name(self, index: int) -> str:
        """Return the name of an image."""
        return self.names[index]

    def identity(self, index: int) -> str:
        """Return a text that changes if the image changes: name, size and time of change."""
        return f"{self.names[index]} {_stamp(self[index])}"

    def identities(self) -> Iterator[str]:
        """Yield the identities of all images."""
        return map(self.identity, range(len(self)))

    def fingerprint(self) -> str:
        """Return a digest of the source as a whole; a folder is identified by its images."""
        return "folder"


class DatasetImages(Sequence[Any]):
    """Images of a dataset, read when they are requested.

    Args:
        data: any dataset of captioned images.

    Raises:
        ValueError: the dataset is empty.
    """

    unit = "images"

    def __init__(self, data: Any) -> None:
        self.data = as_dataset(data)
        if not len(self.data):
            raise ValueError("the dataset has no images; expected at least one")

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: Any) -> Any:
        """Return an image's path, its encoded bytes, or the image."""
        data, row = original(self.data, index)
        file = file_of(data, row)
        return image_of(data, row) if file is None else file

    def name(self, index: int) -> str:
        """Return the name of an image in its dataset."""
        return name_of(self.data, index)

    def identity(self, index: int) -> str:
        """Return a text that changes if the image changes; of images without a file, one of `SAMPLED` is read."""
        data, row = original(self.data, index)
        name = self.name(index)
        if isinstance(data, ImageFiles) and isinstance(path := data.paths[row], Path):
            return f"{name} {_stamp(path)}"
        return name if index % SAMPLED else f"{name} {self.content(index)}"

    def content(self, index: int) -> str:
        """Return a digest of an image, for which it is read; "missing" behind the last one."""
        if index >= len(self):
            return "missing"
        try:
            image = self[index]
            return _stamp(image) if isinstance(image, Path) else _digest(image)
        except (OSError, ValueError, TypeError):  # the reason is reported when the image is embedded
            return "unreadable"

    def identities(self) -> Iterator[str]:
        """Yield the identities of all images."""
        return map(self.identity, range(len(self)))

    def fingerprint(self) -> str:
        """Return a digest of the source as a whole, such as a cache's checksums or a synthetic dataset's settings."""
        return hashlib.sha256(repr(_describe(self.data)).encode("utf-8", "surrogatepass")).hexdigest()[:32]


def open_images(source: Any, split: Any, model: Any, skip_log: SkipLog) -> FolderImages | DatasetImages:
    """Open the images of a source.

    Args:
        source: the path of a folder with images, the spec of a dataset, or a dataset.
        split: of a dataset; all images of a folder are taken.
        model: a cache must have the pixels of its preprocessing.
        skip_log: receives images in formats that are not read, and the rows that a reader skips.

    Raises:
        FileNotFoundError: the path does not exist.
        DataError: it holds no images in a known layout, or the data are damaged.
        ValueError: a cache has other pixels, or the split does not exist.
    """
    if not isinstance(source, str | Path):
        require_pixels(source, model)
        return DatasetImages(source)
    folder = Path(source).expanduser()
    if str(source) != "shapes" and folder.is_dir() and not stores_images(folder):
        if split not in (None, "all"):
            raise ValueError(f"{folder}: found the split {split!r}; all images of a folder are embedded: leave it out")
        listing = walk(folder)
        if listing.images:
            return FolderImages(folder, listing, skip_log)
    data = _open_dataset(source, split, skip_log)
    require_pixels(data, model)
    skip_log.merge(getattr(data, "skip_log", skip_log.branch()))
    return DatasetImages(data)


def _open_dataset(source: str | Path, split: Any, skip_log: SkipLog) -> Any:
    """Open a split of a dataset; without one, all images, and those of `train` of the synthetic dataset."""
    if split is None and str(source) == "shapes":
        split = "train"
    if split is None and CachedDataset.is_cache(folder := Path(source).expanduser()):
        return Concatenation([*CachedDataset.open_all(folder)])
    options: ReadKeywords = {"on_error": skip_log.on_error, "max_skip_fraction": skip_log.max_skip_fraction}
    return open_data(source, split or "all", **options)


def _describe(data: Any) -> Any:
    """Return the checksums of a cache, the settings of a synthetic dataset, the kind of another, or those of parts."""
    if isinstance(data, Subset):
        return _describe(data.data), data.indices
    if isinstance(data, Concatenation):
        return [_describe(part) for part in data.parts]
    if isinstance(data, CachedDataset):
        return data.index
    return repr(data) if isinstance(data, Shapes) else type(data).__name__


def _digest(image: Any) -> str:
    """Return a digest of the bytes of an image file, or of the pixels of an image of another type."""
    if isinstance(image, bytes):
        return hashlib.sha256(image).hexdigest()
    pixels = as_image(image)
    return hashlib.sha256(f"{pixels.mode} {pixels.size} ".encode() + pixels.tobytes()).hexdigest()


def _stamp(path: str | Path) -> str:
    """Return size and time of change of a file; "missing" without it, which is reported when it is read."""
    try:
        status = os.stat(path)  # noqa: PTH116  # half the time of Path.stat
    except OSError:
        return "missing"
    return f"{status.st_size} {status.st_mtime_ns}"
