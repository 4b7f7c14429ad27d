"""Attention that keeps its queries, keys, values and weights, so that gradients with respect to them can be taken.

Letters: B batch, H heads, T tokens, d width of a head, D = H d.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn

from miniclip.fast import plain_forms
from miniclip.models.layers import Attention


class Record(NamedTuple):
    """Tensors of one attention layer's forward pass."""

    query: Tensor  # (B, H, T, d)
    key: Tensor  # (B, H, T, d)
    value: Tensor  # (B, H, T, d)
    weights: Tensor  # (B, H, T, T), rows sum to 1
    output: Tensor  # (B, H, T, d), before the output projection


class RecordingAttention(Attention):
    """Attention with an explicit softmax; its last forward pass is in `record`."""

    record: Record

    def forward(self, x: Tensor, mask: Tensor | None = None, causal: bool = False) -> Tensor:
        """As `Attention.forward`."""
        B, T, D = x.shape
        q, k, v = self.qkv(x).view(B, T, 3, self.heads, D // self.heads).permute(2, 0, 3, 1, 4)
        scores = q @ k.transpose(2, 3) * (D // self.heads) ** -0.5
        if causal:
            mask = torch.ones(T, T, dtype=torch.bool, device=x.device).tril()
        if mask is not None:
            scores = scores.masked_fill(~mask, -torch.inf)
        weights = scores.softmax(dim=3)
        output = weights @ v
        self.record = Record(q, k, v, weights, output)
        return self.out(output.transpose(1, 2).reshape(B, T, D))  # type: ignore[no-any-return]


@contextmanager
def recording(tower: nn.Module) -> Iterator[None]:
    """Context in which a tower's attention layers are `RecordingAttention`; the tower has its plain forms."""
    with plain_forms(tower):
        layers = [module for module in tower.modules() if type(module) is Attention]
        for layer in layers:
            layer.__class__ = RecordingAttention
        try:
            yield
        finally:
            for layer in layers:
                layer.__class__ = Attention
                layer.__dict__.pop("record", None)
