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
EACH = 100  # tokens in whose time a pass more is begun: small products are slower
WORTH = 2  # tokens in common from which on they are shared


class Pass(NamedTuple):
    """Some texts to embed together."""

    rows: Tensor  # which of the texts
    longest: int  # tokens
    shared: int  # tokens that all begin with, and that are computed once; 0: each row by itself

    @property
    def cost(self) -> int:
        """Tokens to compute, and the pass itself."""
        return EACH + self.shared + len(self.rows) * (self.longest - self.shared)


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
        passes = []
        for rows in torch.split(order, torch.bincount(groups).tolist()):
            for some in _of_like_length(rows, lengths[rows].tolist(), beginning):
                passes += list(_cut(tokens, lengths, some, (most_rows, most_tokens), causal))
        plans.append(passes)
    return min(plans, key=lambda passes: sum(one.cost for one in passes), default=[])


def _of_like_length(rows: Tensor, long: list[int], shared: int) -> list[Tensor]:
    """Texts in order of length, cut where one pass more costs less than the padding that it saves.

    Of all ways to cut them between two lengths it is the best one, found from the shortest texts on.
    """
    ends = [i for i in range(1, len(long) + 1) if i == len(long) or long[i] != long[i - 1]]
    best = {0: (0, 0)}  # texts: what they cost, and where the last pass of them starts
    for end in ends:
        each = max(1, long[end - 1] - shared)
        best[end] = min((best[start][0] + EACH + (end - start) * each, start) for start in best)
    cuts, end = [], len(long)
    while end:
        start = best[end][1]
        cuts.append(rows[start:end])
        end = start
    return cuts[::-1]


def _cut(tokens: Tensor, lengths: Tensor, rows: Tensor, most: tuple[int, int], causal: bool) -> Iterator[Pass]:
    """Texts in order of length as passes that are not too large."""
    most_rows, most_tokens = most
    long, start = lengths[rows].tolist(), 0
    for i in range(1, len(long) + 1):
        if i == len(long) or i - start == most_rows or (i - start + 1) * long[i] > most_tokens:
            some = rows[start:i]
            yield Pass(some, long[i - 1], _shared(tokens[some], long[start]) if causal and i - start > 1 else 0)
            start = i


def _shared(tokens: Tensor, shortest: int) -> int:
    """How many tokens rows (B, T) begin with alike, without the last one of the shortest; 0 if hardly any."""
    alike = int((tokens == tokens[0]).all(dim=0).cumprod(dim=0).sum())
    found = min(alike, shortest - 1)
    return found if found >= WORTH else 0
