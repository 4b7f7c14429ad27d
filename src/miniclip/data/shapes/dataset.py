"""Shapes dataset: no download, and a validation score that measures composition.

Images of `val` and `test` show combinations of color and shape that no image of `train` shows. A model that memorised
whole images retrieves none of them; a model that learned the appearance of "red" and of "heart" does. Held-out
combinations of synthetic shapes follow CLEVR's CoGenT split (Johnson et al. 2017, "CLEVR").
"""

import random

from PIL import Image

from miniclip.data.dataset import checked_index
from miniclip.data.shapes.captions import captions_of
from miniclip.data.shapes.drawing import draw_scene
from miniclip.data.shapes.scenes import Scene, compose, kinds_of
from miniclip.data.splits import Split, likely_split

DEFAULT_SIZES = {"train": 6000, "val": 500, "test": 500}


class Shapes:
    """Images of two colored shapes, each with five captions that name colors, shapes, sizes, positions and relation.

    There are 8 colors, 8 shapes and 2 sizes. The two shapes are side by side or one above the other. Eight of the 64
    combinations of color and shape are held out, one for each color and each shape (`HELD_OUT`: red circle, orange
    star, ...). No image of `train` has one of them; every image of `val` and `test` has at least one.

    An image and its captions depend only on the seed, the split and the index (and its pixels on `image_size`). The
    two combinations, their order and their axis go through all possibilities before any repeats: 6,160 in `train`,
    and 952 each in `val` and `test`, which share none. The captions of the default 500 images of `val` therefore
    identify all but a few images, and duplicates do not limit retrieval.

    Args:
        split: "train", "val" or "test".
        size: number of images; default: 6,000 in train and 500 in the others.
        image_size: side of an image in pixels, at least 16.
        seed: of everything random.

    Raises:
        ValueError: the split does not exist, or a size is too small.
    """

    def __init__(self, split: Split = "train", size: int | None = None, *, image_size: int = 64, seed: int = 0) -> None:
        if split not in DEFAULT_SIZES:
            hint = likely_split(split, DEFAULT_SIZES)
            raise ValueError(f"no split {split!r}: Shapes has {', '.join(DEFAULT_SIZES)}{hint}")
        size = DEFAULT_SIZES[split] if size is None else size
        if size < 1:
            raise ValueError(f"size is {size}; expected 1 image or more")
        if image_size < 16:
            raise ValueError(f"image_size is {image_size}; expected 16 pixels or more, to show the shapes")
        self.split = split
        self.image_size = image_size
        self.seed = seed
        self._kinds = kinds_of(split, seed)
        self.captions: list[list[str]] = [captions_of(*self._compose(index)) for index in range(size)]

    def __len__(self) -> int:
        return len(self.captions)

    def __getitem__(self, index: int) -> tuple[Image.Image, list[str]]:
        """Draw an image; negative indices count from the end.

        Raises:
            IndexError: the index is out of range.
        """
        index = checked_index(index, len(self))
        return draw_scene(self.scene(index), self.image_size), list(self.captions[index])

    def __repr__(self) -> str:
        return f"Shapes({self.split!r}, {len(self):,}, image_size={self.image_size}, seed={self.seed})"

    def scene(self, index: int) -> Scene:
        """Return the content of an image; raises IndexError as indexing does."""
        return self._compose(checked_index(index, len(self)))[0]

    def _compose(self, index: int) -> tuple[Scene, random.Random]:
        """Return an image's scene, and the generator that then draws the words of its captions."""
        rng = random.Random(f"{self.seed}/{self.split}/{index}")
        return compose(self._kinds[index % len(self._kinds)], rng), rng
