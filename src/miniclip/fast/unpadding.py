"""Sequence packing: a batch of sequences without its padding.

The sequences of a batch are concatenated to one row of N tokens for norms, linear layers and MLPs. For attention they
are padded again, with a key padding mask. Value and gradient equal those of the padded batch, because no embedding
depends on padding. In a batch of natural captions, about half the tokens are padding. The vocabulary is that of
flash-attn's `bert_padding`.

Letters: B batch, T tokens of the longest sequence, N tokens in all, D width, H heads.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from miniclip.fast.attention import attention


class PackedSequences(NamedTuple):
    """Layout of a packed batch."""

    lengths: Tensor  # (B,)
    indices: Tensor  # (N,) index of each packed token in the padded batch (B * T); the last one is repeated at the end
    inverse: Tensor  # (B * T,) packed index of each padded position; padding maps to its sequence's last token
    tokens: int  # N without the repetitions
    causal: bool

    @staticmethod
    def from_lengths(lengths: Tensor, T: int, causal: bool) -> PackedSequences:
        """Layout of sequences of these lengths (B,), padded to T."""
        valid = (torch.arange(T, device=lengths.device) < lengths[:, None]).flatten()
        indices = valid.nonzero()[:, 0]
        tokens = indices.shape[0]
        repeated = indices[-1:].expand(round_up(tokens) - tokens)
        return PackedSequences(lengths, torch.cat([indices, repeated]), valid.cumsum(0) - 1, tokens, causal)

    @property
    def key_padding_mask(self) -> Tensor:
        """(B, 1, 1, T), True for keys that are not padding."""
        B = self.lengths.shape[0]
        T = self.inverse.shape[0] // B
        return (torch.arange(T, device=self.lengths.device) < self.lengths[:, None])[:, None, None, :]

    @property
    def samples(self) -> Tensor:
        """(N,) sequence of each packed token."""
        return self.indices // (self.inverse.shape[0] // self.lengths.shape[0])

    def pack(self, x: Tensor) -> Tensor:
        """(B, T, D) to (1, N, D)."""
        packed: Tensor = _Pack.apply(x.flatten(0, 1), self.indices, self.inverse, self.tokens)
        return packed[None]

    def packed_indices(self, position: Tensor) -> Tensor:
        """Packed index of one position of each sequence, (B,)."""
        return self.lengths.cumsum(0) - self.lengths + position

    def attention(self, qkv: Tensor, heads: int) -> Tensor:
        """Attention within each sequence, (1, N, 3 D) to (1, N, D)."""
        q, k, v = self.unpack(qkv, 3, heads)
        y = attention(q, k, v, None if self.causal else self.key_padding_mask, self.causal)
        return self.pack(y.transpose(1, 2).flatten(2))

    def unpack(self, x: Tensor, parts: int, heads: int) -> tuple[Tensor, ...]:
        """(1, N, parts * D) to `parts` tensors (B, H, T, D / H)."""
        padded: Tensor = _Unpack.apply(x[0], self.indices, self.inverse, self.tokens)
        B = self.lengths.shape[0]
        return padded.view(B, padded.shape[0] // B, parts, heads, -1).permute(2, 0, 3, 1, 4).unbind()

    def key_mask(self, position: Tensor) -> Tensor:
        """(B, 1, 1, T), True for the keys that the token at `position` (B,) may attend to."""
        if not self.causal:
            return self.key_padding_mask
        T = self.inverse.shape[0] // self.lengths.shape[0]
        return (torch.arange(T, device=position.device) <= position[:, None])[:, None, None, :]


def round_up(count: int) -> int:
    """The next of 16 sizes per power of two.

    oneDNN compiles and caches half a megabyte of code for each size of a product, so thousands of sizes cost memory.
    """
    step = max(1, 1 << max(0, count.bit_length() - 5))
    return -(-count // step) * step


# The two functions are each other's gradient. Autograd would scatter-add, which is slower than a gather.


class _Pack(torch.autograd.Function):
    """Gather the tokens of a padded batch: (B * T, D) to (N, D)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, indices: Tensor, inverse: Tensor, tokens: int) -> Tensor:
        ctx.save_for_backward(indices, inverse)
        ctx.tokens = tokens
        return x.index_select(0, indices)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        indices, inverse = ctx.saved_tensors
        padded: Tensor = _Unpack.apply(grad, indices, inverse, ctx.tokens)
        valid = torch.zeros(inverse.shape[0], 1, dtype=torch.bool, device=indices.device).index_fill(0, indices, True)
        return padded.masked_fill(~valid, 0), None, None, None


class _Unpack(torch.autograd.Function):
    """Pad packed tokens again: (N, D) to (B * T, D). Padding repeats the last token of its own sequence.

    Masked keys still reach the result if they are not finite, so padding must not come from another sequence.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, indices: Tensor, inverse: Tensor, tokens: int) -> Tensor:
        ctx.save_for_backward(indices, inverse)
        ctx.tokens = tokens
        return x.index_select(0, inverse)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        indices, inverse = ctx.saved_tensors
        packed: Tensor = _Pack.apply(grad, indices, inverse, ctx.tokens)
        repetitions = indices.shape[0] - ctx.tokens
        return F.pad(packed[: ctx.tokens], (0, 0, 0, repetitions)), None, None, None
