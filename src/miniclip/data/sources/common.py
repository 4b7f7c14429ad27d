"""Common parts of all sources: their result, and the reading of one image.

A source has `batches(indices)`: for each list of indices, in order, the images that could be read. A source that works
ahead does so across the ends of epochs. Closing the generator stops its processes and threads.
Letters: n images of a batch, S image side.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Sequence
from typing import NamedTuple, Protocol

from torch import Tensor

from miniclip.data.dataset import ImageCaptionDataset, file_of, image_of, name_of
from miniclip.data.decoding.jpeg import read_pixels
from miniclip.data.preprocess import Preprocess
from miniclip.data.skipping import reason_of
from miniclip.errors import DataError

MIN_REDUCED_SCALE = 2  # reduced decoding keeps both sides this many times the model's: the resizing hides the rest

IndexBatches = Iterable[Sequence[int]]


class Decoded(NamedTuple):
    """The images of a batch that could be read."""

    pixels: Tensor  # (n, 3, S, S) uint8, in the order of the batch
    failed: dict[int, str]  # index to reason of the images that could not be read


DecodedBatches = Generator[Decoded, None, None]


class Source(Protocol):
    """Anything that reads the images of batches of indices."""

    def batches(self, indices: IndexBatches) -> DecodedBatches:
        """Yield the readable images of each list of indices."""


def pixels_or_reason(data: ImageCaptionDataset, index: int, preprocess: Preprocess, *, reduced: bool) -> Tensor | str:
    """Read an image at the model's size, (3, S, S) uint8, or return why it cannot be read, without its name.

    Args:
        data: images with captions.
        index: the image.
        preprocess: the model's preprocessing.
        reduced: read JPEGs by the fast path and large ones at a fraction of their size; pixels differ by a grey level.
    """
    at_least = MIN_REDUCED_SCALE * preprocess.size if reduced else None
    try:
        file = file_of(data, index) if reduced else None
        if file is not None:
            return read_pixels(file, preprocess, name_of(data, index), at_least)
        return preprocess.pixels(image_of(data, index, at_least))
    except (DataError, OSError) as error:
        return reason_of(error)
