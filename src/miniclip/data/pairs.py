"""Pictures with captions: what training and evaluation take, and the form that pictures on disk have."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from PIL import Image

from miniclip.pictures import open_picture


class PairData(Protocol):
    """Pictures with one or more captions each: all that training and evaluation ask of a data set."""

    @property
    def captions(self) -> Sequence[Sequence[str]]:
        """The captions of every picture, known without opening one."""

    def __len__(self) -> int:
        """The number of pictures."""

    def __getitem__(self, index: int) -> tuple[Image.Image, list[str]]:
        """The picture, RGB, and its captions."""


class Captions:
    """Pictures on disk with their captions, opened one by one as they are asked for.

    `data[i]` is `(picture, captions)`: an RGB PIL image, decoded and upright, and a list of strings.

    Args:
        paths: the picture files, N of them.
        captions: for each picture its captions, one or more.

    Raises:
        ValueError: the two differ in length, or a picture has no caption.
        TypeError: a picture's captions are a bare string instead of a list of strings.
    """

    def __init__(self, paths: Sequence[Path], captions: Sequence[Sequence[str]]) -> None:
        if len(paths) != len(captions):
            raise ValueError(f"{len(paths)} paths but {len(captions)} lists of captions: give one list a picture")
        for path, own in zip(paths, captions, strict=True):
            if isinstance(own, str):
                raise TypeError(f"the captions of {path} are the string {own!r}: give a list of strings, [{own!r}]")
            if not own:
                raise ValueError(f"{path} has no caption: give it one, or leave the picture out")
        self.paths: list[Path] = [Path(path) for path in paths]
        self.captions: list[list[str]] = [list(own) for own in captions]

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Image.Image, list[str]]:
        """Open a picture; negative indices count from the end.

        Raises:
            IndexError: the index is out of range.
            DataError: the file cannot be read as a picture.
        """
        index = checked_index(index, len(self))
        return open_picture(self.paths[index]), list(self.captions[index])

    def picture(self, index: int, at_least: int | None = None) -> Image.Image:
        """The picture alone; a JPEG may come out smaller, both sides `at_least` pixels long, where that is faster.

        Optional for a data set, and so is `name`: the loader asks for them through `picture_of` and `name_of`.
        """
        return open_picture(self.paths[checked_index(index, len(self))], at_least=at_least)

    def name(self, index: int) -> str:
        """What a user finds the picture by: its path."""
        return str(self.paths[checked_index(index, len(self))])

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self):,} pictures, {sum(map(len, self.captions)):,} captions)"


def picture_of(data: PairData, index: int, at_least: int | None = None) -> Image.Image:
    """A picture of any data set; reduced, down to `at_least` pixels a side, where the set has a method `picture`."""
    picture = getattr(data, "picture", None)
    return data[index][0] if picture is None else picture(index, at_least)


def name_of(data: PairData, index: int) -> str:
    """What a user finds a picture by: what the set's method `name` says, or its number."""
    name = getattr(data, "name", None)
    return f"picture {index}" if name is None else str(name(index))


def checked_index(index: int, length: int) -> int:
    """Turn an index that may be negative into one in 0..length-1, or raise IndexError."""
    position = operator.index(index)
    if not -length <= position < length:
        raise IndexError(f"index {position} is out of range for {length} pictures")
    return position % length
