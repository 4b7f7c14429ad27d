"""Transformer layers shared by both towers: attention, MLP, block, stack, pooling.

Pre-norm blocks (Vaswani et al. 2017; norm placement as in GPT-2): x = x + attention(norm(x)); x = x + mlp(norm(x)).
Letters: B batch, T tokens, D width, H heads, E embedding.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from miniclip.config import Activation, ImageConfig, Projection, TextConfig
from miniclip.models.stochastic_depth import drop_branches


class QuickGELU(nn.Module):
    """x * sigmoid(1.702 x): the approximation of GELU that OpenAI's CLIP was trained with."""

    def forward(self, x: Tensor) -> Tensor:
        """Elementwise, any shape."""
        return F.silu(1.702 * x) / 1.702  # the same function; autograd keeps one tensor fewer


ACTIVATIONS: dict[Activation, Callable[[], nn.Module]] = {
    "gelu": nn.GELU,
    "gelu_tanh": partial(nn.GELU, approximate="tanh"),
    "quickgelu": QuickGELU,
}


class Attention(nn.Module):
    """Multi-head self-attention: softmax(q k^T / sqrt(D / H)) v. The width D is a multiple of the heads H."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor, mask: Tensor | None = None, causal: bool = False) -> Tensor:
        """Attend.

        Args:
            x: (B, T, D).
            mask: bool, broadcast to (B, H, T, T); True where a query (row) may attend to a key (column).
            causal: each token attends to itself and to earlier tokens only. Not together with a mask.

        Returns:
            (B, T, D).
        """
        B, T, D = x.shape
        q, k, v = self.qkv(x).view(B, T, 3, self.heads, D // self.heads).permute(2, 0, 3, 1, 4)  # (B, H, T, D / H) each
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal)
        return self.out(y.transpose(1, 2).reshape(B, T, D))  # type: ignore[no-any-return]


class MLP(nn.Module):
    """Two linear layers with an activation between them: (..., D) to (..., D)."""

    def __init__(self, width: int, hidden: int, activation: Activation) -> None:
        super().__init__()
        self.up = nn.Linear(width, hidden)
        self.activation = ACTIVATIONS[activation]()
        self.down = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) to (..., D)."""
        return self.down(self.activation(self.up(x)))  # type: ignore[no-any-return]


class Block(nn.Module):
    """Transformer block: attention, then an MLP, each on the normalized input and added to the residual stream."""

    drop_rate = 0.0  # stochastic depth in training: probability of a sample to skip a branch

    def __init__(self, config: ImageConfig | TextConfig) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.width, config.norm_eps)
        self.attention = Attention(config.width, config.heads)
        self.norm2 = nn.LayerNorm(config.width, config.norm_eps)
        self.mlp = MLP(config.width, config.mlp_width, config.activation)

    def forward(self, x: Tensor, mask: Tensor | None = None, causal: bool = False) -> Tensor:
        """(B, T, D) to (B, T, D); mask and causal as in `Attention`."""
        rate = self.drop_rate * self.training
        x = x + drop_branches(self.attention(self.norm1(x), mask, causal), rate)
        return x + drop_branches(self.mlp(self.norm2(x)), rate)


class Transformer(nn.ModuleList):
    """Stack of blocks."""

    checkpointed = False  # gradient checkpointing: recompute blocks in backward (Chen et al. 2016, arXiv 1604.06174)

    def __init__(self, config: ImageConfig | TextConfig) -> None:
        super().__init__(Block(config) for _ in range(config.layers))

    def forward(self, x: Tensor, mask: Tensor | None = None, causal: bool = False) -> Tensor:
        """(B, T, D) to (B, T, D); mask and causal as in `Attention`."""
        recompute = self.checkpointed and torch.is_grad_enabled()
        for block in self:
            x = checkpoint(block, x, mask, causal, use_reentrant=False) if recompute else block(x, mask, causal)
        return x


class AttentionPool(nn.Module):
    """A learned query attends to all tokens, then an MLP (Lee et al. 2019; SigLIP, Zhai et al. 2023)."""

    def __init__(self, config: ImageConfig) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.zeros(config.width))
        self.attention = Attention(config.width, config.heads)
        self.norm = nn.LayerNorm(config.width, config.norm_eps)
        self.mlp = MLP(config.width, config.mlp_width, config.activation)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) to (B, D)."""
        B, T, D = x.shape
        x = torch.cat([self.query.to(x.dtype).expand(B, 1, D), x], dim=1)
        mask = (torch.arange(T + 1, device=x.device) > 0)[None]  # the query is not a key
        x = self.attention(x, mask)[:, 0]
        return x + self.mlp(self.norm(x))  # type: ignore[no-any-return]


def projection(width: int, embed_dim: int, kind: Projection) -> nn.Module:
    """Projection from a tower's width to the shared space: (B, D) to (B, E)."""
    return nn.Identity() if kind == "none" else nn.Linear(width, embed_dim, bias=kind == "bias")
