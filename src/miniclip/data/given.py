"""Datasets that a user gives: checked once, before anything reads them, and wrapped if torch made them from others."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping
from itertools import accumulate
from typing import Any

from PIL import Image
from torch.utils import data as torch_data

from miniclip.data.dataset import ImageCaptionDataset, check_texts, checked_index, name_of
from miniclip.data.subset import Subset

EXPECTED = (
    "an object with len(data), data[i] == (image, [captions]) and data.captions, such as miniclip.data.Captions(paths, "
    "captions)"
)


class Concatenation:
    """Images of several datasets, one after the other.

    Args:
        parts: the datasets.
    """

    def __init__(self, parts: list[ImageCaptionDataset]) -> None:
        self.parts = parts
        self.captions = [captions for part in parts for captions in part.captions]
        self._ends = list(accumulate(map(len, parts)))

    def __len__(self) -> int:
        return len(self.captions)

    def __getitem__(self, index: int) -> tuple[Image.Image, list[str]]:
        """Return the image and its captions."""
        part, index = self.place(index)
        return part[index]

    def name(self, index: int) -> str:
        """Return the name that the image has in its dataset."""
        return name_of(*self.place(index))

    def place(self, index: int) -> tuple[ImageCaptionDataset, int]:
        """Return the dataset of an image, and its index there."""
        index = checked_index(index, len(self))
        number = bisect_right(self._ends, index)
        return self.parts[number], index - (self._ends[number - 1] if number else 0)


def original(data: ImageCaptionDataset, index: int) -> tuple[ImageCaptionDataset, int]:
    """Return the dataset that an image of a part or a concatenation comes from, and the image's index there."""
    while isinstance(data, Subset | Concatenation):
        data, index = (data.data, data.indices[index]) if isinstance(data, Subset) else data.place(index)
    return data, index


def as_dataset(data: Any) -> ImageCaptionDataset:
    """Check a dataset of captioned images; wrap a `Subset` or a `ConcatDataset` of torch, whose parts are checked.

    Raises:
        TypeError: it has no captions or no length, or the captions of an image are not a list of strings.
        ValueError: an image has no caption, or the numbers of images and captions differ.
    """
    if hasattr(data, "captions") and hasattr(data, "__len__") and hasattr(data, "__getitem__"):
        _check_captions(data)
        checked: ImageCaptionDataset = data
        return checked
    if type(data) is torch_data.Subset:  # such as a part of random_split
        return Subset(as_dataset(data.dataset), data.indices)
    if type(data) is torch_data.ConcatDataset:
        return Concatenation([as_dataset(part) for part in data.datasets])
    raise TypeError(f"the dataset is a {type(data).__name__}; expected {EXPECTED}")


def _check_captions(data: Any) -> None:
    kind, captions = type(data).__name__, data.captions
    if isinstance(captions, str | bytes | Mapping) or hasattr(captions, "iloc") or not hasattr(captions, "__len__"):
        raise TypeError(
            f"{kind}.captions is a {type(captions).__name__}; expected a list with the list of captions of each image"
        )
    if len(captions) != len(data):
        raise ValueError(
            f"{kind} has {len(data):,} images, and {kind}.captions has {len(captions):,} lists of captions"
        )
    for index, texts in enumerate(captions):
        check_texts(f"image {index} ({kind}.captions[{index}])", texts)
