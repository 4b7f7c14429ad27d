"""Split of a dataset into train, val and test: the dataset's own, or drawn by a hash.

A drawn split ranks the images by a hash of the seed and their names. It does not depend on the order of the rows, and
a new image moves few others. Two images are one of train and one of val, and one image is train. Images of one group,
such as the photos of a product, stay together: the groups are ranked by a hash of the seed and their texts.
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


def join_groups(groups: Mapping[str, set[str]]) -> dict[str, str] | None:
    """Return the group of every image; groups that share an image are one, with the name of its first.

    An image without a group is a group of its own. The result is None if no image has a group.
    """
    if not any(groups.values()):
        return None
    parents: dict[str, str] = {}

    def root(group: str) -> str:
        while parents.setdefault(group, group) != group:
            group = parents[group]
        return group

    for names in groups.values():
        first, *others = sorted({root(name) for name in names}) or [""]
        parents.update(dict.fromkeys(others, first))
    return {image: f"group/{root(min(names))}" if names else f"image/{image}" for image, names in groups.items()}


def draw_group_splits(groups: Mapping[str, str], seed: int) -> dict[str, str]:
    """Draw a split of whole groups: val, then test, take groups until they have as many images as in `draw_splits`.

    Groups with more images than that are taken last, so that one of them rarely is a whole split.

    Args:
        groups: image name to group.
        seed: seed of the order.

    Raises:
        ValueError: there are fewer than three groups.
    """
    members: dict[str, list[str]] = {}
    for name, group in groups.items():
        members.setdefault(group, []).append(name)
    if len(members) < MIN_DRAWN:
        raise ValueError(
            f"{len(groups):,} images are in {len(members)} group{'' if len(members) == 1 else 's'}; a split into "
            f"train, val and test needs at least {MIN_DRAWN}: choose another column of groups"
        )
    size, splits = _holdout_size(len(groups)), dict.fromkeys(groups, "train")
    ranked = sorted(_rank(members, seed), key=lambda group: len(members[group]) > size)
    for split, left in (("val", 2), ("test", 1)):
        count = 0
        while count < size and len(ranked) > left:
            names = members[ranked.pop(0)]
            count += len(names)
            splits |= dict.fromkeys(names, split)
    return splits


def _require_whole_groups(groups: Mapping[str, str], splits: Mapping[str, str]) -> None:
    """Raise ValueError if a dataset's own split puts images of one group into several."""
    first: dict[str, str] = {}
    for name, split in splits.items():
        group = groups[name]
        if first.setdefault(group, split) != split:
            raise ValueError(
                f"the dataset's own split has images of the group {group.partition('/')[2]!r} in {first[group]} and in "
                f"{split}: remove the column of splits, so that whole groups are drawn, or that of groups"
            )


def resolve_splits(
    given: Mapping[str, str | None], seed: int, exact: bool = False, groups: Mapping[str, str] | None = None
) -> Splits:
    """Take the dataset's own split if it has one, else draw it.

    If all files have the name of one split, that name stands for the whole dataset, so the split is drawn. (The parquet
    files of Flickr30k on the Hub are all called test.) A missing val is drawn from train. If some images have a split,
    those without one are in no split.

    Args:
        given: image name to the dataset's name of its split, None if it has none.
        seed: of the drawn part.
        exact: the names come from a column or a split file, not from file names; one split is then valid.
        groups: image name to group, from `join_groups`; None: without groups.

    Raises:
        ValueError: there are too few groups, or the dataset's own split cuts one.
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
        if groups is not None:
            count = len(set(groups.values()))
            by = f"{start} drawn by a hash of the {count:,} groups (seed {seed})"
            return Splits(draw_group_splits(groups, seed), by)
        return Splits(draw_splits(given, seed), f"{start} drawn by a hash of the image names (seed {seed}){few}")
    if groups is not None:
        _require_whole_groups(groups, own)
    if "val" in known or "train" not in known:
        return Splits(own, "the split is the dataset's own")
    train = _rank([name for name, split in own.items() if split == "train"], seed)
    held = train[: min(_holdout_size(len(train)), len(train) - 1)]
    if groups is not None:
        drawn = draw_group_splits({name: groups[name] for name in train}, seed)
        held = [name for name in train if drawn[name] == "val"]
    own |= dict.fromkeys(held, "val")
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
