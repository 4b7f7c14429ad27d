"""Images that are decoded once for several models with the same preprocessing, such as those of a sweep over alpha."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from miniclip.data.preprocess import Preprocess
from miniclip.inference.images import read_pixels

MAX_BYTES = 1 << 30  # limit for pixels in memory: 7,000 images of 224 x 224


class KeptPixels(Sequence[Any]):
    """Images as pixels of the model's size, (3, S, S) uint8, which preprocessing leaves as they are.

    Images that do not fit in the memory limit are decoded at each access, so that the results are the same.

    Args:
        images: a sequence of images that are opened when they are indexed.
        max_bytes: memory limit.
    """

    def __init__(self, images: Sequence[Any], max_bytes: int = MAX_BYTES) -> None:
        self.images, self.max_bytes = images, max_bytes
        self._preprocess: Preprocess | None = None
        self._pixels: dict[int, Tensor] = {}

    def of(self, model: Any) -> KeptPixels:
        """Return the images with the preprocessing of a model; pixels of another preprocessing are dropped."""
        if self._preprocess is None or self._preprocess.pixel_settings != model.preprocess.pixel_settings:
            self._preprocess, self._pixels = model.preprocess, {}
        return self

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: Any) -> Any:
        """Return the pixels of an image, or a list of them for a slice; threads may call it."""
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        assert self._preprocess is not None
        kept = self._pixels.get(index)
        if kept is not None:
            return kept
        pixels = read_pixels(self.images[index], self._preprocess)
        if (len(self._pixels) + 1) * pixels.nbytes <= self.max_bytes:
            self._pixels[index] = pixels
        return pixels
