"""Choice of the captions that a step takes, as rows in the list of all captions of a dataset.

Letters: B batch, C captions per image.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from miniclip.utils.randomness import random_integer


class CaptionRows:
    """Random captions of each image, as a function of the seed, the image's index and its pass.

    No caption is drawn twice for an image before all of its captions are drawn. The first caption of each image is the
    one that is drawn if there is only one.

    Args:
        captions: of every image.
        seed: of the choice.
        per_image: C.
    """

    def __init__(self, captions: Sequence[Sequence[str]], seed: int, per_image: int = 1) -> None:
        self._seed, self._per_image = seed, per_image
        self._counts = [len(texts) for texts in captions]
        self._first_rows = torch.tensor([0, *self._counts]).cumsum(0)[:-1]

    def draw(self, indices: Tensor, passes: Tensor) -> Tensor:
        """Return the rows of the captions of images, image by image: (B * C,) int64.

        Args:
            indices: (B,) indices of the images.
            passes: (B,) number of earlier passes over the images.
        """
        images = zip(indices.tolist(), passes.tolist(), strict=True)
        places = [self._drawn(index, (self._seed, "caption", number, index)) for index, number in images]
        return (self._first_rows[indices, None] + torch.tensor(places)).flatten()

    def _drawn(self, index: int, key: tuple[int | str, ...]) -> list[int]:
        """Return the places of C captions among those of an image."""
        count = self._counts[index]
        drawn = [random_integer(*key) % count]
        left = [place for place in range(count) if place != drawn[0]]
        for number in range(1, self._per_image):
            left = left or list(range(count))
            drawn.append(left.pop(random_integer(*key, number) % len(left)))
        return drawn
