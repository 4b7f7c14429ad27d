"""Sequential reading of a source, with restarts at any step; images that cannot be read are skipped."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from torch import Tensor

from miniclip.data.dataset import ImageCaptionDataset, names_of
from miniclip.data.skipping import SkipLog
from miniclip.data.sources.common import Decoded, DecodedBatches, Source
from miniclip.data.sources.memory import InMemoryImages
from miniclip.errors import DataError


class ImageStream:
    """Images of consecutive batches, read ahead across the ends of epochs.

    Args:
        data: images with captions.
        source: reads them.
        skip_log: of the images that cannot be read.
        indices_from: returns the indices of a step's batch and of all later ones.

    Raises:
        DataError: an image cannot be read and `skip_log` raises, or too many are skipped.
    """

    def __init__(
        self,
        data: ImageCaptionDataset,
        source: Source,
        skip_log: SkipLog,
        indices_from: Callable[[int], Iterator[Sequence[int]]],
    ) -> None:
        self.source, self.skip_log = source, skip_log
        self._data, self._indices_from = data, indices_from
        self._batches: DecodedBatches | None = None
        self._next_step: int | None = None  # step of the running stream
        self._names: list[str] = []  # read when an image cannot be
        if isinstance(source, InMemoryImages):
            self._skip(source.failed)

    def read(self, step: int, indices: Sequence[int]) -> tuple[Tensor, list[int]]:
        """Read the batch of a step.

        Returns:
            The images that can be read, (n, 3, S, S) uint8, and their rows in `indices`.

        Raises:
            DataError: an image cannot be read and `skip_log` raises; too many are skipped, or all of the batch.
        """
        try:
            decoded = self._decoded(step)
            self._skip(decoded.failed)
            if len(decoded.failed) == len(indices):
                raise DataError(f"none of the {len(indices)} images of a batch can be read: fix or remove the files")
        except BaseException:
            self.close()  # at once: a stored traceback would keep the workers alive
            raise
        return decoded.pixels, [row for row, index in enumerate(indices) if index not in decoded.failed]

    def close(self) -> None:
        """Stop the processes and threads that read ahead; the next read starts them again."""
        self._next_step = None
        if self._batches is not None:
            self._batches.close()
            self._batches = None

    def _decoded(self, step: int) -> Decoded:
        """Take the next batch of the running stream, or start a stream at another step."""
        if self._batches is None or self._next_step != step:
            self.close()
            self._batches = self.source.batches(self._indices_from(step))
        self._next_step = None  # unless this succeeds
        decoded = next(self._batches)
        self._next_step = step + 1
        return decoded

    def _skip(self, failed: dict[int, str]) -> None:
        for index, reason in failed.items():
            self._names = self._names or names_of(self._data)
            self.skip_log.add(self._names[index], reason)
        self.skip_log.check_fraction(len(self._data))
