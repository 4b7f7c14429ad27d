"""Many texts in passes of few tokens: rows of like length together, and rows that begin alike.

What a pass costs are its tokens, padding included: its rows times the longest of them; less, where a causal tower
shares what all of them begin with (`prefix.py`). Texts are therefore put in order before they are cut into passes: by
length, or by their first words and then by length, whichever leaves fewer tokens. Letters: N texts, T tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

BEGINNINGS = (0, 2, 3, 4, 5, 6, 8)  # tokens by which texts are grouped before they are put in order by length
LEAST = 256  # tokens that a pass costs at least: smaller products are slower
WORTH = 2  # tokens in common from which on they are shared


class Pass(NamedTuple):
    """Some texts to embed together."""

    rows: Tensor  # which of the texts
    longest: int  # tokens
    shared: int  # tokens that all begin with, and that are computed once; 0: each row by itself

    @property
    def cost(self) -> int:
        """Tokens to compute."""
        return max(LEAST, self.shared + len(self.rows) * (self.longest - self.shared))


def plan(tokens: Tensor, lengths: Tensor, most_rows: int, most_tokens: int, causal: bool) -> list[Pass]:
    """Cut texts into passes.

    Args:
        tokens: (N, T).
        lengths: (N,) of each text, as far as its embedding depends on it.
        most_rows: texts in a pass at most.
        most_tokens: tokens in a pass at most, padding included; a longer text is a pass by itself.
        causal: whether what texts begin with can be shared.
    """
    plans = []
    for beginning in BEGINNINGS if causal else BEGINNINGS[:1]:
        if beginning > tokens.shape[1]:
            break
        groups = torch.zeros_like(lengths)
        if beginning:
            groups = torch.unique(tokens[:, :beginning], dim=0, return_inverse=True)[1]
        order = (groups * (tokens.shape[1] + 1) + lengths).argsort(stable=True)
        plans.append(list(_cut(tokens, lengths, order, groups, (most_rows, most_tokens), causal)))
    return min(plans, key=lambda passes: sum(one.cost for one in passes), default=[])


def _cut(
    tokens: Tensor, lengths: Tensor, order: Tensor, groups: Tensor, most: tuple[int, int], causal: bool
) -> Iterator[Pass]:
    """Passes of texts in an order, none over the end of a group."""
    most_rows, most_tokens = most
    long, group = lengths[order].tolist(), groups[order].tolist()
    start = 0
    for i in range(1, len(long) + 1):
        full = i < len(long) and (i - start == most_rows or (i - start + 1) * long[i] > most_tokens)
        if full or i == len(long) or group[i] != group[start]:
            rows = order[start:i]
            yield Pass(rows, long[i - 1], _shared(tokens[rows], long[start]) if causal and i - start > 1 else 0)
            start = i


def _shared(tokens: Tensor, shortest: int) -> int:
    """How many tokens rows (B, T) begin with alike, without the last one of the shortest; 0 if hardly any."""
    alike = int((tokens == tokens[0]).all(dim=0).cumprod(dim=0).sum())
    found = min(alike, shortest - 1)
    return found if found >= WORTH else 0
