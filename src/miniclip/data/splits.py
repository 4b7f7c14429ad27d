"""Which picture trains, which validates and which tests: by the words that a set uses, or drawn by a hash.

Drawing: the rank of a picture is a hash of the seed and its name, so neither the order of the rows nor a random
generator enters, and a picture that is added moves few others.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

Split = Literal["train", "val", "test", "all"]

MEANING = {  # what people call them, in lower case
    "train": "train",
    "training": "train",
    "restval": "train",  # Karpathy's: what COCO's validation set has left, which trains
    "val": "val",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "test": "test",
    "testing": "test",
}
_WORDS = re.compile(r"[A-Za-z]+")


def meaning(word: str) -> str:
    """What a set's word for a split means: "validation" and "dev" are "val"; an unknown word means itself."""
    return MEANING.get(word.strip().lower(), word.strip())


def in_name(name: str) -> str | None:
    """The split that a file's name speaks of, such as "train-00000-of-00009.parquet"; None without just one."""
    found = {MEANING[word.lower()] for word in _WORDS.findall(name) if word.lower() in MEANING}
    return found.pop() if len(found) == 1 else None


def drawn(names: Iterable[str], seed: int) -> dict[str, str]:
    """Draw a split by picture: 1,000 for val and for test, or a tenth of a small set, at least one.

    Returns:
        The split of every name; nothing is ever in "train" of a set of one or two pictures.
    """
    ranked = _ranked(names, seed)
    share = _share(len(ranked))
    bounds = {"val": ranked[:share], "test": ranked[share : 2 * share], "train": ranked[2 * share :]}
    return {name: split for split, members in bounds.items() for name in members}


def settled(splits: Mapping[str, str | None], seed: int, exact: bool = False) -> tuple[dict[str, str], str]:
    """The split of every picture, and where it is from, in words.

    A set that names no splits is drawn; so is one all of whose files are called by the same split, since that is a
    word for the whole (the parquet files of some sets are called test alone). Where there is no val, it is drawn from
    train. Pictures without a split in a set that has splits are in none.

    Args:
        splits: what the set says of each picture, None where it says nothing.
        seed: of what is drawn.
        exact: one split for all is meant as such, since a column or a split file says it, not a file's name.
    """
    named = {name: meaning(split) for name, split in splits.items() if split is not None and split.strip()}
    held = set(named.values())
    if not held or (len(held) == 1 and not exact):
        only = f"all is called {held.pop()!r}, so the split is" if held else "the split is"
        return drawn(splits, seed), f"{only} drawn by a hash of the pictures' names (seed {seed})"
    if "val" in held or "train" not in held:
        return named, "the split is the set's own"
    ranked = _ranked([name for name, split in named.items() if split == "train"], seed)
    named |= dict.fromkeys(ranked[: min(_share(len(ranked)), len(ranked) - 1)], "val")
    return named, f"the split is the set's own, its val drawn from train by a hash (seed {seed})"


def chosen(names: Sequence[str], splits: Mapping[str, str], split: str, said_by: str) -> list[str]:
    """The names of one split, in order; "all" is everything.

    Raises:
        ValueError: there is no such split; the message names those that there are.
    """
    if split == "all":
        return list(names)
    members = [name for name in names if splits.get(name) == split]
    if not members:
        held = {splits[name] for name in names if name in splits}
        known = [known for known in ("train", "val", "test") if known in held] + sorted(held - {"train", "val", "test"})
        raise ValueError(f"no split {split!r}: {said_by} {', '.join(known)}; 'all' takes everything")
    return members


def _ranked(names: Iterable[str], seed: int) -> list[str]:
    return sorted(names, key=lambda name: (hashlib.sha256(_key(seed, name)).digest(), name))


def _key(seed: int, name: str) -> bytes:
    return f"{seed}/{name}".encode("utf-8", "surrogateescape")


def _share(count: int) -> int:
    return max(1, min(1000, count // 10))
