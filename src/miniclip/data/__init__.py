"""Data sets of pictures with captions: `data[i]` is `(picture, [captions])`, and `len(data)` counts pictures."""

from pathlib import Path
from typing import cast

from miniclip.data.flickr30k import Flickr30k, Split
from miniclip.data.pairs import Captions, PairData
from miniclip.data.shapes import Shapes

__all__ = ["Captions", "Flickr30k", "PairData", "Shapes", "open_data"]


def open_data(spec: str | Path, split: str = "train", *, seed: int = 0) -> PairData:
    """Open a data set by what the command line calls it.

    Args:
        spec: "shapes" for the drawn set that needs no files, or the path of a folder that `Flickr30k` reads. A folder
            that is itself called shapes is "./shapes".
        split: "train", "val", "test"; a folder has "all" too.
        seed: of the drawing, or of the split where a folder has no split file.

    Raises:
        ValueError: no such split.
        FileNotFoundError: no such folder.
        DataError: the folder's files are not as they should be.
    """
    if spec == "shapes":
        return Shapes(split, seed=seed)
    return Flickr30k(spec, cast(Split, split), seed=seed)
