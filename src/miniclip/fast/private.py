"""Private symbols of torch that the fast forms and the search use. No other file of the library names one.

tests/fast/test_private.py fails for each symbol that a new version of torch has removed or changed.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.modules import module as _module
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

# raised by an operator that this torch lacks, has with other arguments, or does not run on this processor
UNAVAILABLE = (AttributeError, NotImplementedError, RuntimeError, TypeError)


def is_transformed() -> bool:
    """Whether torch.jit.trace, torch.export, torch.compile, torch.func or forward-mode differentiation is active.

    Code under these must not branch on values, and autograd functions without a vmap rule fail in torch.func. oneDNN's
    operators and changes in place lose the tangents of forward mode.
    """
    return (
        torch.compiler.is_compiling()  # true under torch.export too
        or torch._C._get_tracing_state() is not None
        or torch._C._functorch.peek_interpreter_stack() is not None
        or forward_ad._current_level >= 0
    )


def in_dispatch_mode() -> bool:
    """Whether a dispatch mode is active, such as a FLOP counter, which only counts operators of torch."""
    return bool(is_in_torch_dispatch_mode())


def has_hooks(module: nn.Module) -> bool:
    """Whether a forward or backward hook is registered on the module itself, or its `forward` was replaced.

    Some adapters and offloading tools assign a function to `module.forward`.
    """
    return bool(
        module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    ) or "forward" in vars(module)


def has_global_hooks() -> bool:
    """Whether a hook is registered for all modules."""
    return bool(_module._has_any_global_hook())  # type: ignore[no-untyped-call]


def is_compiled(module: nn.Module) -> bool:
    """Whether `module.compile()` was called."""
    return module._compiled_call_impl is not None


def mkldnn_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Linear layer by oneDNN: (..., K), (N, K), (N,) to (..., N)."""
    bias = None if bias is None else bias.contiguous()  # the operator ignores its stride
    result: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return result


def mkldnn_has_bfloat16() -> bool:
    """Whether oneDNN multiplies bfloat16 matrices on this processor."""
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


@functools.cache
def has_amx() -> bool:
    """Whether the processor has matrix units (AMX), which torch's attention in bfloat16 uses."""
    supported = getattr(torch.cpu, "_is_amx_tile_supported", None)
    return supported is not None and bool(supported())


def int8_matmul(a: Tensor, b: Tensor) -> Tensor:
    """Product of int8 matrices: (N, K), (K, M) to (N, M) int32."""
    return torch._int_mm(a, b)


@functools.cache
def int8_matmul_is_exact(width: int) -> bool:
    """Whether the int8 product of this processor is exact: without VNNI, sums of two products can exceed 16 bits.

    Args:
        width: K, the number of products of a sum.
    """
    extreme = torch.tensor([127, -127, -128], dtype=torch.int8, device="cpu")
    a = extreme[:, None].expand(3, width).contiguous()
    product = int8_matmul(a, a.T.contiguous())
    return torch.equal(product.double(), extreme[:, None].double() * extreme.double() * width)


def onednn_int8_pack(weight: Tensor) -> Tensor:
    """Weight (N, K) of int8 in oneDNN's layout, for `onednn_int8_linear`."""
    result: Tensor = torch.ops.onednn.qlinear_prepack(weight, None)
    return result


def onednn_int8_linear(x: Tensor, zero_point: int, packed: Tensor, scale: Tensor, zeros: Tensor) -> Tensor:
    """Integers (x - zero_point) @ weight.T times a scale per output: (M, K) uint8 and (N,) to (M, N) float32.

    `zeros` are the zero points of the weights, (N,) of int64.

    The operator takes int8 activations too, but on x86 through a reference that is a thousand times as slow.
    """
    result: Tensor = torch.ops.onednn.qlinear_pointwise(
        x, 1.0, zero_point, packed, scale, zeros, None, 1.0, 0, torch.float32, "none", [], ""
    )
    return result


def onednn_int8_layer(
    x: Tensor,
    packed: Tensor,
    scale: Tensor,
    zeros: Tensor,
    bias: Tensor | None,
    activation: tuple[str, str] = ("none", ""),
    integers: tuple[float, int] | None = None,
    total: Tensor | None = None,
) -> Tensor:
    """Product x @ weight.T times a scale per output, plus a bias, with what oneDNN computes inside the product.

    Args:
        x: (M, K) of uint8, without a zero point.
        packed: weight in oneDNN's layout.
        scale: (N,).
        zeros: zero points of the weights, (N,) of int64.
        bias: (N,).
        activation: name and algorithm of an activation function.
        integers: scale and zero point of a result of uint8; None: it is float32.
        total: (M, N) to add the result to in place. Not together with the two above.

    Returns:
        (M, N).
    """
    inputs = (x, 1.0, 0, packed, scale, zeros)
    if total is not None:
        sums: Tensor = torch.ops.onednn.qlinear_pointwise.binary(
            *inputs, total, bias, 1.0, 0, torch.float32, 1.0, 0, "sum", 1.0, "none", [], ""
        )
        return sums
    dtype, (step, zero_point) = (torch.float32, (1.0, 0)) if integers is None else (torch.uint8, integers)
    name, algorithm = activation
    result: Tensor = torch.ops.onednn.qlinear_pointwise(*inputs, bias, step, zero_point, dtype, name, [], algorithm)
    return result
