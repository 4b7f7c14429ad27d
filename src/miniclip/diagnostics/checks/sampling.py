"""Random samples of a dataset, and short lists of names for messages."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from miniclip.utils.randomness import generator

MAX_NAMES = 3  # names in a message


def sample_indices(total: int, limit: int) -> list[int]:
    """Return all indices below `total` in order, or a fixed random sample of `limit` of them."""
    if total <= limit:
        return list(range(total))
    indices: list[int] = torch.randperm(total, generator=generator("check", total))[:limit].tolist()
    return indices


def listed(names: Iterable[str]) -> str:
    """Join the first names: `listed("abcde")` is `a; b; c and 2 more`."""
    names = list(names)
    rest = f" and {len(names) - MAX_NAMES:,} more" if len(names) > MAX_NAMES else ""
    return "; ".join(names[:MAX_NAMES]) + rest
