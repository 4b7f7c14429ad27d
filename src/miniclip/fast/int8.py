"""Linear layers in int8 on a CPU: weights by output channel, activations by token, both symmetric.

A token x has the scale max |x| / 127, found at each call (dynamic). With integers q and w,

    y = (q @ w.T) * token_scale * channel_scale + bias

Activations are shifted by 128 to uint8, because processors multiply uint8 by int8 (VNNI). Older ones add two products
in 16 bits. The sum of two neighbouring weights is therefore at most 128, since 255 * 128 fits in 16 bits.
Source: https://uxlfoundation.github.io/oneDNN/dev_guide_int8_computations.html.
Letters: M tokens, K inputs, N outputs.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor, nn

from miniclip.fast.private import UNAVAILABLE, onednn_int8_linear, onednn_int8_pack

LEVELS = 127  # largest integer of a weight or an activation
MAX_PAIR = 128  # largest sum of two neighbouring weights: 255 * 128 fits in 16 bits with a sign
ZERO_POINT = 128  # shift of activations from int8 to uint8
SMALLEST = 1e-30  # range of a token of zeros
ROUNDING = 1.5 * 2**23  # float32 near this number has steps of 1
Packed = tuple[Tensor, Tensor, Tensor, Tensor | None]


def quantize_weight(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Quantize a weight (N, K) by output channel.

    Returns:
        Integers (N, K) of int8 in -127..127, and the scale of each output (N,) of float32.

    Raises:
        ValueError: a weight is not finite.
    """
    weight = weight.detach().float()
    if not bool(weight.isfinite().all()):
        raise ValueError("a weight is NaN or infinite; expected finite weights to quantize")
    padded = nn.functional.pad(weight, (0, weight.shape[1] % 2))
    sums = (padded[:, ::2] + padded[:, 1::2]).abs().amax(dim=1)
    # rounding adds half a step to each weight of a pair, so the limit of sums is one lower
    scale = torch.maximum(weight.abs().amax(dim=1) / LEVELS, sums / (MAX_PAIR - 1)).clamp_min(SMALLEST)
    return (weight / scale[:, None]).round().to(torch.int8), scale


def quantize_tokens(x: Tensor, in_place: bool = False, least: float | None = None) -> tuple[Tensor, Tensor]:
    """Quantize activations (M, K) by token.

    Args:
        x: (M, K).
        in_place: overwrite x, which saves memory traffic.
        least: a number that no activation is below, if it is known; it saves a pass over x.

    Returns:
        Integers (M, K) of uint8, shifted by 128, and the range of each token (M, 1).
    """
    limit = x.amax(dim=1, keepdim=True)
    if least is None or bool((limit <= -least).any()):
        limit = torch.maximum(limit, x.amin(dim=1, keepdim=True).neg_()).clamp_min_(SMALLEST)
    # floats of this size are whole numbers, so the sum is rounded, and its lowest byte is the shifted integer
    values = torch.addcmul(_rounding(x.shape[1]), x, LEVELS / limit, out=x if in_place else None)
    return values.view(torch.int32).to(torch.uint8), limit


@functools.lru_cache(maxsize=16)
def _rounding(inputs: int) -> Tensor:
    """The number that rounds and shifts, once per input: torch vectorizes no product of a matrix and two scalars."""
    return torch.full((inputs,), ROUNDING + ZERO_POINT, dtype=torch.float32, device="cpu")


class Int8Weights(nn.Module):
    """Weight of a linear layer in int8, its scales and its bias, for inference in float32 on a CPU."""

    weight: Tensor
    scale: Tensor
    bias: Tensor | None

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        weight, scale = quantize_weight(layer.weight)
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.register_buffer("weight", weight)  # (N, K) int8
        self.register_buffer("scale", scale)  # (N,)
        self.register_buffer("bias", None if layer.bias is None else layer.bias.detach().float().clone())
        self._packed: dict[tuple[int, int, float, float], Packed] = {}

    def extra_repr(self) -> str:
        """Sizes, as `nn.Linear` prints them."""
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"

    def packed(self, start: int, stop: int, scale_in: float, scale_out: float) -> Packed:
        """Weights of some outputs in oneDNN's layout, their scales, zeros and bias, made at their first use."""
        key = (start, stop, scale_in, scale_out)
        if key not in self._packed:
            weight = onednn_int8_pack(self.weight[start:stop].contiguous())
            scale = self.scale[start:stop] * (scale_in * scale_out)
            bias = None if self.bias is None else self.bias[start:stop] * scale_out
            self._packed[key] = (weight, scale, torch.zeros_like(scale, dtype=torch.int64), bias)
        return self._packed[key]

    def _apply(self, fn: Any, recurse: bool = True) -> Int8Weights:
        """Refuse to move or convert the layer."""
        for name in ("weight", "scale"):
            buffer = getattr(self, name)
            moved = fn(buffer)
            if moved.device.type != "cpu" or moved.dtype != buffer.dtype:
                raise ValueError(
                    f"an int8 model runs in float32 on a CPU; found {moved.dtype} on {moved.device}: move or convert "
                    "the model before miniclip.quantize"
                )
        return super()._apply(fn, recurse)  # type: ignore[no-any-return,no-untyped-call]

    def _load_from_state_dict(self, state: Any, prefix: str, *rest: Any) -> None:
        """Load weights in int8; the packed ones are made again."""
        weight = state.get(f"{prefix}weight")
        if weight is not None and weight.dtype != torch.int8:  # else torch would round it to integers
            *_, errors = rest
            errors.append(
                f"{prefix}weight: found {weight.dtype}; expected torch.int8, of a model that is quantized too"
            )
            return
        self._packed = {}
        super()._load_from_state_dict(state, prefix, *rest)

    def __getstate__(self) -> dict[str, Any]:
        """State without the packed weights, which copies make again."""
        return {**self.__dict__, "_packed": {}}


class Int8Linear(Int8Weights):
    """Linear layer in int8 with scales of tokens found at each call."""

    def forward(self, x: Tensor) -> Tensor:
        """(..., K) to (..., N)."""
        return self.part(x, 0, self.out_features)

    def part(
        self,
        x: Tensor,
        start: int,
        stop: int,
        scale_in: float = 1.0,
        scale_out: float = 1.0,
        in_place: bool = False,
        least: float | None = None,
    ) -> Tensor:
        """Outputs start..stop of `scale_in * x`, times `scale_out`: (..., K) to (..., stop - start).

        `in_place` and `least` as in `quantize_tokens`.
        """
        refuse_gradients(x)
        rows = x.reshape(-1, self.in_features).float()
        if not rows.shape[0]:
            return x.new_zeros(*x.shape[:-1], stop - start)
        weight, scale, zeros, bias = self.packed(start, stop, scale_in / LEVELS, scale_out)
        values, limit = quantize_tokens(rows, in_place, least)
        y = onednn_int8_linear(values, ZERO_POINT, weight, scale, zeros)
        y = y.mul_(limit) if bias is None else torch.addcmul(bias, y, limit, out=y)
        return y.view(*x.shape[:-1], stop - start)


def refuse_gradients(x: Tensor) -> None:
    """Raise a ValueError if a gradient would have to pass through an int8 layer."""
    if x.requires_grad and torch.is_grad_enabled():
        raise ValueError("an int8 model has no gradients: train or explain the model before miniclip.quantize")


@functools.cache
def is_supported() -> bool:
    """Whether torch has oneDNN's int8 product on this machine, and its sums are exact, tried once."""
    values = torch.full((2, 64), 255, dtype=torch.uint8, device="cpu")
    weight = torch.full((16, 64), MAX_PAIR // 2, dtype=torch.int8, device="cpu")
    ones = torch.ones(16, device="cpu")
    try:
        result = onednn_int8_linear(values, ZERO_POINT, onednn_int8_pack(weight), ones, torch.zeros_like(ones).long())
    except UNAVAILABLE:
        return False
    return bool((result == 64 * (255 - ZERO_POINT) * (MAX_PAIR // 2)).all())
