"""Choice of a labelled dataset's split. A split is the dataset's own and never drawn: results would not compare."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from miniclip.data.splits import likely_split
from miniclip.errors import DataError
from miniclip.utils.option_names import option

WITHOUT_SPLITS = ("val", "all")  # the default, and all: each takes every image of a dataset without splits


def require_split(source: str, known: Iterable[str], split: str) -> None:
    """Check that a dataset with splits has one.

    Raises:
        DataError: it has others; the message lists them.
    """
    known = sorted(known)
    if split not in known:
        hint = (
            likely_split(split, known)
            or f"; choose one of them, as in {option('split', 'test' if 'test' in known else known[0])}"
        )
        raise DataError(f"{source}: found the splits {', '.join(known)}, expected {split}{hint}")


def require_whole(source: str, split: str, remedy: str) -> None:
    """Check that a dataset without splits is measured as a whole.

    Raises:
        DataError: a part of it is needed, as for training a probe.
    """
    if split not in WITHOUT_SPLITS:
        raise DataError(f"{source}: has no splits, and {split} is needed; {remedy}")


def rows_of_split(source: str, splits: Sequence[str | None], split: str, remedy: str) -> list[int]:
    """Return the rows of a split, in order.

    Args:
        source: the dataset, for messages.
        splits: the split of each row; None without one.
        split: "train", "val", "test" or another; "all" takes every row.
        remedy: advice for a dataset without splits.

    Raises:
        DataError: the dataset lacks the split.
    """
    known = {name for name in splits if name is not None}
    if split == "all":
        return list(range(len(splits)))
    if not known:
        require_whole(source, split, remedy)
        return list(range(len(splits)))
    require_split(source, known, split)
    return [row for row, name in enumerate(splits) if name == split]
