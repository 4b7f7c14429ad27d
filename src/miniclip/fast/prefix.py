"""Rows of a causal tower that begin alike: what they begin with is computed once.

A token of a causal tower depends on the tokens before it alone. The prompts of a zero-shot classifier, "a photo of a"
and then a label, therefore share the work of their first words, exactly. They are laid behind each other as one row of
P + B * S tokens: the P that all have in common, then the S others of each. Norms and linear layers do not see the
difference; attention does, here. Letters: B rows, P tokens in common, S others, D width, H heads.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from miniclip.fast.attention import attend


class SharedPrefix(NamedTuple):
    """How the rows lie: P, B and S."""

    tokens: int
    rows: int
    own: int

    def lay(self, x: Tensor) -> Tensor:
        """Rows (B, P + S, D), whose first P are alike, to (1, P + B * S, D)."""
        return torch.cat([x[0, : self.tokens], x[:, self.tokens :].flatten(0, 1)])[None]

    def place(self, position: Tensor) -> Tensor:
        """Where a position of each row, (B,), each at least P, comes to lie."""
        return position + self.own * torch.arange(self.rows, device=position.device)

    def attend(self, qkv: Tensor, heads: int) -> Tensor:
        """Causal attention of (1, P + B * S, 3 D) to (1, P + B * S, D)."""
        P = self.tokens
        q, k, v = self.split(qkv, 3, heads)
        common = attend(q[:, :, :P], k[:, :, :P], v[:, :, :P], None, causal=True)
        seen = torch.ones(self.own, P + self.own, dtype=torch.bool, device=q.device).tril(P)
        _, keys, values = self.apart(qkv, 3, heads)
        others = attend(self._own(q), keys, values, seen, causal=False)  # (B, H, S, D / H)
        return torch.cat([common[0].transpose(0, 1).flatten(1), others.transpose(1, 2).flatten(2).flatten(0, 1)])[None]

    def apart(self, x: Tensor, parts: int, heads: int) -> tuple[Tensor, ...]:
        """(1, P + B * S, parts * D) to the parts, each of whole rows again, (B, H, P + S, D / H)."""
        return tuple(
            torch.cat([part[:, :, : self.tokens].expand(self.rows, -1, -1, -1), self._own(part)], dim=2)
            for part in self.split(x, parts, heads)
        )

    def seen_from(self, position: Tensor) -> Tensor:
        """(B, 1, 1, P + S): which tokens of its row a position, (B,), may look at."""
        return (torch.arange(self.tokens + self.own, device=position.device) <= position[:, None])[:, None, None]

    def split(self, x: Tensor, parts: int, heads: int) -> Tensor:
        """(1, P + B * S, parts * D) to the parts, each (1, H, P + B * S, D / H)."""
        return x.view(1, x.shape[1], parts, heads, -1).permute(2, 0, 3, 1, 4)

    def _own(self, x: Tensor) -> Tensor:
        """(1, H, P + B * S, D / H) to (B, H, S, D / H)."""
        own = x[0, :, self.tokens :]
        return own.reshape(len(own), self.rows, self.own, -1).transpose(0, 1)
