"""Decoded images kept on a GPU: each is read once, and later epochs read and copy nothing.

The pixels are those of the source behind it. It reads only images that are not there yet, such as all of the first
epoch.
Letters: N images of the dataset, B batch, S image side.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import closing

import torch

from miniclip.data.preprocess import Preprocess
from miniclip.data.sources.common import Decoded, DecodedBatches, IndexBatches, Source
from miniclip.data.sources.memory import take
from miniclip.runtime.devices import send

MAX_FRACTION = 1 / 8  # share of the free memory; Flickr30k at 224 px is 4.7 GB


def fits(count: int, preprocess: Preprocess, device: torch.device) -> bool:
    """Return whether `count` decoded images may be kept on a device: a GPU, in an eighth of its free memory."""
    if device.type != "cuda":
        return False
    return count * 3 * preprocess.size**2 <= MAX_FRACTION * torch.cuda.mem_get_info(device)[0]


class DeviceImages:
    """Images of another source, kept on a device.

    Args:
        source: reads the images.
        count: N.
        preprocess: of the source.
        device: for the images.
    """

    def __init__(self, source: Source, count: int, preprocess: Preprocess, device: torch.device) -> None:
        self.source = source
        self.pixels = torch.empty(count, 3, preprocess.size, preprocess.size, dtype=torch.uint8, device=device)
        self.failed: dict[int, str] = {}
        self._missing = set(range(count))

    def batches(self, indices: IndexBatches) -> DecodedBatches:
        """Yield the readable images of each list of indices, on the device."""
        planned: deque[tuple[Sequence[int], list[int]]] = deque()  # each batch, and the part that the source reads
        remaining = iter(indices)

        def asked() -> Iterator[list[int]]:
            while self._missing:  # else an endless iterator would be drawn from without end
                batch = next(remaining, None)
                if batch is None:
                    return
                planned.append((batch, [index for index in batch if index in self._missing]))
                if planned[-1][1]:
                    yield planned[-1][1]

        with closing(self.source.batches(asked())) as decoded:
            for images in decoded:
                while not planned[0][1]:
                    yield self._take(planned.popleft()[0])
                batch, missing = planned.popleft()
                self._add(missing, images)
                yield self._take(batch)
        for batch, _ in planned:
            yield self._take(batch)
        for batch in remaining:
            yield self._take(batch)

    def _add(self, indices: Sequence[int], images: Decoded) -> None:
        """Keep images that were read."""
        readable = [index for index in indices if index not in images.failed]
        device = self.pixels.device
        self.pixels.index_copy_(0, send(torch.tensor(readable, dtype=torch.int64), device), send(images.pixels, device))
        self.failed |= images.failed
        self._missing.difference_update(indices)

    def _take(self, batch: Sequence[int]) -> Decoded:
        failed = {index: self.failed[index] for index in batch if index in self.failed}
        return Decoded(take(self.pixels, [index for index in batch if index not in failed]), failed)
