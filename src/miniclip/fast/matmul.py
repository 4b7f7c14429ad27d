"""Matrix products on a CPU through oneDNN.

PyTorch sends float32 products to MKL, which is slow on processors of other makers. oneDNN is in the same wheel. A
linear layer is 1.1 to 1.6 times as fast with it on a Zen 4, and twice on a Zen 5 (`python -m benchmarks steps`). On
Intel's processors the two take the same time for a layer's output, and MKL, which computes transposed products faster
there, keeps the gradients.
`torch.set_float32_matmul_precision("medium")` selects oneDNN too, but for the whole process, and in bfloat16 on
processors with matrix units. The operator used here keeps float32 and changes no setting.

Letters: M rows, K inputs, N outputs.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from miniclip.fast.private import (
    UNAVAILABLE,
    has_global_hooks,
    has_hooks,
    in_dispatch_mode,
    is_transformed,
    mkldnn_has_bfloat16,
    mkldnn_linear,
)
from miniclip.finetuning.lora import LoRALinear
from miniclip.runtime.cores import is_intel

MAX_ERROR = {torch.float32: 1e-5, torch.bfloat16: 1e-2}  # checked at the first use; TF32 would have 3e-4
LARGE_WEIGHT = 1 << 20  # elements; below this size MKL computes the weight's gradient faster


def matmul(a: Tensor, b: Tensor) -> Tensor:
    """Product a @ b of matrices (M, K) and (K, N), outside autograd."""
    return mkldnn_linear(a, b.T, None) if _is_supported(a, b) else a @ b


def addmm_(total: Tensor, a: Tensor, b: Tensor) -> None:
    """Add the product a @ b to `total` (M, N) in place, outside autograd."""
    if _is_supported(a, b):
        total.add_(mkldnn_linear(a, b.T, None))
    else:
        total.addmm_(a, b)


def _is_supported(a: Tensor, b: Tensor) -> bool:
    if a.dtype != torch.float32 or a.device.type != "cpu" or is_transformed() or in_dispatch_mode():
        return False
    return a.numel() > 0 and b.numel() > 0 and _is_exact(a.dtype)


def apply_linear(layer: nn.Module, x: Tensor) -> Tensor:
    """Apply a linear layer: through oneDNN if it is plain or has a LoRA adapter, without hooks, else by calling it."""
    if is_plain_linear(layer):
        return linear(x, layer.weight, layer.bias)  # type: ignore[arg-type]
    if type(layer) is LoRALinear and not has_hooks(layer) and not has_global_hooks():
        return linear(x, layer.weight, layer.bias) + layer.update(x)
    return layer(x)  # type: ignore[no-any-return]


def is_plain_linear(layer: nn.Module) -> bool:
    """Whether a layer is exactly `nn.Linear`, without hooks: not an adapter, not quantized, not parametrized."""
    return type(layer) is nn.Linear and not has_hooks(layer) and not has_global_hooks()


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`torch.nn.functional.linear`: (..., K) with a weight (N, K) and a bias (N,) to (..., N)."""
    if not _linear_is_supported(x, weight):
        return F.linear(x, weight, bias)
    if torch.is_grad_enabled() and any(y is not None and y.requires_grad for y in (x, weight, bias)):
        if x.dtype != torch.float32:
            return F.linear(x, weight, bias)  # torch computes bfloat16 gradients with oneDNN already
        result: Tensor = _Linear.apply(x, weight, bias)
        return result
    return mkldnn_linear(x, weight, bias)


def _linear_is_supported(x: Tensor, weight: Tensor) -> bool:
    return (
        not is_transformed()
        and not in_dispatch_mode()
        and type(x) is Tensor
        and type(weight) in (Tensor, nn.Parameter)
        and x.device.type == "cpu"
        and x.dtype == weight.dtype
        and x.dtype in MAX_ERROR
        and x.numel() > 0
        and not torch.is_autocast_enabled("cpu")
        and _is_exact(x.dtype)
    )


class _Linear(torch.autograd.Function):
    """Linear layer in float32 whose gradients go through oneDNN too."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x if ctx.needs_input_grad[1] else None, weight)  # a frozen weight needs no input
        ctx.shape = x.shape
        return mkldnn_linear(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        grad_x = grad_weight = grad_bias = None
        plain = torch.is_grad_enabled() or is_intel()  # double backward needs autograd's own product
        product = torch.matmul if plain else matmul
        grad_rows = grad.reshape(-1, weight.shape[0])
        if ctx.needs_input_grad[0]:
            grad_x = product(grad_rows, weight).view(ctx.shape)
        if ctx.needs_input_grad[1]:
            rows = x.reshape(-1, weight.shape[1])
            if weight.numel() < LARGE_WEIGHT:
                grad_weight = grad_rows.T @ rows
            elif weight.shape[0] > weight.shape[1]:  # the product with fewer rows takes up to half the time
                grad_weight = product(rows.T, grad_rows).T
            else:
                grad_weight = product(grad_rows.T, rows)
        if ctx.needs_input_grad[2]:
            grad_bias = grad_rows.sum(dim=0)
        return grad_x, grad_weight, grad_bias


@functools.cache
def _is_exact(dtype: torch.dtype) -> bool:
    """Whether oneDNN's operator exists beside MKL and has the accuracy of its type, tried once per type."""
    if not torch.backends.mkl.is_available():  # type: ignore[no-untyped-call]
        return False
    a, b = torch.linspace(-1, 1, 2 * 64 * 64, dtype=torch.float32, device="cpu").view(2, 64, 64).to(dtype)
    expected = a.double() @ b.double().T + b[0].double()
    try:
        if dtype == torch.bfloat16 and not mkldnn_has_bfloat16():
            return False
        error = (mkldnn_linear(a, b, b[0]) - expected).abs().amax() / expected.abs().amax()
    except UNAVAILABLE:
        return False
    return bool(error < MAX_ERROR[dtype])
