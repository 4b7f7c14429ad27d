"""Captions of unlike length in one batch, without their padding: norms, linear layers and MLPs see the words alone.

The rows of a batch are laid behind each other as one row of N tokens; for attention they are set apart again, each with
padding to the longest, which its mask leaves out. Value and gradient are those of the padded batch, since no embedding
depends on padding. Half of a batch of natural captions is padding. On a GPU it is left in: there shapes that stay the
same are worth more. Letters: B batch, T tokens of the longest, N tokens in all, D width, H heads.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from miniclip.fast.attention import attend


class Unpadded(NamedTuple):
    """How the rows lie."""

    length: Tensor  # (B,)
    words: Tensor  # (N,), the place of each word in the padded batch, (B * T); the last one again and again at the end
    places: Tensor  # (B * T,), where each place of the padded batch lies; padding, where its row's last word does
    many: int  # of the words, without that repetition
    causal: bool

    @staticmethod
    def of(length: Tensor, tokens: int, causal: bool) -> Unpadded:
        """Of rows of these lengths (B,), padded to T."""
        valid = (torch.arange(tokens, device=length.device) < length[:, None]).flatten()
        words = valid.nonzero()[:, 0]
        more = few_sizes(len(words)) - len(words)
        several = torch.cat([words, words[-1:].expand(more)])
        return Unpadded(length, several, valid.cumsum(0) - 1, len(words), causal)

    @property
    def mask(self) -> Tensor:
        """(B, 1, 1, T), True where a key is no padding."""
        tokens = len(self.places) // len(self.length)
        return (torch.arange(tokens, device=self.length.device) < self.length[:, None])[:, None, None, :]

    def lay(self, x: Tensor) -> Tensor:
        """A padded batch (B, T, D) to (1, N, D)."""
        laid: Tensor = _Lay.apply(x.flatten(0, 1), self.words, self.places, self.many)
        return laid[None]

    def place(self, position: Tensor) -> Tensor:
        """Where a position of each row, (B,), comes to lie."""
        return self.length.cumsum(0) - self.length + position

    def attend(self, qkv: Tensor, heads: int) -> Tensor:
        """Attention of (1, N, 3 D) to (1, N, D)."""
        q, k, v = self.apart(qkv, 3, heads)
        y = attend(q, k, v, None if self.causal else self.mask, self.causal)  # what padding finds is left behind
        return self.lay(y.transpose(1, 2).flatten(2))

    def apart(self, x: Tensor, parts: int, heads: int) -> Tensor:
        """(1, N, parts * D) to the parts, each (B, H, T, D / H)."""
        padded: Tensor = _Pad.apply(x[0], self.words, self.places, self.many)
        B = len(self.length)
        return padded.view(B, len(padded) // B, parts, heads, -1).permute(2, 0, 3, 1, 4)

    def seen_from(self, position: Tensor) -> Tensor:
        """(B, 1, 1, T): which keys a position of each row, (B,), may look at."""
        if not self.causal:
            return self.mask
        tokens = len(self.places) // len(self.length)
        return (torch.arange(tokens, device=position.device) <= position[:, None])[:, None, None, :]


def few_sizes(count: int) -> int:
    """The next of 16 sizes between a power of two and the next one.

    For each size of a product oneDNN makes and keeps a program, half a megabyte of it: they should not be thousands.
    """
    step = max(1, 1 << max(0, count.bit_length() - 5))
    return -(-count // step) * step


# Either way the gradient is gathered too: autograd would add it up row by row.


class _Lay(torch.autograd.Function):
    """Rows of the padded batch, (B * T, D), without the padding: (N, D)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, words: Tensor, places: Tensor, count: int) -> Tensor:
        ctx.save_for_backward(words, places)
        ctx.count = count
        return x.index_select(0, words)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        words, places = ctx.saved_tensors
        padded: Tensor = _Pad.apply(gradient, words, places, ctx.count)
        valid = torch.zeros(len(places), 1, dtype=torch.bool, device=words.device).index_fill(0, words, True)
        return padded.masked_fill(~valid, 0), None, None, None


class _Pad(torch.autograd.Function):
    """Back again, (N, D) to (B * T, D); padding repeats its row's last word, and nobody may look at it.

    Of its own row, since what is masked counts nothing but where it is not finite: that must not reach other rows.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, words: Tensor, places: Tensor, count: int) -> Tensor:
        ctx.save_for_backward(words, places)
        ctx.count = count
        return x.index_select(0, places)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        words, places = ctx.saved_tensors
        laid: Tensor = _Lay.apply(gradient, words, places, ctx.count)
        return F.pad(laid[: ctx.count], (0, 0, 0, len(words) - ctx.count)), None, None, None
