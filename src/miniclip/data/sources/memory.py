"""Images decoded once and kept in memory."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from miniclip.data.dataset import ImageCaptionDataset, name_of
from miniclip.data.preprocess import Preprocess
from miniclip.data.skipping import OnError
from miniclip.data.sources.common import Decoded, DecodedBatches, IndexBatches, pixels_or_reason
from miniclip.errors import UnreadableError
from miniclip.runtime.cores import available_cores
from miniclip.runtime.devices import send
from miniclip.utils.threads import thread_pool


class InMemoryImages:
    """All images of a dataset in memory, (N, 3, S, S) uint8.

    Attributes:
        pixels: the images; they may be moved to a device.
        failed: index to reason of the images that could not be read.

    Raises:
        DataError: an image cannot be read, and on_error is "raise".
    """

    def __init__(
        self, data: ImageCaptionDataset, preprocess: Preprocess, *, reduced: bool = False, on_error: OnError = "raise"
    ) -> None:
        self.pixels = torch.empty(len(data), 3, preprocess.size, preprocess.size, dtype=torch.uint8)
        failed: dict[int, str] = {}

        def read(index: int) -> None:
            pixels = pixels_or_reason(data, index, preprocess, reduced=reduced)
            if isinstance(pixels, Tensor):
                self.pixels[index] = pixels
            elif on_error == "raise":
                raise UnreadableError(name_of(data, index), pixels)
            else:
                failed[index] = pixels

        with thread_pool(available_cores()) as pool:  # decoding and resizing release the GIL
            list(pool.map(read, range(len(data))))
        self.failed = dict(sorted(failed.items()))

    def batches(self, indices: IndexBatches) -> DecodedBatches:
        """Yield the readable images of each list of indices."""
        for batch in indices:
            readable = [index for index in batch if index not in self.failed]
            yield Decoded(
                take(self.pixels, readable), {index: self.failed[index] for index in batch if index in self.failed}
            )


def take(pixels: Tensor, indices: Sequence[int]) -> Tensor:
    """Return images (B, 3, S, S) of a tensor (N, 3, S, S), on its device."""
    return pixels.index_select(0, send(torch.tensor(indices, dtype=torch.int64), pixels.device))
