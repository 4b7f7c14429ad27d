"""Batches of texts with few tokens to compute, and what image and text encoding share.

The cost of a batch is its number of tokens with padding: rows times the longest row. A causal tower computes a common
prefix once (`fast/prefix.py`). So texts are sorted before they are cut into batches: by length, or by their first
tokens and then by length, whichever needs fewer tokens. Letters: N texts, T tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor

from miniclip.models.clip import CLIP
from miniclip.utils.checks import whole_number

MAX_TOKENS = {"cpu": 2048}  # tokens per batch; a larger batch does not fit a CPU's cache, a GPU has no limit
PREFIXES = (0, 2, 3, 4, 5, 6, 8)  # numbers of first tokens by which texts are grouped, tried in turn
BATCH_COST = 100  # cost of a batch itself in tokens, since small products are slow
# On a GPU, cost of the launches of a batch's kernels: some milliseconds, in which it computes some ten thousand tokens.
GPU_BATCH_COST, GPU_MAX_TOKENS = 8192, 1 << 16
MIN_PREFIX = 2  # tokens; a shorter prefix is not shared


class TextBatch(NamedTuple):
    """Texts to embed together."""

    rows: Tensor  # (B,) indices of the texts
    width: int  # length of the longest, in tokens
    prefix: int  # common first tokens to compute once; 0: none

    @property
    def tokens(self) -> int:
        """Tokens to compute."""
        return self.prefix + len(self.rows) * (self.width - self.prefix)


def plan_batches(
    tokens: Tensor,
    lengths: Tensor,
    max_rows: int,
    max_tokens: int,
    share_prefix: bool,
    batch_cost: int = BATCH_COST,
) -> list[TextBatch]:
    """Sort texts and cut them into batches.

    Args:
        tokens: (N, T).
        lengths: (N,) tokens of each text that its embedding depends on.
        max_rows: texts per batch.
        max_tokens: tokens per batch with padding; a longer text is a batch of its own.
        share_prefix: whether the tower can share a common prefix.
        batch_cost: cost of a batch itself, in tokens.

    Returns:
        Batches in which each text occurs once.
    """
    best: list[TextBatch] = []
    lowest = math.inf
    for prefix in PREFIXES if share_prefix else PREFIXES[:1]:
        if prefix > tokens.shape[1] or not len(tokens):
            break
        groups = torch.zeros_like(lengths)
        if prefix:
            groups = torch.unique(tokens[:, :prefix], dim=0, return_inverse=True)[1]
            if int(groups.max()) * batch_cost > lowest:  # more prefixes than batches are worth
                break
        order = (groups * (tokens.shape[1] + 1) + lengths).argsort(stable=True)
        batches = []
        for group in torch.split(order, torch.bincount(groups).tolist()):
            for rows in _split_by_length(group, lengths[group].tolist(), prefix, batch_cost):
                batches += list(_cut(tokens, lengths, rows, (max_rows, max_tokens), share_prefix))
        cost = sum(batch_cost + batch.tokens for batch in batches)
        if cost < lowest:
            best, lowest = batches, cost
    return best


def _split_by_length(rows: Tensor, lengths: list[int], prefix: int, batch_cost: int) -> list[Tensor]:
    """Split sorted texts at the lengths where another batch costs less than the padding it saves.

    Dynamic programming over the end of the last batch finds the cheapest split.
    """
    ends = [i for i in range(1, len(lengths) + 1) if i == len(lengths) or lengths[i] != lengths[i - 1]]
    best = {0: (0, 0)}  # number of texts: their cost, and the start of their last batch
    for end in ends:
        width = max(1, lengths[end - 1] - prefix)
        best[end] = min((best[start][0] + batch_cost + (end - start) * width, start) for start in best)
    parts, end = [], len(lengths)
    while end:
        start = best[end][1]
        parts.append(rows[start:end])
        end = start
    return parts[::-1]


def _cut(
    tokens: Tensor, lengths: Tensor, rows: Tensor, limits: tuple[int, int], share_prefix: bool
) -> Iterator[TextBatch]:
    """Cut sorted texts into batches within the limits on rows and tokens."""
    (max_rows, max_tokens), sizes, start = limits, lengths[rows].tolist(), 0
    for i in range(1, len(sizes) + 1):
        if i == len(sizes) or i - start == max_rows or (i - start + 1) * sizes[i] > max_tokens:
            batch = rows[start:i]
            prefix = _common_prefix(tokens[batch], sizes[start]) if share_prefix and i - start > 1 else 0
            yield TextBatch(batch, sizes[i - 1], prefix)
            start = i


def _common_prefix(tokens: Tensor, shortest: int) -> int:
    """Length of the common prefix of rows (B, T), shorter than the shortest row; 0 if it is too short to share."""
    equal = int((tokens == tokens[0]).all(dim=0).cumprod(dim=0).sum())
    prefix = min(equal, shortest - 1)
    return prefix if prefix >= MIN_PREFIX else 0


def device_of(model: CLIP) -> torch.device:
    """Device of the weights."""
    return model.log_scale.device


def rows_per_batch(chosen: int | None, model: CLIP, on_cpu: int, on_gpu: int) -> int:
    """Return the rows of a batch, by default those of the model's device.

    Raises:
        ValueError: the chosen number is below 1.
        TypeError: it is not an integer.
    """
    if chosen is not None:
        return whole_number("batch_size", chosen, 1)
    return on_cpu if device_of(model).type == "cpu" else on_gpu


@contextmanager
def progress_bar(
    total: int, unit: str, enabled: bool, description: str = "", delay: float = 0
) -> Iterator[Callable[[int], object]]:
    """Context with a function that advances a progress bar by a number of items.

    Args:
        total: number of items.
        unit: their name.
        enabled: show the bar.
        description: text before the bar.
        delay: seconds until the bar appears; short work then shows none.
    """
    if not enabled:
        yield lambda count: None
        return
    from tqdm import tqdm

    with tqdm(total=total, unit=unit, desc=description or None, delay=delay) as bar:
        yield bar.update


def require_rows(embeddings: Tensor, count: int, embed_dim: int) -> Tensor:
    """Return the embeddings of a batch.

    Raises:
        ValueError: a tower of the user's own returned another shape.
    """
    if embeddings.shape != (count, embed_dim):
        found = tuple(embeddings.shape)
        raise ValueError(f"a tower returned {found} for {count} inputs; expected ({count}, {embed_dim})")
    return embeddings
