"""Each private symbol of torch still exists and means what the fast forms take it for."""

import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd import forward_ad
from torch.utils.flop_counter import FlopCounterMode

from miniclip.fast import calibrated, private
from miniclip.fast.int8 import is_supported


def test_transforms_are_noticed():
    active = []

    class Probe(nn.Module):
        def forward(self, x):
            active.append(private.is_transformed())
            return x * 2

    probe, x = Probe(), torch.ones(3)
    probe(x)
    assert active == [False]
    for transform in (torch.func.vmap(probe), torch.func.grad(lambda x: probe(x).sum())):
        active.clear()
        transform(x)
        assert active == [True]
    active.clear()
    with forward_ad.dual_level():
        probe(x)
    assert active == [True]
    active.clear()
    torch.jit.trace(probe, x, check_trace=False)
    assert True in active

    def compiled(x):
        return x + 1 if private.is_transformed() else x

    assert torch.equal(torch.compile(compiled, backend="eager")(x), x + 1)


def test_dispatch_modes_are_noticed():
    assert not private.in_dispatch_mode()
    with FlopCounterMode(display=False):
        assert private.in_dispatch_mode()


def test_hooks_are_noticed():
    registrations = (
        lambda module: module.register_forward_hook(lambda *_: None),
        lambda module: module.register_forward_pre_hook(lambda *_: None),
        lambda module: module.register_full_backward_hook(lambda *_: None),
        lambda module: module.register_full_backward_pre_hook(lambda *_: None),
    )
    module = nn.Linear(1, 1)
    for register in registrations:
        assert not private.has_hooks(module)
        handle = register(module)
        assert private.has_hooks(module)
        handle.remove()
    module.forward = module.forward
    assert private.has_hooks(module)
    assert not private.has_global_hooks()
    handle = nn.modules.module.register_module_forward_hook(lambda *_: None)
    assert private.has_global_hooks()
    handle.remove()


def test_compiled_modules_are_noticed():
    module = nn.Linear(1, 1)
    assert not private.is_compiled(module)
    module.compile(backend="eager")
    assert private.is_compiled(module)


def test_onednn_linear_equals_torchs():
    x, weight, bias = torch.randn(3, 4), torch.randn(5, 4), torch.randn(5)
    if torch.backends.mkldnn.is_available():
        expected = nn.functional.linear(x, weight, bias)
        torch.testing.assert_close(private.mkldnn_linear(x, weight, bias), expected, rtol=1e-5, atol=1e-5)
        assert isinstance(private.mkldnn_has_bfloat16(), bool)


def test_int8_product_equals_that_of_integers():
    a = torch.randint(-128, 128, (5, 64), dtype=torch.int8)
    b = torch.randint(-128, 128, (64, 2), dtype=torch.int8)
    if private.int8_matmul_is_exact(64):
        assert torch.equal(private.int8_matmul(a, b), a.int() @ b.int())
        assert private.int8_matmul(a, b).dtype == torch.int32


def test_onednn_int8_linear_equals_integers():
    if not is_supported():
        return
    x, weight = torch.randint(0, 256, (3, 8), dtype=torch.uint8), torch.randint(-60, 61, (5, 8), dtype=torch.int8)
    scale = torch.rand(5)
    expected = (x.int() - 128) @ weight.int().T * scale
    result = private.onednn_int8_linear(
        x, 128, private.onednn_int8_pack(weight), scale, torch.zeros(len(scale), dtype=torch.int64)
    )
    torch.testing.assert_close(result, expected.float(), rtol=1e-5, atol=1e-5)


def test_onednn_int8_layer_equals_its_parts():
    if not calibrated.is_supported():
        return
    x, weight = torch.randint(0, 256, (3, 8), dtype=torch.uint8), torch.randint(-60, 61, (5, 8), dtype=torch.int8)
    scale, bias, total = torch.rand(5) * 1e-3, torch.randn(5), torch.randn(3, 5)
    inputs = (x, private.onednn_int8_pack(weight), scale, torch.zeros(5, dtype=torch.int64), bias)
    expected = (x.int() @ weight.int().T) * scale + bias
    torch.testing.assert_close(private.onednn_int8_layer(*inputs), expected)
    torch.testing.assert_close(private.onednn_int8_layer(*inputs, total=total.clone()), expected + total)
    functions = {"none": F.gelu, "tanh": lambda y: F.gelu(y, approximate="tanh"), "quickgelu": F.silu}
    for name, function in functions.items():
        integers = private.onednn_int8_layer(*inputs, activation=calibrated.POST_OPS[name][:2], integers=(0.1, 7))
        assert integers.dtype == torch.uint8
        values = (function(expected) / 0.1 + 7).clamp(0, 255)
        torch.testing.assert_close(integers.float(), values, atol=0.501, rtol=0)


def test_int8_products_are_supported_together():
    assert calibrated.is_supported() == is_supported()


def test_matrix_units():
    assert private.has_amx() == torch.cpu._is_amx_tile_supported()
