"""Subset of a dataset without the images that cannot be read, found before a long run starts."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image

from miniclip.data.dataset import ImageCaptionDataset, checked_index, name_of, names_of
from miniclip.data.skipping import SkipLog, reason_of
from miniclip.errors import DataError
from miniclip.utils.threads import thread_pool


class Subset:
    """Images of a dataset at the given indices.

    Args:
        data: the whole dataset.
        indices: of the images to keep; negative ones count from the end.

    Raises:
        IndexError: an index is out of range.
    """

    def __init__(self, data: ImageCaptionDataset, indices: Sequence[int]) -> None:
        self.data, self.indices = data, [checked_index(index, len(data)) for index in indices]
        self.captions = [data.captions[index] for index in self.indices]

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> tuple[Image.Image, list[str]]:
        """Return the image and its captions."""
        return self.data[self.indices[checked_index(index, len(self))]]

    def name(self, index: int) -> str:
        """Return the name that the image has in the whole dataset."""
        return name_of(self.data, self.indices[checked_index(index, len(self))])


def readable_subset(data: ImageCaptionDataset, skip_log: SkipLog) -> ImageCaptionDataset:
    """Open every image once, in threads, and skip those that cannot be read.

    Args:
        data: the whole dataset.
        skip_log: receives the images that cannot be read.

    Returns:
        A `Subset`, or `data` itself if every image can be read.

    Raises:
        DataError: as `skip_log` decides.
    """

    def check(index: int) -> str | None:
        try:
            data[index]
        except DataError as error:
            return reason_of(error)
        return None

    with thread_pool() as pool:
        reasons = list(pool.map(check, range(len(data))))
    names = names_of(data)
    for name, reason in zip(names, reasons, strict=True):
        if reason is not None:
            skip_log.add(name, reason)
    skip_log.check_fraction(len(data))
    kept = [index for index, reason in enumerate(reasons) if reason is None]
    return data if len(kept) == len(data) else Subset(data, kept)
