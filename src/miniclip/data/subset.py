"""What can be read of a data set: found before a long run starts, and not at its first evaluation."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image

from miniclip.data.dataset import ImageCaptionDataset, checked_index, name_of
from miniclip.data.skipping import SkipLog
from miniclip.errors import DataError
from miniclip.utils.threads import threads


class Part:
    """Some pictures of a data set, as a data set.

    Args:
        data: the whole.
        indices: which of it.
    """

    def __init__(self, data: ImageCaptionDataset, indices: Sequence[int]) -> None:
        self.data, self.indices = data, list(indices)
        self.captions = [data.captions[index] for index in self.indices]

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> tuple[Image.Image, list[str]]:
        """As the whole has it."""
        return self.data[self.indices[checked_index(index, len(self))]]

    def name(self, index: int) -> str:
        """As the whole has it."""
        return name_of(self.data, self.indices[checked_index(index, len(self))])


def readable(data: ImageCaptionDataset, skip_log: SkipLog) -> ImageCaptionDataset:
    """The data without the pictures that cannot be read; every picture is opened once, in threads.

    Args:
        data: the whole.
        skip_log: is told of those that cannot be read, and raises where it is to, or where they are too many.

    Returns:
        The data themselves where nothing is wrong with them.

    Raises:
        DataError: as `skip_log` decides; or nothing is left.
    """

    def reason(index: int) -> str | None:
        try:
            data[index]
        except DataError as error:
            return str(error)
        return None

    with threads() as pool:
        reasons = list(pool.map(reason, range(len(data))))
    for index, found in enumerate(reasons):
        if found is not None:
            name = name_of(data, index)
            skip_log.add(name, found.removeprefix(f"{name}: "))
    skip_log.require_few(len(data))
    kept = [index for index, found in enumerate(reasons) if found is None]
    return data if len(kept) == len(data) else Part(data, kept)
