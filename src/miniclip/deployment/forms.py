"""Forms of the towers for an export: the same embeddings in less arithmetic, in operations that engines recognize.

The last block computes only the token that is pooled. The forms of `fast/` do this too, but not under an export.
Weights of the query are apart from those of keys and values, since a file that slices weights has no constant ones.
Products keep a dimension of tokens, so that all are MatMul.
Letters: B batch, T tokens, D width, H heads, E embedding.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from miniclip.models.layers import Attention, Block, QuickGELU
from miniclip.models.text import TextTransformer, sequence_lengths
from miniclip.models.vision import VisionTransformer


class PooledBlock(nn.Module):
    """Last block of a tower, for one token per sequence."""

    def __init__(self, block: Block) -> None:
        super().__init__()
        attention: Attention = block.attention
        D = attention.qkv.in_features
        self.heads, self.norm1, self.norm2, self.mlp = attention.heads, block.norm1, block.norm2, block.mlp
        self.query, self.out = _rows(attention.qkv, 0, D), attention.out
        self.keys_and_values = _rows(attention.qkv, D, 3 * D)

    def forward(self, x: Tensor, mask: Tensor | None, causal: bool, position: Tensor) -> Tensor:
        """(B, T, D), the arguments of `Attention`, and the position (B,) of the token, to (B, D)."""
        B, T, D = x.shape
        token = (torch.arange(B, device=x.device), position)
        normed = self.norm1(x)
        q = self.query(normed[token][:, None]).view(B, 1, self.heads, -1).transpose(1, 2)  # (B, H, 1, D / H)
        k, v = self.keys_and_values(normed).view(B, T, 2, self.heads, -1).permute(2, 0, 3, 1, 4)
        if causal:
            mask = (torch.arange(T, device=x.device) <= position[:, None])[:, None, None, :]
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        x = x[token][:, None] + self.out(y.transpose(1, 2).reshape(B, 1, D))
        return (x + self.mlp(self.norm2(x)))[:, 0]  # type: ignore[no-any-return]


class PooledImageTower(VisionTransformer):
    """Image tower that pools its class token."""

    def encode(self, x: Tensor) -> Tensor:
        """(B, T, D) to (B, D)."""
        first = torch.zeros(x.shape[0], dtype=torch.int64, device=x.device)
        return self.norm_after(_pooled(self.blocks, x, None, False, first))  # type: ignore[no-any-return]


class PooledTextTower(TextTransformer):
    """Text tower."""

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, T) to (B, E)."""
        T = tokens.shape[1]
        self.check_length(T)
        lengths = sequence_lengths(tokens, self.config.end_id)
        x, mask = self.tokens(tokens) + self.positions[:T], self.key_padding_mask(lengths, T)
        x = _pooled(self.blocks, x, mask, self.config.causal, self.pool_indices(lengths, T))
        return self.projection(self.norm_after(x))  # type: ignore[no-any-return]


class SigmoidGELU(QuickGELU):
    """QuickGELU as engines recognize it, to compute it in one pass."""

    def forward(self, x: Tensor) -> Tensor:
        """Elementwise, any shape."""
        return x * torch.sigmoid(1.702 * x)


def to_export_form(tower: nn.Module) -> None:
    """Exchange the plain forms of a tower, in place. The last block stays if more than one token is pooled."""
    if not isinstance(tower, VisionTransformer | TextTransformer):
        return
    for module in tower.modules():
        if type(module) is QuickGELU:
            module.__class__ = SigmoidGELU
    if isinstance(tower, VisionTransformer) and tower.config.pooling != "class":
        return
    tower.__class__ = PooledImageTower if isinstance(tower, VisionTransformer) else PooledTextTower
    last = tower.blocks[-1]
    assert isinstance(last, Block)
    tower.blocks[-1] = PooledBlock(last)


def _pooled(blocks: nn.ModuleList, x: Tensor, mask: Tensor | None, causal: bool, position: Tensor) -> Tensor:
    *first, last = blocks
    for block in first:
        x = block(x, mask, causal)
    return last(x, mask, causal, position)  # type: ignore[no-any-return]


def _rows(layer: nn.Linear, start: int, stop: int) -> nn.Linear:
    """Outputs start to stop of a layer."""
    part = nn.Linear(layer.in_features, stop - start, device="meta")  # draws no random weights
    part.weight, part.bias = (nn.Parameter(value[start:stop].clone()) for value in (layer.weight, layer.bias))
    return part
