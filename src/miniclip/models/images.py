"""Whatever stands for a picture, to the pixels that the image tower takes. Letters: S side."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from miniclip.pictures import as_picture, existing
from miniclip.transforms import Preprocess


def pixels_of(item: Any, preprocess: Preprocess) -> Tensor:
    """A path, a PIL image or an array (H, W, 3) of uint8 to uint8 (3, S, S); a path's JPEG the fast way.

    Raises:
        FileNotFoundError: the path does not exist.
        DataError: the file cannot be read as a picture.
        TypeError: something else was passed.
    """
    if isinstance(item, str | Path):
        return preprocess.read(existing(item))
    return preprocess.pixels(as_picture(item))
