"""Protocol of datasets of captioned images, and the base class of those whose images are files."""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from PIL import Image

from miniclip.data.decoding import open_image, read_encoded
from miniclip.data.skipping import SkipLog


class ImageCaptionDataset(Protocol):
    """Dataset of images with at least one caption each, as training and evaluation take it."""

    @property
    def captions(self) -> Sequence[Sequence[str]]:
        """Captions of every image, available without opening one."""

    def __len__(self) -> int:
        """Return the number of images."""

    def __getitem__(self, index: int) -> tuple[Image.Image, list[str]]:
        """Return an RGB image and its captions."""


class StoredImage(Protocol):
    """Encoded image inside another file or store, such as a tar or parquet file. Its `str` is its name."""

    def read(self) -> bytes:
        """Return the encoded image.

        Raises:
            DataError: it cannot be read.
        """


class ImageFiles:
    """Captioned images, each read from its file when it is requested.

    `data[i]` is `(image, captions)`: an upright RGB PIL image and a list of strings.

    Args:
        paths: N image files, or `StoredImage` objects.
        captions: the captions of each image, at least one.
        skip_log: rows and images that a reader skipped.
        splits: the split of each image, "" for images without one; empty without splits.
        about: the layout that was read and the origin of its split, for people.

    Raises:
        ValueError: the lengths differ, or an image has no caption.
        TypeError: the captions of an image are not a list of strings, or the paths are one path.
    """

    def __init__(
        self,
        paths: Sequence[Path | StoredImage],
        captions: Sequence[Sequence[str]],
        skip_log: SkipLog | None = None,
        splits: Sequence[str] = (),
        about: str = "",
    ) -> None:
        if isinstance(paths, str | bytes | Path):
            raise TypeError(f"paths is {str(paths)!r}, one path; give a list: [{str(paths)!r}]")
        if isinstance(captions, str | bytes):
            raise TypeError(f"captions is {captions!r}; give a list with the list of captions of each image")
        if len(paths) != len(captions):
            raise ValueError(f"{len(paths)} paths but {len(captions)} lists of captions; give one list for each image")
        for path, texts in zip(paths, captions, strict=True):
            check_texts(str(path), texts)
        if isinstance(splits, str) or len(splits) not in (0, len(paths)):
            raise ValueError(f"splits is {str(splits)[:80]!r}; expected the split of each of {len(paths)} images")
        self.paths: list[Path | StoredImage] = [Path(path) if isinstance(path, str) else path for path in paths]
        self.captions: list[list[str]] = [list(texts) for texts in captions]
        self.skip_log = SkipLog() if skip_log is None else skip_log
        self.splits: list[str] = list(splits)
        self.about = about

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Image.Image, list[str]]:
        """Open an image; negative indices count from the end.

        Raises:
            IndexError: the index is out of range.
            DataError: the file cannot be read as an image.
        """
        index = checked_index(index, len(self))
        return self.image(index), list(self.captions[index])

    def image(self, index: int, at_least: int | None = None) -> Image.Image:
        """Open an image; with `at_least`, a JPEG may be reduced until its shorter side has that many pixels.

        Datasets may have this method and `name`; the loader calls them through `image_of` and `name_of`.
        """
        return open_image(self.file(index), self.name(index), at_least)

    def file(self, index: int) -> Path | bytes:
        """Return the path of an image, or its encoded bytes if it is stored in another file.

        Raises:
            DataError: the other file cannot be read.
        """
        path = self.paths[checked_index(index, len(self))]
        return path if isinstance(path, Path) else path.read()

    def encoded(self, index: int) -> bytes:
        """Return the encoded bytes of an image.

        Raises:
            OSError: the file cannot be read.
            DataError: it is too large, or stored in another file that cannot be read.
        """
        file = self.file(index)
        return file if isinstance(file, bytes) else read_encoded(file)

    def name(self, index: int) -> str:
        """Return the path of an image, or the name of a stored one."""
        return str(self.paths[checked_index(index, len(self))])

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self):,} images, {sum(map(len, self.captions)):,} captions)"


def check_texts(name: str, texts: Any) -> None:
    """Check that the captions of an image are a list of strings, and not one string.

    Args:
        name: of the image, for messages.
        texts: its captions.

    Raises:
        TypeError: they are something else.
        ValueError: the list is empty.
    """
    if isinstance(texts, str):
        shown = texts[:80]
        raise TypeError(f"{name}: the captions are the string {shown!r}; give a list of strings: [{shown!r}]")
    if isinstance(texts, bytes | Mapping) or not hasattr(texts, "__len__"):
        raise TypeError(f"{name}: the captions are a {type(texts).__name__}; give a list of strings")
    if len(texts) == 0:
        raise ValueError(f"{name} has no caption; give it one, or leave the image out")
    for text in texts:
        if not isinstance(text, str):
            raise TypeError(f"{name}: the caption {str(text)[:80]!r} is a {type(text).__name__}; give a string")


def image_of(data: ImageCaptionDataset, index: int, at_least: int | None = None) -> Image.Image:
    """Return an image of any dataset, reduced to `at_least` pixels if the dataset has a method `image`."""
    image = getattr(data, "image", None)
    return data[index][0] if image is None else image(index, at_least)


def file_of(data: ImageCaptionDataset, index: int) -> Path | bytes | None:
    """Return the file of an image, as `open_image` takes it; None if the dataset makes its images itself."""
    if not isinstance(data, ImageFiles) or type(data).image is not ImageFiles.image:
        return None
    return data.file(index)


def name_of(data: ImageCaptionDataset, index: int) -> str:
    """Return the name of an image by the dataset's method `name`; without one, "image 7"."""
    name = getattr(data, "name", None)
    return f"image {index}" if name is None else str(name(index))


def names_of(data: ImageCaptionDataset) -> list[str]:
    """Return the names of all images; a name that several images have is followed by their indices."""
    names = [name_of(data, index) for index in range(len(data))]
    counts = Counter(names)
    return [name if counts[name] == 1 else f"{name} (image {index})" for index, name in enumerate(names)]


def checked_index(index: int, length: int) -> int:
    """Turn an index that may be negative into one in 0..length-1, or raise IndexError."""
    position = operator.index(index)
    if not -length <= position < length:
        raise IndexError(f"index {position} is out of range for {length} images")
    return position % length
