"""Near-duplicates: groups of images whose embeddings are similar. Letters: R rows, N chosen rows, E embedding."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from miniclip.search.nearest.estimates import as_tensor
from miniclip.search.snapshot import Item, Snapshot

Array = NDArray[Any]

BLOCK = 2_048  # rows of a product: 16 MiB of float32 scores
PAIRS = 65_536  # pairs that are yielded at once
SLACK = 2e-3  # the rounding of the lengths to float16, twice, and that of a product in float32


@dataclass(frozen=True)
class DuplicateGroup:
    """Images that are equal or similar, the one with the most pixels first, then the one with the most bytes.

    Attributes:
        paths: of the files, or names in an archive or a table.
        items: the images in the index.
        exact: whether all have the same content, byte by byte.
    """

    paths: tuple[str, ...]
    items: tuple[Item, ...]
    exact: bool


def find_duplicates(
    snapshot: Snapshot,
    path_of: Callable[[Item], str],
    threshold: float = 0.95,
    advance: Callable[[int], Any] = lambda count: None,
) -> list[DuplicateGroup]:
    """Return the groups of equal and similar images of a snapshot, in the order of their first rows.

    Two images of a group need not be similar themselves: a chain of similar images connects them.

    Args:
        snapshot: items and vectors.
        path_of: path of an item.
        threshold: the smallest cosine similarity of similar images, above 0 and at most 1; at 1, equal files only.
        advance: gets the number of rows that are done, now and then.

    Raises:
        ValueError: the threshold is out of range.
    """
    if not 0 < threshold <= 1:
        raise ValueError(f"threshold: found {threshold}; expected a cosine similarity above 0 and at most 1")
    rows, counts = np.unique(snapshot.rows, return_counts=True)  # equal files share a row
    similar = similar_pairs(snapshot.vectors, rows, threshold, advance) if threshold < 1 else iter(())
    groups = groups_of(len(rows), similar)
    grouped = {number for group in groups for number in group}
    groups += [[number] for number in np.flatnonzero(counts > 1).tolist() if number not in grouped]
    items_of = snapshot.items_of_rows(rows[number] for group in groups for number in group)
    found = []
    for group in sorted(groups):
        items = [item for number in group for item in items_of[int(rows[number])]]
        items.sort(key=lambda item: (-item.width * item.height, -item.size, item.name))
        exact = len({item.sha256 for item in items}) == 1
        found.append(DuplicateGroup(tuple(path_of(item) for item in items), tuple(items), exact))
    return found


def similar_pairs(
    vectors: Array, rows: Array, threshold: float, advance: Callable[[int], Any] = lambda count: None
) -> Iterator[Array]:
    """Yield the pairs of rows whose cosine similarity is at least a threshold.

    The product is computed block by block in float32, and the pairs within its error of the threshold in float64.

    Args:
        vectors: (R, E) float16, unit vectors.
        rows: (N,) rows to compare.
        threshold: cosine similarity.
        advance: gets the number of rows that are done, after each block.

    Yields:
        (n, 2) positions in `rows`, the smaller first.
    """
    for first in range(0, len(rows), BLOCK):
        left = as_tensor(vectors[rows[first : first + BLOCK]]).float()
        for second in range(first, len(rows), BLOCK):
            right = left if second == first else as_tensor(vectors[rows[second : second + BLOCK]]).float()
            found = (left @ right.T >= threshold - SLACK).nonzero().numpy() + np.array([first, second])
            found = found[found[:, 0] < found[:, 1]]
            for start in range(0, len(found), PAIRS):
                part = found[start : start + PAIRS]
                yield part[_cosines(vectors, rows[part]) >= threshold]
        advance(len(left))


def groups_of(count: int, pairs: Iterator[Array]) -> list[list[int]]:
    """Return the connected groups of at least two numbers below a count, given the pairs that are connected.

    Each group is in ascending order, and so are the groups by their first members.
    """
    parents = np.arange(count)

    def roots(numbers: Array) -> Array:
        while (parents[numbers] != numbers).any():
            numbers = parents[numbers]
        return numbers

    def root(number: int) -> int:
        while parents[number] != number:
            parents[number] = parents[parents[number]]  # halves the path for the next time
            number = int(parents[number])
        return number

    for part in pairs:
        ends = roots(part)
        for a, b in np.unique(ends[ends[:, 0] != ends[:, 1]], axis=0).tolist():
            low, high = sorted((root(a), root(b)))
            parents[high] = low
    groups: dict[int, list[int]] = {}
    for number in range(count):
        groups.setdefault(root(number), []).append(number)
    return [members for members in groups.values() if len(members) > 1]


def _cosines(vectors: Array, pairs: Array) -> NDArray[np.float64]:
    """Return the cosine similarities of pairs of rows (n, 2) in float64."""
    scores = np.empty(len(pairs))
    for start in range(0, len(pairs), BLOCK):
        a, b = (vectors[numbers].astype(np.float64) for numbers in pairs[start : start + BLOCK].T)
        lengths = np.sqrt((a * a).sum(1) * (b * b).sum(1))
        scores[start : start + len(a)] = (a * b).sum(1) / lengths
    return scores
