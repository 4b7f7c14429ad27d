"""Causal sequences with a common prefix: the prefix is computed once.

In a causal tower a token depends on earlier tokens only. The prompts of a zero-shot classifier ("a photo of a" and a
label) can therefore share their first tokens, exactly. The batch becomes one sequence of P + B * S tokens: the P tokens
of the prefix, then the S remaining tokens of each sequence. Only attention treats it differently.
Letters: B batch, P prefix tokens, S suffix tokens, D width, H heads.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from miniclip.fast.attention import attention


class SharedPrefix(NamedTuple):
    """Layout of a batch with a common prefix."""

    prefix: int  # P
    batch: int  # B
    suffix: int  # S

    def pack(self, x: Tensor) -> Tensor:
        """(B, P + S, D) with equal first P tokens to (1, P + B * S, D)."""
        return torch.cat([x[0, : self.prefix], x[:, self.prefix :].flatten(0, 1)])[None]

    def packed_indices(self, position: Tensor) -> Tensor:
        """Packed index of one position of each sequence, (B,), each at least P."""
        return position + self.suffix * torch.arange(self.batch, device=position.device)

    def attention(self, qkv: Tensor, heads: int) -> Tensor:
        """Causal attention, (1, P + B * S, 3 D) to (1, P + B * S, D)."""
        P = self.prefix
        q, k, v = self._split(qkv, 3, heads)
        prefix = attention(q[:, :, :P], k[:, :, :P], v[:, :, :P], None, causal=True)
        mask = torch.ones(self.suffix, P + self.suffix, dtype=torch.bool, device=q.device).tril(P)
        _, keys, values = self.unpack(qkv, 3, heads)
        suffix = attention(self._suffixes(q), keys, values, mask, causal=False)  # (B, H, S, D / H)
        return torch.cat([prefix[0].transpose(0, 1).flatten(1), suffix.transpose(1, 2).flatten(2).flatten(0, 1)])[None]

    def unpack(self, x: Tensor, parts: int, heads: int) -> tuple[Tensor, ...]:
        """(1, P + B * S, parts * D) to `parts` tensors (B, H, P + S, D / H)."""
        return tuple(
            torch.cat([part[:, :, : self.prefix].expand(self.batch, -1, -1, -1), self._suffixes(part)], dim=2)
            for part in self._split(x, parts, heads)
        )

    def key_mask(self, position: Tensor) -> Tensor:
        """(B, 1, 1, P + S), True for the keys that the token at `position` (B,) may attend to."""
        return (torch.arange(self.prefix + self.suffix, device=position.device) <= position[:, None])[:, None, None]

    def _split(self, x: Tensor, parts: int, heads: int) -> Tensor:
        """(1, P + B * S, parts * D) to (parts, 1, H, P + B * S, D / H)."""
        return x.view(1, x.shape[1], parts, heads, -1).permute(2, 0, 3, 1, 4)

    def _suffixes(self, x: Tensor) -> Tensor:
        """(1, H, P + B * S, D / H) to (B, H, S, D / H)."""
        suffixes = x[0, :, self.prefix :]
        return suffixes.reshape(suffixes.shape[0], self.batch, self.suffix, -1).transpose(0, 1)
