"""The product of two matrices on a CPU in float32, by the library that is fast at it.

PyTorch hands float32 products to MKL, which runs at half its speed or less on other makers' processors. oneDNN, in the
same wheel, does not: a product of 1024 x 512 x 1024 is 1.1 times as fast on a Zen 4 and more than twice on a Zen 5.
`torch.set_float32_matmul_precision("medium")` reaches it too, but for the whole process and, where the processor has
matrix units for it, in bf16. The operator that `torch.compile` uses for linear layers keeps float32 and touches no
setting. As it is PyTorch's own business, it is tried once, and left alone where it is missing or wrong.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor


def product(a: Tensor, b: Tensor) -> Tensor:
    """The product a @ b of matrices, outside autograd.

    Args:
        a: (M, K).
        b: (K, N) of the same type and device.
    """
    if a.dtype == torch.float32 and a.device.type == "cpu" and _onednn_is_there():
        return _by_onednn(a, b)
    return a @ b


def _by_onednn(a: Tensor, b: Tensor) -> Tensor:
    """The linear layer with the weight b.T and no bias, followed by nothing."""
    result: Tensor = torch.ops.mkldnn._linear_pointwise(a, b.T, None, "none", [], "")
    return result


@functools.cache
def _onednn_is_there() -> bool:
    """Whether the operator exists beside MKL, and keeps the digits that float32 has and bf16 and TF32 lack."""
    if not torch.backends.mkl.is_available():  # type: ignore[no-untyped-call]
        return False
    a, b = torch.linspace(-1, 1, 2 * 64 * 64, dtype=torch.float32, device="cpu").view(2, 64, 64)
    exact = a.double() @ b.double()
    try:
        error = (_by_onednn(a, b) - exact).abs().amax() / exact.abs().amax()
    except (AttributeError, NotImplementedError, RuntimeError, TypeError):
        return False
    return bool(error < 1e-5)  # TF32: 3e-4
