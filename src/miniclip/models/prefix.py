"""Rows of a causal tower that begin alike: what they begin with is computed once.

A token of a causal tower depends on the tokens before it alone. The prompts of a zero-shot classifier, "a photo of a"
and then a label, therefore share the work of their first words, exactly. They are laid behind each other as one row of
P + B * S tokens: the P that all have in common, then the S others of each. Norms and linear layers do not see the
difference; attention does, here. Letters: B rows, P tokens in common, S others, D width, H heads.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


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

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Causal attention of (1, H, P + B * S, D / H) each: the common tokens by themselves, the others to all."""
        P = self.tokens
        common = F.scaled_dot_product_attention(q[:, :, :P], k[:, :, :P], v[:, :, :P], is_causal=True)
        seen = torch.ones(self.own, P + self.own, dtype=torch.bool, device=q.device).tril(P)
        others = F.scaled_dot_product_attention(self._own(q), self.apart(k), self.apart(v), attn_mask=seen)
        return torch.cat([common, others.transpose(0, 1).flatten(1, 2)[None]], dim=2)

    def apart(self, x: Tensor) -> Tensor:
        """Keys or values (1, H, P + B * S, D / H) to (B, H, P + S, D / H), whole rows again."""
        return torch.cat([x[:, :, : self.tokens].expand(self.rows, -1, -1, -1), self._own(x)], dim=2)

    def seen_from(self, place: Tensor) -> Tensor:
        """(B, 1, 1, P + S): which tokens of its row the one that lies there may look at."""
        position = place - self.place(torch.zeros_like(place))
        return (torch.arange(self.tokens + self.own, device=place.device) <= position[:, None])[:, None, None]

    def _own(self, x: Tensor) -> Tensor:
        """(1, H, P + B * S, D / H) to (B, H, S, D / H)."""
        own = x[0, :, self.tokens :]
        return own.reshape(len(own), self.rows, self.own, -1).transpose(0, 1)
