"""The transformer that both towers are made of: attention, MLP, block, stack.

Pre-norm blocks (Vaswani et al. 2017; the norm's place as in GPT-2), x = x + attention(norm(x)); x = x + mlp(norm(x)).
Letters: B batch, T tokens, D width, H heads.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from miniclip.config import Activation, ImageConfig, Projection, TextConfig
from miniclip.fast.attention import attend
from miniclip.fast.matmul import Linear, linear
from miniclip.fast.prefix import SharedPrefix
from miniclip.fast.unpadded import Unpadded

Layout = SharedPrefix | Unpadded  # how the tokens of a batch lie in one row
Mask = Tensor | Layout | None


class QuickGELU(nn.Module):
    """x * sigmoid(1.702 x), the approximation of GELU that OpenAI's CLIP was trained with (it is not `gelu`)."""

    def forward(self, x: Tensor) -> Tensor:
        """Any shape, elementwise."""
        return F.silu(1.702 * x) / 1.702  # the same, and one tensor fewer is kept for the gradient


ACTIVATIONS: dict[Activation, Callable[[], nn.Module]] = {
    "gelu": nn.GELU,
    "gelu_tanh": partial(nn.GELU, approximate="tanh"),
    "quickgelu": QuickGELU,
}


def activate_(x: Tensor, activation: nn.Module) -> Tensor:
    """An activation in place, without gradient: memory for another tensor as wide takes as long as the arithmetic."""
    if type(activation) is QuickGELU:
        return F.silu(x.mul_(1.702), inplace=True).div_(1.702)
    if type(activation) is nn.GELU:
        result: Tensor = torch.ops.aten.gelu_(x, approximate=activation.approximate)
        return result
    return activation(x)  # type: ignore[no-any-return]


class Attention(nn.Module):
    """Multi-head self-attention, softmax(q k^T / sqrt(D / H)) v, through `scaled_dot_product_attention`.

    Args:
        width: D, a multiple of heads.
        heads: H.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = Linear(width, 3 * width)
        self.out = Linear(width, width)

    def forward(self, x: Tensor, mask: Mask = None, causal: bool = False, at: Tensor | None = None) -> Tensor:
        """Attend.

        Args:
            x: (B, T, D).
            mask: bool, broadcast to (B, H, T, T): True where a query (row) may look at a key (column). Not with causal.
                Or how the tokens of a batch lie in x, which is then (1, T, D), and of which causality is known.
            causal: a token sees itself and the earlier ones.
            at: (B,), the one position of each row that asks; None: all of them.

        Returns:
            (B, T, D); with `at`, (B, D).
        """
        if at is not None:
            return self._at(x, mask, causal, at)
        B, T, D = x.shape
        if isinstance(mask, Layout):
            return self.out(mask.attend(self.qkv(x), self.heads))  # type: ignore[no-any-return]
        q, k, v = self.qkv(x).view(B, T, 3, self.heads, D // self.heads).permute(2, 0, 3, 1, 4)  # each (B, H, T, D/H)
        y = attend(q, k, v, mask, causal)
        return self.out(y.transpose(1, 2).reshape(B, T, D))  # type: ignore[no-any-return]

    def _at(self, x: Tensor, mask: Mask, causal: bool, at: Tensor) -> Tensor:
        """What one token of each row finds: (B, T, D) to (B, D)."""
        D = x.shape[2]
        if isinstance(mask, Layout):
            q = linear(x[0, mask.place(at)], self.qkv.weight[:D], self.qkv.bias[:D])
            k, v = mask.apart(linear(x, self.qkv.weight[D:], self.qkv.bias[D:]), 2, self.heads)
            return self._answered(q, k, v, mask.seen_from(at))
        if causal:
            mask = (torch.arange(x.shape[1], device=x.device) <= at[:, None])[:, None, None, :]  # (B, 1, 1, T)
        q = linear(pick(x, at), self.qkv.weight[:D], self.qkv.bias[:D])
        return self._answered(q, *self._keys_and_values(x), mask)

    def answer(self, query: Tensor, x: Tensor) -> Tensor:
        """What one query (D,) finds in x (B, T, D): (B, D)."""
        q = linear(query, self.qkv.weight[: len(query)], self.qkv.bias[: len(query)])
        return self._answered(q.expand(len(x), -1), *self._keys_and_values(x), None)

    def _keys_and_values(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Of x (B, T, D), each (B, H, T, D/H)."""
        B, T, D = x.shape
        kv = linear(x, self.qkv.weight[D:], self.qkv.bias[D:])
        k, v = kv.view(B, T, 2, self.heads, D // self.heads).permute(2, 0, 3, 1, 4)
        return k, v

    def _answered(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        """One query a row, (B, D), to (B, D)."""
        y = attend(q.view(len(q), self.heads, 1, -1), k, v, mask, causal=False)  # (B, H, 1, D/H)
        return self.out(y.flatten(1))  # type: ignore[no-any-return]


def pick(x: Tensor, at: Tensor) -> Tensor:
    """One position of each row: (B, T, D) to (B, D)."""
    return x[torch.arange(len(x), device=x.device), at]


class MLP(nn.Module):
    """Two linear layers with an activation between them."""

    def __init__(self, width: int, hidden: int, activation: Activation) -> None:
        super().__init__()
        self.up = Linear(width, hidden)
        self.activation = ACTIVATIONS[activation]()
        self.down = Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """(…, D) to (…, D)."""
        hidden = self.up(x)
        seen = self.up._forward_hooks or self.activation._forward_hooks or self.activation._forward_pre_hooks
        if hidden.requires_grad or hidden.device.type != "cpu" or torch.compiler.is_compiling() or seen:
            hidden = self.activation(hidden)
        else:
            hidden = activate_(hidden, self.activation)
        return self.down(hidden)  # type: ignore[no-any-return]


class Block(nn.Module):
    """Attention, then MLP, each on a normalised input and added to the stream."""

    def __init__(self, config: ImageConfig | TextConfig) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.width, config.norm_eps)
        self.attention = Attention(config.width, config.heads)
        self.norm2 = nn.LayerNorm(config.width, config.norm_eps)
        self.mlp = MLP(config.width, config.mlp_width, config.activation)

    def forward(self, x: Tensor, mask: Mask = None, causal: bool = False, at: Tensor | None = None) -> Tensor:
        """(B, T, D) to (B, T, D); mask, causal and at as in `Attention`: with `at`, to (B, D)."""
        found = self.attention(self.norm1(x), mask, causal, at)
        if at is not None:
            x = x[0, mask.place(at)] if isinstance(mask, Layout) else pick(x, at)
        x = x + found
        return x + self.mlp(self.norm2(x))  # type: ignore[no-any-return]


class Transformer(nn.ModuleList):
    """A tower's stack of blocks, one after the other.

    Attributes:
        checkpointed: in training, keep of each block its input alone, and compute the block again when its gradient is
            taken (Chen et al. 2016, https://arxiv.org/abs/1604.06174). No number changes, so no configuration has it.
        compiled: the blocks are translated by torch.compile, and want shapes that stay the same.
    """

    checkpointed = False
    compiled = False

    def __init__(self, config: ImageConfig | TextConfig) -> None:
        super().__init__(Block(config) for _ in range(config.layers))

    def forward(self, x: Tensor, mask: Mask = None, causal: bool = False, at: Tensor | None = None) -> Tensor:
        """(B, T, D) to (B, T, D); mask and causal as in `Attention`.

        With `at`, (B,), to (B, D): of the last block one position of each row alone. That is exact, and saves most of
        the block: keys and values of all positions are in it, but one query, one output and one MLP for each row.
        """
        recompute = self.checkpointed and torch.is_grad_enabled()
        for number, block in enumerate(self, start=1):
            asked = at if number == len(self) else None
            if recompute:
                x = checkpoint(block, x, mask, causal, asked, use_reentrant=False)
            else:
                x = block(x, mask, causal, asked)
        return x


class AttentionPool(nn.Module):
    """One learned query attends to all tokens, and an MLP follows (Lee et al. 2019; in SigLIP, Zhai et al. 2023).

    Args:
        config: the tower whose tokens are pooled; heads, MLP and norm are as in its blocks.
    """

    def __init__(self, config: ImageConfig) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.zeros(config.width))
        self.attention = Attention(config.width, config.heads)
        self.norm = nn.LayerNorm(config.width, config.norm_eps)
        self.mlp = MLP(config.width, config.mlp_width, config.activation)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) to (B, D)."""
        x = self.attention.answer(self.query.to(x.dtype), x)
        return x + self.mlp(self.norm(x))  # type: ignore[no-any-return]


def projection(width: int, embed_dim: int, kind: Projection) -> nn.Module:
    """The step from a tower's width D to the shared space: (B, D) to (B, E)."""
    return nn.Identity() if kind == "none" else Linear(width, embed_dim, bias=kind == "bias")
