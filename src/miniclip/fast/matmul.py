"""Products of matrices on a CPU, by the library that is fast at them.

PyTorch hands float32 products to MKL, which runs at half its speed or less on other makers' processors. oneDNN, in the
same wheel, does not: of a linear layer's product it makes 1.1 to 1.6 times the speed on a Zen 4 and more than twice on
a Zen 5, the bias added on the way. `torch.set_float32_matmul_precision("medium")` reaches it too, but for the whole
process and, where the processor has matrix units for it, in bf16. The operator that `torch.compile` uses for linear
layers keeps float32 and touches no setting. As it is PyTorch's own business, it is tried once for each type, and left
alone where it is missing or wrong.

`Linear` is torch's own layer with such products. Under autocast, in a translation (torch.compile, an export), inside
`torch.func` and on every other device it is torch's own in all.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

EXACT = {torch.float32: 1e-5, torch.bfloat16: 1e-2}  # greatest error of the trial; TF32 has 3e-4
LARGE = 1 << 20  # elements of a weight: the gradient of smaller ones, a product over many rows, is MKL's strength


def product(a: Tensor, b: Tensor) -> Tensor:
    """The product a @ b of matrices, outside autograd.

    Args:
        a: (M, K).
        b: (K, N) of the same type and device.
    """
    return _by_onednn(a, b.T, None) if _suits(a, b) else a @ b


def add_product_(total: Tensor, a: Tensor, b: Tensor) -> None:
    """Add a @ b, as in `product`, to a total (M, N) in place."""
    if _suits(a, b):
        total.add_(_by_onednn(a, b.T, None))
    else:
        total.addmm_(a, b)


def _suits(a: Tensor, b: Tensor) -> bool:
    if a.dtype != torch.float32 or a.device.type != "cpu":
        return False
    return a.numel() > 0 and b.numel() > 0 and _onednn_is_there(a.dtype)


class Linear(nn.Linear):
    """`torch.nn.Linear` in name, weights and value; in float32 and bfloat16 on a CPU faster."""

    def forward(self, x: Tensor) -> Tensor:
        """(…, K) to (…, N)."""
        return linear(x, self.weight, self.bias)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`torch.nn.functional.linear`: (…, K) by a weight (N, K) and a bias (N,) to (…, N)."""
    if not _fits(x, weight):
        return F.linear(x, weight, bias)
    if torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad):
        if x.dtype != torch.float32:
            return F.linear(x, weight, bias)  # its gradients are oneDNN's already
        result: Tensor = _Linear.apply(x, weight, bias)
        return result
    return _by_onednn(x, weight, bias)


def _fits(x: Tensor, weight: Tensor) -> bool:
    """Whether oneDNN's operator can take the place of torch's, and is there."""
    return (
        torch._C._get_tracing_state() is None  # first: what is traced must not be looked at
        and not torch.compiler.is_compiling()
        and not is_in_torch_dispatch_mode()
        and torch._C._functorch.peek_interpreter_stack() is None
        and type(x) is Tensor
        and type(weight) in (Tensor, nn.Parameter)
        and x.device.type == "cpu"
        and x.dtype == weight.dtype
        and x.dtype in EXACT
        and x.numel() > 0
        and not torch.is_autocast_enabled("cpu")
        and _onednn_is_there(x.dtype)
    )


class _Linear(torch.autograd.Function):
    """The layer in float32, and its gradients by the same library."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _by_onednn(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        by_x = by_weight = by_bias = None
        again = torch.is_grad_enabled()  # a gradient of this gradient is asked for: in what autograd knows
        times = torch.matmul if again else product
        if ctx.needs_input_grad[0]:
            by_x = times(gradient.reshape(-1, weight.shape[0]), weight).view(x.shape)
        if ctx.needs_input_grad[1]:
            rows, gradients = x.reshape(-1, weight.shape[1]), gradient.reshape(-1, weight.shape[0])
            if weight.numel() < LARGE:
                by_weight = gradients.T @ rows
            else:  # the shorter side along the rows: the other way it takes up to twice as long
                long = weight.shape[0] > weight.shape[1]
                by_weight = times(rows.T, gradients).T if long else times(gradients.T, rows)
        if ctx.needs_input_grad[2]:
            by_bias = gradient.reshape(-1, weight.shape[0]).sum(dim=0)
        return by_x, by_weight, by_bias


def _by_onednn(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The linear layer, followed by nothing."""
    result: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return result


@functools.cache
def _onednn_is_there(dtype: torch.dtype) -> bool:
    """Whether the operator exists beside MKL, and keeps the digits that its type has."""
    if not torch.backends.mkl.is_available():  # type: ignore[no-untyped-call]
        return False
    a, b = torch.linspace(-1, 1, 2 * 64 * 64, dtype=torch.float32, device="cpu").view(2, 64, 64).to(dtype)
    exact = a.double() @ b.double().T + b[0].double()
    try:
        if dtype == torch.bfloat16 and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
            return False
        error = (_by_onednn(a, b, b[0]) - exact).abs().amax() / exact.abs().amax()
    except (AttributeError, NotImplementedError, RuntimeError, TypeError):
        return False
    return bool(error < EXACT[dtype])
