"""Products in float32: the digits of float32 whatever library makes them, and no setting touched."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from miniclip.losses import products
from miniclip.losses.chunked import contrastive_loss
from miniclip.losses.products import product

sides = st.integers(1, 70)


@pytest.fixture
def asked_anew():
    """The answer of the trial forgotten, before and after."""
    products._onednn_is_there.cache_clear()
    yield
    products._onednn_is_there.cache_clear()


@given(sides, sides, sides, st.booleans(), st.booleans(), st.sampled_from([torch.float32, torch.float64]))
def test_equals_the_product_in_float64(m, k, n, turned_a, turned_b, dtype):
    a = torch.randn((k, m) if turned_a else (m, k), dtype=dtype)
    b = torch.randn((n, k) if turned_b else (k, n), dtype=dtype)
    a, b = (a.T if turned_a else a), (b.T if turned_b else b)
    exact = a.double() @ b.double()
    found = product(a, b)
    assert found.dtype == dtype
    size = float((a.double().abs() @ b.double().abs()).max())
    torch.testing.assert_close(
        found.double(), exact, rtol=0, atol=2e-6 * size if dtype == torch.float32 else 1e-14 * size
    )


def test_bf16_products_are_noticed_and_not_taken(asked_anew, monkeypatch):
    monkeypatch.setattr(products, "_by_onednn", lambda a, b: (a.bfloat16() @ b.bfloat16()).float())
    assert not products._onednn_is_there()
    a = torch.randn(5, 5)
    assert torch.equal(product(a, a), a @ a)


@pytest.mark.parametrize("error", [AttributeError, NotImplementedError, RuntimeError, TypeError])
def test_an_operator_that_is_missing_or_has_changed_is_left_alone(error, asked_anew, monkeypatch):
    def missing(a, b):
        raise error("no such operator")

    monkeypatch.setattr(products, "_by_onednn", missing)
    a = torch.randn(5, 5)
    assert torch.equal(product(a, a), a @ a)


def test_asked_once_in_any_surroundings(asked_anew):
    """The trial is of float32 on a CPU, whatever the defaults are, and in autocast."""
    expected = products._onednn_is_there()
    products._onednn_is_there.cache_clear()
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with torch.device("meta"), torch.autocast("cpu", torch.bfloat16), torch.inference_mode():
            assert products._onednn_is_there() == expected
    finally:
        torch.set_default_dtype(before)


def test_no_setting_is_touched(asked_anew):
    def settings():
        matmul = getattr(torch.backends.mkldnn, "matmul", None)
        return torch.get_float32_matmul_precision(), getattr(matmul, "fp32_precision", None), torch.get_num_threads()

    before = settings()
    x = torch.randn(9, 4, requires_grad=True)
    contrastive_loss(x, x, 10.0).backward()
    assert settings() == before
