"""Matrix products through oneDNN: as accurate as float32, in value and gradient, without changing a setting."""

from unittest import mock

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.autograd import forward_ad

from miniclip.fast import matmul as products
from miniclip.fast.matmul import addmm_, apply_linear, linear, matmul
from miniclip.losses import contrastive_loss

sides = st.integers(1, 70)


@pytest.fixture
def fresh_trial():
    """Clear the cached result of the accuracy trial, before and after."""
    products._is_exact.cache_clear()
    yield
    products._is_exact.cache_clear()


@given(sides, sides, sides, st.booleans(), st.booleans(), st.sampled_from([torch.float32, torch.float64]))
def test_equals_the_product_in_float64(m, k, n, transposed_a, transposed_b, dtype):
    a = torch.randn((k, m) if transposed_a else (m, k), dtype=dtype)
    b = torch.randn((n, k) if transposed_b else (k, n), dtype=dtype)
    a, b = (a.T if transposed_a else a), (b.T if transposed_b else b)
    exact = a.double() @ b.double()
    result = matmul(a, b)
    assert result.dtype == dtype
    size = float((a.double().abs() @ b.double().abs()).max())
    atol = 2e-6 * size if dtype == torch.float32 else 1e-14 * size
    torch.testing.assert_close(result.double(), exact, rtol=0, atol=atol)
    total = torch.ones(m, 2 * n, dtype=dtype)
    addmm_(total[:, n:], a, b)  # a view of columns
    torch.testing.assert_close(total[:, n:].double(), exact + 1, rtol=1e-6 if dtype == torch.float32 else 0, atol=atol)
    assert torch.equal(total[:, :n], torch.ones(m, n, dtype=dtype))


@pytest.mark.parametrize(("m", "k", "n"), [(0, 3, 2), (3, 0, 2), (3, 2, 0)])
def test_empty_matrices(m, k, n):
    a, b, total = torch.ones(m, k), torch.ones(k, n), torch.ones(m, n)
    assert torch.equal(matmul(a, b), a @ b)
    addmm_(total, a, b)
    assert torch.equal(total, torch.ones(m, n))


def test_reduced_precision_is_refused(fresh_trial, monkeypatch):
    monkeypatch.setattr(products, "mkldnn_linear", lambda a, b, _: (a.bfloat16() @ b.bfloat16().T).float())
    assert not products._is_exact(torch.float32)
    a = torch.randn(5, 5)
    assert torch.equal(matmul(a, a), a @ a)


@pytest.mark.parametrize("error", [AttributeError, NotImplementedError, RuntimeError, TypeError])
def test_an_operator_that_is_missing_or_has_changed_is_left_alone(error, fresh_trial, monkeypatch):
    def missing(a, b, bias):
        raise error("no such operator")

    monkeypatch.setattr(products, "mkldnn_linear", missing)
    a = torch.randn(5, 5)
    assert torch.equal(matmul(a, a), a @ a)


def test_the_trial_ignores_defaults_and_autocast(fresh_trial):
    expected = products._is_exact(torch.float32)
    products._is_exact.cache_clear()
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with torch.device("meta"), torch.autocast("cpu", torch.bfloat16), torch.inference_mode():
            assert products._is_exact(torch.float32) == expected
    finally:
        torch.set_default_dtype(before)


def test_settings_stay(fresh_trial):
    def settings():
        matmul = getattr(torch.backends.mkldnn, "matmul", None)
        return torch.get_float32_matmul_precision(), getattr(matmul, "fp32_precision", None), torch.get_num_threads()

    before = settings()
    x = torch.randn(9, 4, requires_grad=True)
    contrastive_loss(x, x, 10.0, chunk_size=4).backward()
    assert settings() == before


class Applied(nn.Module):
    """Module that applies a linear layer through `apply_linear`."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return apply_linear(self.layer, x)


class TestLinear:
    """`nn.Linear` is the specification."""

    @given(st.integers(1, 3), sides, sides, sides, st.booleans(), st.booleans(), st.booleans(), st.booleans())
    def test_value_and_gradients(self, b, m, k, n, biased, large, transposed, intel):
        x = torch.randn(b, k, m).mT if transposed else torch.randn(b, m, k)
        weight, bias = torch.randn(n, k), torch.randn(n) if biased else None
        out = torch.randn(b, m, n)
        results = []
        for function, dtype in ((nn.functional.linear, torch.float64), (linear, torch.float32)):
            leaves = [t.to(dtype).requires_grad_() for t in (x, weight, *([bias] if biased else []))]
            with mock.patch.multiple(products, LARGE_WEIGHT=1 if large else 1 << 20, is_intel=lambda: intel):
                y = function(*leaves, *([] if biased else [None]))
                y.backward(out.to(dtype))
            results.append([y.detach(), *(leaf.grad for leaf in leaves)])
        for exact, result in zip(*results, strict=True):
            assert result.dtype == torch.float32
            torch.testing.assert_close(result.double(), exact, rtol=1e-5, atol=1e-5 * float(exact.abs().max()) + 1e-6)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64, torch.float16])
    def test_without_gradient(self, dtype):
        layer, x = nn.Linear(24, 40).to(dtype), torch.randn(5, 24).to(dtype)
        expected = nn.functional.linear(x.double(), layer.weight.double(), layer.bias.double())
        with torch.no_grad():
            y = apply_linear(layer, x)
        assert y.dtype == dtype
        torch.testing.assert_close(y.double(), expected, rtol=0, atol=2e-2 if dtype.itemsize == 2 else 1e-5)

    def test_some_leaves_need_no_gradient(self):
        x, layer = torch.randn(3, 4), nn.Linear(4, 5)
        layer.bias.requires_grad_(False)
        apply_linear(layer, x).sum().backward()
        assert x.grad is None
        assert layer.bias.grad is None
        torch.testing.assert_close(layer.weight.grad, x.sum(dim=0).expand(5, 4))
        layer.requires_grad_(False)
        apply_linear(layer, x.requires_grad_()).sum().backward()
        torch.testing.assert_close(x.grad, layer.weight.sum(dim=0).expand(3, 4))

    def test_only_the_bias_needs_a_gradient(self):
        layer = nn.Linear(4, 5)
        layer.weight.requires_grad_(False)
        apply_linear(layer, torch.randn(3, 4)).sum().backward()
        torch.testing.assert_close(layer.bias.grad, torch.full((5,), 3.0))

    def test_a_bias_of_any_stride(self):
        layer, x = nn.Linear(4, 5), torch.randn(3, 4)
        layer.bias = nn.Parameter(torch.randn(5, 2)[:, 0])
        torch.testing.assert_close(apply_linear(layer, x), layer(x))

    def test_the_gradient_has_a_gradient(self):
        layer, x = nn.Linear(4, 5), torch.randn(3, 4, requires_grad=True)
        (first,) = torch.autograd.grad(apply_linear(layer, x).pow(2).sum(), x, create_graph=True)
        (second,) = torch.autograd.grad(first.sum(), x)
        torch.testing.assert_close(second, (2 * layer.weight.T @ layer.weight).sum(dim=0).expand(3, 4).detach())

    def test_steps_aside_for_transforms(self):
        linear_layer, x = nn.Linear(4, 5).requires_grad_(False), torch.randn(3, 4)
        layer = Applied(linear_layer)
        expected = nn.functional.linear(x, linear_layer.weight, linear_layer.bias)
        jacobian = torch.func.jacrev(layer)(x[0])
        torch.testing.assert_close(jacobian, linear_layer.weight.detach())
        torch.testing.assert_close(torch.func.vmap(layer)(x), expected)
        torch.testing.assert_close(torch.func.jvp(layer, (x,), (x,))[1], expected - linear_layer.bias)
        with forward_ad.dual_level():
            tangent = forward_ad.unpack_dual(layer(forward_ad.make_dual(x, x))).tangent
        torch.testing.assert_close(tangent, expected - linear_layer.bias)
        torch.testing.assert_close(torch.compile(layer, backend="eager", fullgraph=True)(x), expected)
        graph = torch.export.export(layer, (x,)).graph_module.code
        assert "mkldnn" not in graph
        assert "mkldnn" not in str(torch.jit.trace(layer, x).inlined_graph)
        with torch.autocast("cpu", torch.bfloat16):
            assert layer(x).dtype == torch.bfloat16
        assert layer(torch.empty(0, 4)).shape == (0, 5)
        assert layer.to("meta")(x.to("meta")).shape == (3, 5)

    def test_operations_are_counted(self):
        from torch.utils.flop_counter import FlopCounterMode

        layer = nn.Linear(4, 5)
        with FlopCounterMode(display=False) as counter:
            apply_linear(layer, torch.randn(3, 4))
        assert counter.get_total_flops() == 2 * 3 * 4 * 5
