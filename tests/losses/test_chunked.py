"""The flat losses: the reference's value and gradient for any chunks, and memory that does not grow with the square."""

import subprocess
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from miniclip import losses
from miniclip.losses import chunked, reference

seeds = st.integers(0, 2**32 - 1)


def results(module, dtype, n, seed, scale, with_ids, sigmoid, **options):
    """Loss and the gradients of embeddings, scale and bias, for embeddings that depend on the seed alone."""
    generator = torch.Generator().manual_seed(seed)
    x, y = torch.randn(2, n, 5, generator=generator, dtype=torch.float64).to(dtype).unbind()
    numbers = [x, y, torch.tensor(scale, dtype=dtype)] + ([torch.tensor(-2.0, dtype=dtype)] if sigmoid else [])
    numbers = [number.clone().requires_grad_() for number in numbers]
    ids = torch.randint(0, max(1, n // 2), (n,), generator=generator) if with_ids else None
    function = module.sigmoid_loss if sigmoid else module.contrastive_loss
    loss = function(*numbers, ids=ids, **options)
    (3.0 * loss).backward()  # not 1: the factor of what comes after must reach the gradient
    return [loss.detach(), *(number.grad for number in numbers)]


@given(st.integers(1, 40), st.integers(1, 45), st.floats(0, 100), st.booleans(), st.booleans(), seeds)
def test_equals_the_reference_in_float64(n, chunk, scale, with_ids, sigmoid, seed):
    arguments = (torch.float64, n, seed, scale, with_ids, sigmoid)
    plain, flat = results(reference, *arguments), results(chunked, *arguments, chunk_size=chunk)
    for a, b in zip(plain, flat, strict=True):
        torch.testing.assert_close(b, a, rtol=1e-10, atol=1e-10)


@given(st.integers(2, 40), st.integers(1, 45), st.floats(1, 100), st.booleans(), st.booleans(), seeds)
def test_equals_the_reference_in_float32(n, chunk, scale, with_ids, sigmoid, seed):
    arguments = (n, seed, scale, with_ids, sigmoid)
    exact = results(reference, torch.float64, *arguments)
    flat = results(chunked, torch.float32, *arguments, chunk_size=chunk)
    for a, b in zip(exact, flat, strict=True):
        size = max(1.0, float(a.abs().max())) * max(1.0, scale / 10)
        torch.testing.assert_close(b.double(), a, rtol=1e-5, atol=1e-5 * size)


@pytest.mark.parametrize("sigmoid", [False, True])
def test_gradients_against_finite_differences(sigmoid):
    x, y = torch.randn(2, 7, 3, dtype=torch.float64).unbind()
    numbers = [x, y, torch.tensor(4.0, dtype=torch.float64)] + ([torch.tensor(-1.0, dtype=torch.float64)] * sigmoid)
    function = chunked.sigmoid_loss if sigmoid else chunked.contrastive_loss
    ids = torch.tensor([0, 1, 1, 2, 3, 0, 0])
    assert torch.autograd.gradcheck(
        lambda *numbers: function(*numbers, ids=ids, chunk_size=3), [n.clone().requires_grad_() for n in numbers]
    )


@pytest.mark.parametrize("scale", [0.0, 1e-6, 100.0, 1e4])
@pytest.mark.parametrize("sigmoid", [False, True])
def test_extreme_scales(scale, sigmoid):
    arguments = (torch.float64, 9, 0, scale, True, sigmoid)
    for a, b in zip(results(reference, *arguments), results(chunked, *arguments, chunk_size=2), strict=True):
        assert b.isfinite().all()
        torch.testing.assert_close(b, a, rtol=1e-10, atol=1e-9)


def test_a_column_whose_first_blocks_are_masked_keeps_its_small_values():
    """Similarities near -1 at scale 100: an offset that stays at 0 after masked blocks would underflow to log 0."""
    x = torch.tensor([[1.0, 0.0]] * 4 + [[-1.0, 0.0]])
    ids = torch.tensor([0, 0, 0, 1, 0])
    for scale in (100.0, 300.0):
        plain = reference.contrastive_loss(-x, x, scale, ids)
        assert chunked.contrastive_loss(-x, x, scale, ids, chunk_size=1) == pytest.approx(plain.item(), rel=1e-5)


@pytest.mark.parametrize("name", ["contrastive_loss", "sigmoid_loss"])
def test_autocast_and_compile_change_nothing(name):
    x, y = torch.randn(2, 33, 8).unbind()
    rest = (20.0,) if name == "contrastive_loss" else (20.0, -5.0)
    function = getattr(chunked, name)
    plain = function(x, y, *rest, chunk_size=10)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(function(x, y, *rest, chunk_size=10), plain)
    half = x.bfloat16().requires_grad_()
    loss = function(half, y.bfloat16(), *rest, chunk_size=10)
    loss.backward()
    assert loss.dtype == torch.float32
    assert half.grad.dtype == torch.bfloat16
    compiled = torch.compile(lambda x, y: 2 * function(x, y, *rest, chunk_size=10), backend="eager")
    a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
    compiled(a, y).backward()
    (2 * function(b, y, *rest, chunk_size=10)).backward()
    assert torch.equal(a.grad, b.grad)


def test_the_public_form_chooses(monkeypatch):
    monkeypatch.setattr(losses, "CHUNKED_FROM", 10)
    called = []
    for name in ("contrastive_loss", "sigmoid_loss"):
        for module in (reference, chunked):
            monkeypatch.setattr(module, name, lambda *a, key=(module, name): called.append(key) or torch.zeros(()))
        rest = (1.0,) if name == "contrastive_loss" else (1.0, 0.0)
        for n, chunk_size in ((9, None), (10, None), (9, 4)):
            getattr(losses, name)(torch.ones(n, 2), torch.ones(n, 2), *rest, chunk_size=chunk_size)
        assert called == [(reference, name), (chunked, name), (chunked, name)]
        called.clear()


def test_arguments_that_do_not_fit():
    with pytest.raises(ValueError, match="chunk_size is 0"):
        chunked.contrastive_loss(torch.ones(3, 2), torch.ones(3, 2), 1.0, chunk_size=0)
    with pytest.raises(ValueError, match="same shape"):
        chunked.sigmoid_loss(torch.ones(3, 2), torch.ones(4, 2), 1.0, 0.0)
    with pytest.raises(ValueError, match="ids"):
        chunked.contrastive_loss(torch.ones(3, 2), torch.ones(3, 2), 1.0, ids=torch.zeros(2))


# The kernel's peak is of the process and, through fork, of pytest's: it is set back before the step.
MEMORY = """
import pathlib, torch
from miniclip.losses import {module} as module
x, y = torch.randn(2, {n}, 64).unbind()
x.requires_grad_(); y.requires_grad_()
module.contrastive_loss(x[:100], y[:100], torch.tensor(10.0)).backward()
status = pathlib.Path("/proc/self/status")
kilobytes = lambda key: next(int(row.split()[1]) for row in status.read_text().splitlines() if row.startswith(key))
pathlib.Path("/proc/self/clear_refs").write_text("5")
before = kilobytes("VmRSS")
module.{name}(x, y, *{rest}).backward()
print(kilobytes("VmHWM") - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="Linux alone tells a process its peak")
@pytest.mark.parametrize(("name", "rest"), [("contrastive_loss", (10.0,)), ("sigmoid_loss", (10.0, -10.0))])
def test_memory_is_far_below_the_matrix(name, rest):
    """The peak over the inputs, in a process of its own: one N x N matrix would take 256 MiB."""
    peak = {}
    for module in ("chunked", "reference"):
        script = MEMORY.format(module=module, n=8192, name=name, rest=rest)
        run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
        peak[module] = int(run.stdout) / 1024
    assert peak["chunked"] < 64
    assert peak["reference"] > 512  # the measure sees what it should
