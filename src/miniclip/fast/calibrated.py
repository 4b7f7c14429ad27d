"""Layers of a block in int8 with constant scales, so that oneDNN makes the passes over activations in its products.

An activation x of the channel j has a center c_j and a step s_j, which calibration found (`quantizing.py`):

    q_j = clamp(round((x_j - c_j) / s_j) + zero_point, 0, 255)

The centers and steps are parts of the weights and biases around x, which costs nothing at a call: those of the norm, or
of the values of attention, before x, and those of the linear layer after x. So norms return integers, the first layer
of an MLP returns integers after its activation function, and products add their bias.
Source: Xiao et al. 2022, SmoothQuant (arXiv 2211.10438), for steps by channel.
Letters: M tokens, D width, K inputs, N outputs.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from miniclip.fast.int8 import LEVELS, SMALLEST, ZERO_POINT, Int8Weights, refuse_gradients
from miniclip.fast.private import UNAVAILABLE, onednn_int8_layer, onednn_int8_pack
from miniclip.models.layers import QuickGELU

HIGHEST = 255  # largest uint8
LEAST_RANGE = 1e-4  # smallest range of a channel or a weight, as a fraction of the largest one
# names of activation functions in oneDNN, and the factor of their input and output: x * sigmoid(x) is SiLU
POST_OPS = {"none": ("gelu", "none", 1.0), "tanh": ("gelu", "tanh", 1.0), "quickgelu": ("swish", "", 1.702)}


class Steps(NamedTuple):
    """Scales of an activation's channels."""

    center: Tensor  # (K,)
    step: Tensor  # (K,)
    zero_point: int  # the integer of the center


def channel_steps(bounds: tuple[Tensor, Tensor], weight: Tensor) -> Steps:
    """Scales of an activation's channels before a linear layer.

    The steps are in proportion to sqrt(half range / largest weight), so that the activation and the weight share the
    differences between channels (SmoothQuant with alpha 0.5).

    Args:
        bounds: smallest and largest values of the channels, (K,) each.
        weight: (N, K).
    """
    low, high = bounds
    center, half = (low + high) / 2, _at_least((high - low) / 2)
    largest = _at_least(weight.detach().abs().amax(dim=0))
    return Steps(center, (half / largest).sqrt() * ((half * largest).sqrt().amax() / LEVELS), ZERO_POINT)


def one_step(bounds: tuple[Tensor, Tensor]) -> Steps:
    """Scales of an activation with one step; zero has an integer of its own."""
    low, high = bounds[0].amin().clamp_max(0), bounds[1].amax().clamp_min(0)
    step = ((high - low) / HIGHEST).clamp_min(SMALLEST)
    zero = torch.zeros_like(bounds[0])
    return Steps(zero, zero + step, round(float(-low / step)))


def _at_least(x: Tensor) -> Tensor:
    return x.clamp_min(float(x.amax()) * LEAST_RANGE).clamp_min(SMALLEST)


def folded(
    weight: Tensor, bias: Tensor | float, steps: Steps, factor: Tensor | float = 1.0, shift: Tensor | float = 0.0
) -> tuple[Tensor, Tensor]:
    """Weight and bias of a linear layer whose input x is given as (x - center) / step.

    Args:
        weight: (N, K).
        bias: (N,), or 0.
        steps: scales of the input.
        factor: (N,) of the outputs, or a number.
        shift: (N,) that is subtracted from the outputs before the factor, or a number.

    Returns:
        (N, K) and (N,).
    """
    scaled = weight * (torch.as_tensor(factor).reshape(-1, 1) * steps.step)
    return scaled, (bias + weight @ steps.center - shift) * factor


def through_attention(values: Steps) -> tuple[Tensor, Tensor]:
    """Factor and shift for `folded`, so that attention returns (x - center) / step.

    Weights of attention sum to one, so centers and steps pass through it from the values.

    Args:
        values: scales of attention's result, of D channels.

    Returns:
        (3 D,) each, for packed queries, keys and values.
    """
    D = len(values.step)
    factor, shift = torch.ones(3 * D, device="cpu"), torch.zeros(3 * D, device="cpu")
    factor[2 * D :], shift[2 * D :] = 1 / values.step, values.center
    return factor, shift


class Int8Norm(nn.Module):
    """LayerNorm that returns integers with the zero point 128: (..., D) to (..., D) of uint8."""

    weight: Tensor
    bias: Tensor

    def __init__(self, norm: nn.LayerNorm, steps: Steps) -> None:
        super().__init__()
        self.eps = norm.eps
        self.register_buffer("weight", norm.weight.detach() / steps.step)
        self.register_buffer("bias", (norm.bias.detach() - steps.center) / steps.step)

    def forward(self, x: Tensor) -> Tensor:
        """Normalize and quantize."""
        refuse_gradients(x)
        return shifted_integers_(F.layer_norm(x.float(), self.weight.shape, self.weight, self.bias, self.eps))


class CalibratedLinear(Int8Weights):
    """Linear layer in int8 of integers.

    Args:
        layer: the layer in float32.
        steps: scales of its input.
        factor: (N,) of its outputs, or a number.
        shift: (N,) that is subtracted from its outputs before the factor, or a number.
    """

    bias: Tensor

    def __init__(
        self, layer: nn.Linear, steps: Steps, factor: Tensor | float = 1.0, shift: Tensor | float = 0.0
    ) -> None:
        given = 0.0 if layer.bias is None else layer.bias.detach()
        weight, bias = folded(layer.weight.detach(), given, steps, factor, shift)
        scaled = nn.Linear(layer.in_features, layer.out_features, device="meta")
        scaled.weight = nn.Parameter(weight, requires_grad=False)
        scaled.bias = nn.Parameter(bias, requires_grad=False)
        super().__init__(scaled)
        # integers times the weight are too large by this
        self.bias -= steps.zero_point * self.scale * self.weight.sum(dim=1)

    def forward(self, x: Tensor) -> Tensor:
        """(..., K) of integers in uint8, or of floats in steps, which are overwritten, to (..., N)."""
        return self.part(x, 0, self.out_features)

    def part(self, x: Tensor, start: int, stop: int) -> Tensor:
        """Outputs start..stop: (..., K) to (..., stop - start)."""
        if not x.numel():
            return x.new_zeros(*x.shape[:-1], stop - start, dtype=torch.float32)
        y = onednn_int8_layer(_rows(x), *self.packed(start, stop, 1.0, 1.0))
        return y.view(*x.shape[:-1], stop - start)


class CalibratedMLP(nn.Module):
    """MLP in int8 whose hidden layer is kept in integers only.

    Args:
        up, down: the linear layers in float32.
        activation: a key of `POST_OPS`.
        inputs: scales of the input.
        hidden: scales of the hidden layer after the activation function, equal for all channels.
    """

    hidden: Tensor

    def __init__(self, up: nn.Linear, down: nn.Linear, activation: str, inputs: Steps, hidden: Steps) -> None:
        super().__init__()
        self.activation = activation
        *_, factor = POST_OPS[activation]
        self.up = CalibratedLinear(up, inputs, factor)
        self.down = CalibratedLinear(down, hidden)
        # float64 keeps both numbers exact
        scale_and_zero = [float(hidden.step[0]) * factor, float(hidden.zero_point)]
        self.register_buffer("hidden", torch.tensor(scale_and_zero, dtype=torch.float64, device="cpu"))

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) of integers in uint8 to (..., D)."""
        return self.down(self._hidden(x))  # type: ignore[no-any-return]

    def add_to_(self, total: Tensor, x: Tensor) -> Tensor:
        """Add the output to `total` (..., D), which is overwritten."""
        if not x.numel():
            return total
        packed = self.down.packed(0, self.down.out_features, 1.0, 1.0)
        rows = total.reshape(-1, total.shape[-1]).contiguous()
        return onednn_int8_layer(self._hidden(x).flatten(0, -2), *packed, total=rows).view(total.shape)

    def _hidden(self, x: Tensor) -> Tensor:
        """(..., D) to (..., K), both of integers in uint8."""
        if not x.numel():
            return x.new_zeros(*x.shape[:-1], self.up.out_features)
        scale, zero_point = self.hidden.tolist()
        name, algorithm, _ = POST_OPS[self.activation]
        packed = self.up.packed(0, self.up.out_features, 1.0, 1.0)
        values = onednn_int8_layer(_rows(x), *packed, activation=(name, algorithm), integers=(scale, int(zero_point)))
        return values.view(*x.shape[:-1], -1)


@functools.cache
def is_supported() -> bool:
    """Whether torch has oneDNN's int8 products with activation functions and sums on this machine, tried once."""
    x = torch.full((2, 64), HIGHEST, dtype=torch.uint8, device="cpu")
    packed = onednn_int8_pack(torch.ones(16, 64, dtype=torch.int8, device="cpu"))
    scale, bias = torch.full((16,), 1 / 64, device="cpu"), torch.ones(16, device="cpu")
    inputs = (x, packed, scale, torch.zeros(16, dtype=torch.int64, device="cpu"), bias)
    try:
        sums = onednn_int8_layer(*inputs, total=torch.full((2, 16), 2.0, device="cpu"))
        hidden = [onednn_int8_layer(*inputs, activation=op[:2], integers=(2.0, 3)) for op in POST_OPS.values()]
    except UNAVAILABLE:
        return False
    # (255 + 1) / 2 + 3
    return bool((sums == HIGHEST + 3).all()) and all(bool((values == 131).all()) for values in hidden)


def shifted_integers_(x: Tensor) -> Tensor:
    """Integers of floats in steps, which are overwritten, clamped and shifted by 128: to uint8."""
    # torch vectorizes the conversion to int8, and not the one to uint8
    return x.round_().clamp_(-ZERO_POINT, ZERO_POINT - 1).to(torch.int8).view(torch.uint8).add_(ZERO_POINT)


def activation_name(activation: nn.Module) -> str | None:
    """Key of `POST_OPS`, or None."""
    if type(activation) is QuickGELU:
        return "quickgelu"
    return activation.approximate if type(activation) is nn.GELU else None


def _rows(x: Tensor) -> Tensor:
    """(..., K) to (M, K) of integers in uint8."""
    if x.dtype != torch.uint8:
        x = shifted_integers_(x.float())
    return x.reshape(-1, x.shape[-1])
