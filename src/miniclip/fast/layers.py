"""Fast forms of the transformer's layers.

- Linear layers go through oneDNN on a CPU (`matmul.py`).
- Without gradient, an MLP applies its activation in place.
- With `pool_indices`, the last block computes one query, output and MLP per sequence instead of T.
- With a packed layout (`unpadding.py`, `prefix.py`), blocks work on one row of tokens without padding.
The last two change the shapes inside the blocks, so callers use them only if `is_exact` holds.

Letters: B batch, T tokens, N packed tokens, D width, H heads.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from miniclip.fast.attention import attention
from miniclip.fast.calibrated import CalibratedLinear, CalibratedMLP, Int8Norm
from miniclip.fast.int8 import Int8Linear, Int8Weights
from miniclip.fast.matmul import apply_linear, is_plain_linear, linear
from miniclip.fast.prefix import SharedPrefix
from miniclip.fast.private import has_global_hooks, has_hooks, is_transformed
from miniclip.fast.unpadding import PackedSequences
from miniclip.finetuning.lora import LoRALinear
from miniclip.models.layers import MLP, Attention, AttentionPool, Block, QuickGELU, Transformer
from miniclip.models.stochastic_depth import drop_branches

INT8_ROWS = 256  # tokens of int8 layers at a time and thread: the traffic between caches would take longer than they do
CALIBRATED = 3  # times as many rows, because activations take less memory
# smallest values of activations, rounded down; that of QuickGELU without its factors, x * sigmoid(x)
LEAST: dict[type[nn.Module], float] = {QuickGELU: -0.2785, nn.GELU: -0.1701}
PackedLayout = SharedPrefix | PackedSequences
Mask = Tensor | PackedLayout | None


class FastAttention(Attention):
    """Attention through oneDNN, for packed layouts, and for one query per sequence."""

    def forward(self, x: Tensor, mask: Mask = None, causal: bool = False, pool_indices: Tensor | None = None) -> Tensor:
        """Attend.

        Args:
            x: (B, T, D); packed, (1, N, D).
            mask: as in `Attention`, or the layout of a packed x.
            causal: as in `Attention`; False for a packed x, whose layout has it.
            pool_indices: (B,) position of the only query of each sequence; None: every token is a query.

        Returns:
            Shape of x; with pool_indices, (B, D).
        """
        if pool_indices is not None:
            return self._pooled(x, mask, causal, pool_indices)
        qkv = apply_linear(self.qkv, x)
        if isinstance(mask, PackedLayout):
            return apply_linear(self.out, mask.attention(qkv, self.heads))
        B, T, D = x.shape
        q, k, v = qkv.view(B, T, 3, self.heads, D // self.heads).permute(2, 0, 3, 1, 4)
        y = attention(q, k, v, mask, causal)
        return apply_linear(self.out, y.transpose(1, 2).reshape(B, T, D))

    def _pooled(self, x: Tensor, mask: Mask, causal: bool, pool_indices: Tensor) -> Tensor:
        """Attention output of one query per sequence: (B, D)."""
        D = x.shape[2]
        if isinstance(mask, PackedLayout):
            query = x[0, mask.packed_indices(pool_indices)]
            k, v = mask.unpack(self._project(x, D, 3 * D), 2, self.heads)
            return self._attend_from(self._query(query), k, v, mask.key_mask(pool_indices))
        if causal:
            mask = (torch.arange(x.shape[1], device=x.device) <= pool_indices[:, None])[:, None, None, :]
        return self._attend_from(self._query(pick(x, pool_indices)), *self._keys_and_values(x), mask)

    def attend_from(self, query: Tensor, x: Tensor) -> Tensor:
        """Attention output of one query (D,) over x (B, T, D): (B, D)."""
        return self._attend_from(self._query(query).expand(x.shape[0], -1), *self._keys_and_values(x), None)

    def _query(self, x: Tensor) -> Tensor:
        return self._project(x, 0, x.shape[-1])

    def _keys_and_values(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of x (B, T, D), (B, H, T, D / H) each."""
        B, T, D = x.shape
        kv = self._project(x, D, 3 * D)
        k, v = kv.view(B, T, 2, self.heads, D // self.heads).permute(2, 0, 3, 1, 4)
        return k, v

    def _project(self, x: Tensor, start: int, stop: int) -> Tensor:
        """Outputs start..stop of the layer `qkv`."""
        layer: nn.Module = self.qkv
        if isinstance(layer, (Int8Linear, CalibratedLinear)):
            return layer.part(x, start, stop)
        y = linear(x, self.qkv.weight[start:stop], self.qkv.bias[start:stop])
        return y + layer.update(x, start, stop) if isinstance(layer, LoRALinear) else y

    def _attend_from(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        """One query per sequence, (B, D), to (B, D)."""
        q = q.view(q.shape[0], self.heads, 1, q.shape[1] // self.heads)
        y = attention(q, k, v, mask, causal=False)  # (B, H, 1, D / H)
        return apply_linear(self.out, y.flatten(1))


class FastMLP(MLP):
    """MLP through oneDNN; in place without gradient, since memory traffic takes as long as the arithmetic."""

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) to (..., D)."""
        up: nn.Module = self.up
        down: nn.Module = self.down
        if (
            isinstance(up, Int8Linear)
            and isinstance(down, Int8Linear)
            and not any(map(has_hooks, self.children()))
            and not has_global_hooks()
        ):
            return int8_mlp(x, up, self.activation, down)
        hidden = apply_linear(self.up, x)
        in_place = is_plain_linear(self.up) and not has_hooks(self.activation) and not has_global_hooks()
        if in_place and hidden.device.type == "cpu" and not hidden.requires_grad and not is_transformed():
            hidden = activate_(hidden, self.activation)
        else:
            hidden = self.activation(hidden)
        return apply_linear(self.down, hidden)


class FastBlock(Block):
    """Block that can return one token per sequence."""

    def forward(self, x: Tensor, mask: Mask = None, causal: bool = False, pool_indices: Tensor | None = None) -> Tensor:
        """As `FastAttention.forward`."""
        rate, samples = self.drop_rate * self.training, None
        if pool_indices is None:
            if rate and isinstance(mask, PackedSequences):
                samples = mask.samples
            x = x + drop_branches(self.attention(self.norm1(x), mask, causal), rate, samples)
        else:
            pooled = drop_branches(self.attention(self.norm1(x), mask, causal, pool_indices), rate)
            if isinstance(mask, PackedLayout):
                x = x[0, mask.packed_indices(pool_indices)] + pooled
            else:
                x = pick(x, pool_indices) + pooled
        mlp: nn.Module = self.mlp
        if type(mlp) is CalibratedMLP and not has_hooks(mlp) and not has_global_hooks():
            return mlp.add_to_(x, self.norm2(x))
        return x + drop_branches(self.mlp(self.norm2(x)), rate, samples)


class FastTransformer(Transformer):
    """Stack of blocks whose last block can return one token per sequence."""

    # Keep the residual stream in bfloat16 under autocast, which leaves it in float32: half the memory traffic of norms
    # and sums, and less exact. On a GPU, norms still sum in float32. It becomes a setting after
    # benchmarks/gpu/candidates.py has measured it.
    bfloat16_residual = False

    def forward(self, x: Tensor, mask: Mask = None, causal: bool = False, pool_indices: Tensor | None = None) -> Tensor:
        """As `FastAttention.forward`. With pool_indices or a packed layout, `is_exact(self)` must hold."""
        if self.bfloat16_residual and torch.is_autocast_enabled(x.device.type):
            x = x.to(torch.bfloat16)
        if is_calibrated(self):  # integers have no NaN: spread it to all tokens, as attention does
            x = x + 0 * x.sum(dim=(1, 2), keepdim=True)
        if mask is None and not causal and x.shape[0] > 1 and is_int8(self) and is_exact(self):
            return self._by_image(x, pool_indices)
        return self._blocks(x, mask, causal, pool_indices)

    def _by_image(self, x: Tensor, pool_indices: Tensor | None) -> Tensor:
        """All blocks for as many images at a time as a core's cache holds."""
        rows = int8_rows() * (CALIBRATED if is_calibrated(self) else 1)
        images = max(1, rows // x.shape[1])
        starts = range(0, x.shape[0], images)
        parts = [(x[i : i + images], None if pool_indices is None else pool_indices[i : i + images]) for i in starts]
        return torch.cat([self._blocks(part, None, False, indices) for part, indices in parts])

    def _blocks(self, x: Tensor, mask: Mask, causal: bool, pool_indices: Tensor | None) -> Tensor:
        if pool_indices is None:
            return super().forward(x, mask, causal)  # type: ignore[arg-type]
        recompute = self.checkpointed and torch.is_grad_enabled()
        for number, block in enumerate(self, start=1):
            inputs = (x, mask, causal, pool_indices if number == len(self) else None)
            x = checkpoint(block, *inputs, use_reentrant=False) if recompute else block(*inputs)
        return x


class FastAttentionPool(AttentionPool):
    """Attention pooling that computes one query per image."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) to (B, D)."""
        if not is_exact(self):
            return super().forward(x)
        assert isinstance(self.attention, FastAttention)
        x = self.attention.attend_from(self.query.to(x.dtype), x)
        return x + self.mlp(self.norm(x))  # type: ignore[no-any-return]


# Modules whose inner shapes may change without anybody noticing.
KNOWN = frozenset(
    (
        *(FastAttention, FastAttentionPool, FastBlock, FastMLP, FastTransformer),
        *(CalibratedLinear, CalibratedMLP, Int8Linear, Int8Norm),
        *(LoRALinear, QuickGELU, nn.GELU, nn.LayerNorm, nn.Linear),
    )
)


def is_exact(module: nn.Module) -> bool:
    """Whether the inner shapes of a module may change: it has no foreign modules and no hooks, and is not traced.

    Foreign modules are adapters, layers that another library quantized, parametrized layers and FSDP's units. Hooks
    and tracing would record other shapes than those of the plain form. Hooks on all modules are those of profilers and
    FLOP counters: they record the work that is really done.
    """
    if torch.compiler.is_exporting() or (is_transformed() and not torch.compiler.is_compiling()):
        return False
    return all(type(part) in KNOWN and not has_hooks(part) for part in module.modules())


def int8_rows() -> int:
    """Tokens that the caches of the cores hold."""
    return INT8_ROWS * torch.get_num_threads()


def is_int8(blocks: Transformer) -> bool:
    """Whether the linear layers are in int8."""
    return len(blocks) > 0 and any(isinstance(layer, Int8Weights) for layer in blocks[0].modules())


def is_calibrated(blocks: Transformer) -> bool:
    """Whether the linear layers are in int8 with constant scales."""
    return len(blocks) > 0 and isinstance(getattr(blocks[0], "norm1", None), Int8Norm)  # blocks may be a user's


def pick(x: Tensor, position: Tensor) -> Tensor:
    """One token of each sequence: (B, T, D) and (B,) to (B, D)."""
    return x[torch.arange(x.shape[0], device=x.device), position]


def activate_(x: Tensor, activation: nn.Module) -> Tensor:
    """Apply an activation in place if it is known, else out of place."""
    if type(activation) is QuickGELU:
        return F.silu(x.mul_(1.702), inplace=True).div_(1.702)
    if type(activation) is nn.GELU:
        result: Tensor = torch.ops.aten.gelu_(x, approximate=activation.approximate)
        return result
    return activation(x)  # type: ignore[no-any-return]


def int8_mlp(x: Tensor, up: Int8Linear, activation: nn.Module, down: Int8Linear) -> Tensor:
    """MLP in int8, in parts that a core's cache holds: (..., D) to (..., D)."""
    rows = x.reshape(-1, x.shape[-1])
    parts = [_int8_mlp(part, up, activation, down) for part in torch.split(rows, int8_rows())]
    return (parts[0] if len(parts) == 1 else torch.cat(parts)).view(*x.shape[:-1], down.out_features)


def _int8_mlp(x: Tensor, up: Int8Linear, activation: nn.Module, down: Int8Linear) -> Tensor:
    if type(activation) is QuickGELU:  # its factors become parts of the scales
        hidden = F.silu(up.part(x, 0, up.out_features, scale_out=1.702), inplace=True)
        return down.part(hidden, 0, down.out_features, scale_in=1 / 1.702, in_place=True, least=LEAST[QuickGELU])
    least = LEAST.get(type(activation))
    return down.part(activate_(up(x), activation), 0, down.out_features, in_place=True, least=least)
