"""Choice of the captions that a step takes, as rows in the list of all captions of a dataset.

Letters: B batch, C captions per image.
"""

from __future__ import annotations

from collections import Counter
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
        max_images: a caption that more images have is not drawn, unless an image has no other; None: all are drawn.

    Attributes:
        left_out: number of captions that are never drawn.
    """

    def __init__(
        self, captions: Sequence[Sequence[str]], seed: int, per_image: int = 1, max_images: int | None = None
    ) -> None:
        counts = [len(texts) for texts in captions]
        self._seed, self._per_image = seed, per_image
        self._first_rows = torch.tensor([0, *counts]).cumsum(0)[:-1]
        self._places = _all_places(counts) if max_images is None else _rare_places(captions, max_images)
        self.left_out = sum(counts) - sum(map(len, self._places))

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
        places = self._places[index]
        drawn = [places[random_integer(*key) % len(places)]]
        left = [place for place in places if place != drawn[0]]
        for number in range(1, self._per_image):
            left = left or list(places)
            drawn.append(left.pop(random_integer(*key, number) % len(left)))
        return drawn


def _all_places(counts: Sequence[int]) -> list[Sequence[int]]:
    ranges = {count: range(count) for count in set(counts)}  # shared, since a dataset may have millions of images
    return [ranges[count] for count in counts]


def _rare_places(captions: Sequence[Sequence[str]], max_images: int) -> list[Sequence[int]]:
    """Return the places of each image's captions that at most `max_images` images have, or of all if there is none."""
    images = Counter(text for texts in captions for text in set(texts))
    rare = ([place for place, text in enumerate(texts) if images[text] <= max_images] for texts in captions)
    return [places or range(len(texts)) for places, texts in zip(rare, captions, strict=True)]
