"""The sets of the measure: images in memory, with a training part and a part that is scored.

`report` is the split of the claim. `tuning` is drawn from the training images, in the same relation to those that
stay. Settings are chosen on it, so that no choice sees the images of the claim.
"""

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from PIL import Image

import miniclip

Split = Literal["report", "tuning"]
SETS = ("emoji", "clipart", "shapes")
SCORED = {"emoji": "val", "clipart": "test", "shapes": "val"}
TUNING_IMAGES = 383  # as many as emoji's val
SHAPES_IMAGES, SMALL_IMAGES = 6000, 256


class Pictures:
    """Decoded images with their captions, as `miniclip.data` gives them."""

    def __init__(self, items: Iterable[tuple[Image.Image, list[str]]], names: Sequence[str]) -> None:
        pairs = list(items)
        self.images = [image for image, _ in pairs]
        self.captions = [captions for _, captions in pairs]
        self.names = list(names)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Image.Image, list[str]]:
        return self.images[index], self.captions[index]

    def part(self, indices: Sequence[int]) -> "Pictures":
        return Pictures([self[index] for index in indices], [self.names[index] for index in indices])


class Task(NamedTuple):
    """The images to train on, and those to score."""

    train: Pictures
    scored: Pictures


def why_missing(name: str, folder: Path) -> str | None:
    """Return the reason why a set cannot be used here, or None."""
    if name == "shapes" or (folder / name).is_dir():
        return None
    return f"{folder / name} does not exist; --data names the folder that holds it"


def load(name: str, folder: Path, split: Split, small: bool = False) -> Task:
    """Decode a set."""
    train = read(name, folder, "train", small)
    if split == "report":
        return Task(train, read(name, folder, SCORED[name], small))
    held_out = set(tuning_indices(name, train.names))
    return Task(
        train.part([index for index in range(len(train)) if index not in held_out]), train.part(sorted(held_out))
    )


def read(name: str, folder: Path, split: str, small: bool) -> Pictures:
    """Decode all images of a split."""
    data: Any
    if name == "shapes":
        data = miniclip.data.Shapes(split, SHAPES_IMAGES if split == "train" else SHAPES_IMAGES // 12)
        names = [str(index) for index in range(len(data))]
    else:
        data = miniclip.data.Flickr30k(folder / name, split)
        names = [Path(data.name(index)).name for index in range(len(data))]
    count = min(len(data), SMALL_IMAGES) if small else len(data)
    return Pictures((data[index] for index in range(count)), names[:count])


def tuning_indices(name: str, names: Sequence[str]) -> list[int]:
    """Choose images of the training part by a hash of their names.

    For emoji it takes one drawing of a concept whose other drawings stay. As in `val`, the model sees the concept, and
    the drawing is new.
    """
    count = min(TUNING_IMAGES, len(names) // 4)
    order = sorted(range(len(names)), key=lambda index: hashlib.sha256(names[index].encode()).digest())
    if name != "emoji":
        return order[:count]
    drawings = Counter(concept(file) for file in names)
    chosen: dict[str, int] = {}
    for index in order:
        if drawings[concept(names[index])] > 2 and len(chosen) < count:
            chosen.setdefault(concept(names[index]), index)
    return list(chosen.values())


def concept(file: str) -> str:
    """Return the emoji of a file name, as `1f600.jpg` of `google_1f600.jpg`."""
    return file.split("_", 1)[-1]
