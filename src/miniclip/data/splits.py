"""Split of a dataset into train, val and test: the dataset's own, or drawn by a hash.

A drawn split ranks the images by a hash of the seed and their names. It does not depend on the order of the rows, and
a new image moves few others. Two images are one of train and one of val, and one image is train.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, NamedTuple

from miniclip.utils.checks import nearest

Split = Literal["train", "val", "test", "all"]  # a dataset can have others; "all" is the whole dataset

SPLIT_NAMES = {  # common names of splits, in lower case
    "train": "train",
    "training": "train",
    "restval": "train",  # Karpathy's: images of COCO's validation set that he trains on
    "val": "val",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "test": "test",
    "testing": "test",
}
MAX_DRAWN = 1000  # images in a drawn val or test split
MIN_DRAWN = 3  # images of which each of train, val and test gets one
_WORD = re.compile(r"[A-Za-z]+")


class Splits(NamedTuple):
    """Split of every image.

    Attributes:
        of: image name to split; images without a split are missing.
        description: the origin of the split, for people.
    """

    of: dict[str, str]
    description: str


def normalize_split(name: str) -> str:
    """Return "train", "val" or "test" for a common name such as "validation"; other names are returned stripped."""
    return SPLIT_NAMES.get(name.strip().lower(), name.strip())


def likely_split(name: str, known: Iterable[str]) -> str:
    """Return "; did you mean 'val'?" for a split that most likely stands for a known one, else ""."""
    known = list(known)
    usual = normalize_split(str(name))
    near = usual if usual in known else nearest(str(name), known)
    return f"; did you mean {near!r}?" if near else ""


def split_in_name(file_name: str) -> str | None:
    """Return the split in a file name such as "train-00000-of-00009"; None unless there is exactly one."""
    splits = {SPLIT_NAMES[word.lower()] for word in _WORD.findall(file_name) if word.lower() in SPLIT_NAMES}
    return splits.pop() if len(splits) == 1 else None


def draw_splits(names: Iterable[str], seed: int) -> dict[str, str]:
    """Draw a split: 1,000 images for each of val and test, or a tenth of a smaller dataset, but at least one.

    Returns:
        Image name to split. "train" is never empty: two images have no test, and one has no val either.
    """
    ranked = _rank(names, seed)
    size = _holdout_size(len(ranked))
    val, test = (min(size, max(0, len(ranked) - others)) for others in (1, 2))
    parts = {"val": ranked[:val], "test": ranked[val : val + test], "train": ranked[val + test :]}
    return {name: split for split, members in parts.items() for name in members}


def resolve_splits(given: Mapping[str, str | None], seed: int, exact: bool = False) -> Splits:
    """Take the dataset's own split if it has one, else draw it.

    If all files have the name of one split, that name stands for the whole dataset, so the split is drawn. (The parquet
    files of Flickr30k on the Hub are all called test.) A missing val is drawn from train. If some images have a split,
    those without one are in no split.

    Args:
        given: image name to the dataset's name of its split, None if it has none.
        seed: of the drawn part.
        exact: the names come from a column or a split file, not from file names; one split is then valid.
    """
    own = {name: normalize_split(split) for name, split in given.items() if split is not None and split.strip()}
    known = set(own.values())
    if not known or (len(known) == 1 and not exact):
        start = f"all files are named {known.pop()!r}, so the split is" if known else "the split is"
        few = (
            f", of fewer than {MIN_DRAWN} images, which are too few for train, val and test"
            if len(given) < MIN_DRAWN
            else ""
        )
        return Splits(draw_splits(given, seed), f"{start} drawn by a hash of the image names (seed {seed}){few}")
    if "val" in known or "train" not in known:
        return Splits(own, "the split is the dataset's own")
    train = _rank([name for name, split in own.items() if split == "train"], seed)
    own |= dict.fromkeys(train[: min(_holdout_size(len(train)), len(train) - 1)], "val")
    return Splits(own, f"the split is the dataset's own, with val drawn from train by a hash (seed {seed})")


def select_split(names: Sequence[str], splits: Mapping[str, str], split: str, source: str) -> list[str]:
    """Return the names in one split, in order; "all" returns every name.

    Raises:
        ValueError: the split does not exist; the message names `source` and its splits.
    """
    if split == "all":
        return list(names)
    members = [name for name in names if splits.get(name) == split]
    if not members:
        known = {splits[name] for name in names if name in splits}
        usual = [name for name in ("train", "val", "test") if name in known]
        listed = ", ".join(usual + sorted(known.difference(usual)))
        few = (
            f"; it is too small for a split into train, val and test: add images, {MIN_DRAWN} or more in all"
            if len(names) < MIN_DRAWN and SPLIT_NAMES.get(split) in {"val", "test"} - known
            else ""
        )
        count = "1 image" if len(names) == 1 else f"{len(names):,} images"
        hint = few or likely_split(split, [*known, "all"])
        raise ValueError(f"no split {split!r}: {source} ({count}) has {listed}; 'all' takes everything{hint}")
    return members


def _rank(names: Iterable[str], seed: int) -> list[str]:
    return sorted(names, key=lambda name: (hashlib.sha256(_key(seed, name)).digest(), name))


def _key(seed: int, name: str) -> bytes:
    return f"{seed}/{name}".encode("utf-8", "surrogatepass")


def _holdout_size(count: int) -> int:
    return max(1, min(MAX_DRAWN, count // 10))
