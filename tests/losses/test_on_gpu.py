"""The GPU's form of the losses: the reference's value and gradients, here on the CPU and, if there is one, on a GPU."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from miniclip.losses import chunked, on_gpu, reference
from miniclip.losses.inputs import LossInputs
from tests.losses.test_chunked import assert_close, embeddings, kinds, results, scales, seeds, sizes, some_ids

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


class Form:
    """The module with the arguments of `reference`."""

    @staticmethod
    def contrastive_loss(images, texts, scale, ids=None, chunk_size=None):
        return on_gpu.Contrastive.apply(images, texts, ids, chunk_size, scale)

    @staticmethod
    def sigmoid_loss(images, texts, scale, bias, ids=None, chunk_size=None):
        return on_gpu.Sigmoid.apply(images, texts, ids, chunk_size, scale.float(), bias.float())


@pytest.mark.parametrize("sigmoid", [False, True], ids=["contrastive", "sigmoid"])
@settings(max_examples=25)
@given(kinds, sizes, st.integers(1, 45), scales, st.booleans(), seeds)
def test_equals_the_reference(sigmoid, kind, n, chunk, scale, with_ids, seed):
    pairs, ids = embeddings(kind, n, seed), some_ids(n, seed) if with_ids else None
    actual = results(Form, torch.float32, pairs, scale, ids, sigmoid, chunk_size=chunk)
    exact = results(reference, torch.float64, [side.float() for side in pairs], scale, ids, sigmoid)
    assert_close(actual, exact, 1e-5 * max(1.0, scale))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("sigmoid", [False, True], ids=["contrastive", "sigmoid"])
@pytest.mark.parametrize("scale", [1.0, 100.0])
def test_bfloat16_is_exact_in_value_and_rounded_in_gradient(device, sigmoid, scale):
    """The reference gets the same rounded embeddings, in float64; 2^-8 is the rounding of bfloat16."""
    x, noise = torch.randn(2, 200, 32, generator=torch.Generator().manual_seed(0), dtype=torch.float64).unbind()
    pairs = [side.to(device, torch.bfloat16) for side in (3e3 * x, 1e-3 * (x + noise))]
    numbers = [torch.tensor(value, device=device, requires_grad=True) for value in (scale, -10.0)[: 1 + sigmoid]]
    leaves = [side.requires_grad_() for side in pairs] + numbers
    function = Form.sigmoid_loss if sigmoid else Form.contrastive_loss
    loss = function(*leaves, chunk_size=64)
    loss.backward()
    value, *gradients = results(reference, torch.float64, [side.detach().cpu() for side in pairs], scale, None, False)
    if sigmoid:
        exact = [leaf.detach().cpu().double().requires_grad_() for leaf in leaves]
        value = reference.sigmoid_loss(*exact)
        value.backward()
        gradients = [3 * leaf.grad for leaf in exact]  # `results` scales its loss by 3
    assert float(loss.detach()) == pytest.approx(float(value), rel=2e-6, abs=1e-8 * scale)
    for leaf, gradient in zip(leaves, gradients, strict=True):
        error = (leaf.grad.double().cpu() * 3 - gradient).norm() / gradient.norm()
        assert error < 2**-7, error


@pytest.mark.parametrize("device", DEVICES)
def test_rows_of_zeros_and_of_extreme_length_are_those_of_the_reference(device):
    x, y = torch.randn(2, 6, 8, generator=torch.Generator().manual_seed(0)).unbind()
    x[1], x[2], x[3] = 0, x[2] * 1e-37, x[3] * 1e37
    pairs = x.to(device), y.to(device)
    losses = [
        form(*pairs, torch.tensor(10.0, device=device), chunk_size=4)
        for form in (Form.contrastive_loss, lambda *args, chunk_size: reference.contrastive_loss(*args))
    ]
    torch.testing.assert_close(*losses)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_loss_near_zero_is_accurate(dtype):
    x = torch.randn(40, 99, generator=torch.Generator().manual_seed(0)).to(dtype)
    assert Form.contrastive_loss(x, x, torch.tensor(100.0), chunk_size=16) == 0


def test_only_what_needs_a_gradient_gets_one():
    x, y = torch.randn(2, 5, 4).unbind()
    scale = torch.tensor(3.0, requires_grad=True)
    on_gpu.Contrastive.apply(x, y, None, 2, scale).backward()
    expected = torch.tensor(3.0, requires_grad=True)
    reference.contrastive_loss(x, y, expected).backward()
    torch.testing.assert_close(scale.grad, expected.grad)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bias", [None, -10.0])
def test_large_batches_on_a_gpu_are_compiled_and_equal(dtype, bias):
    """Ragged blocks, through the function that training calls; against the chunked form on the CPU."""
    n = on_gpu.COMPILED_FROM + 100
    pairs = torch.randn(2, n, 64, generator=torch.Generator().manual_seed(0)).to(dtype)
    gradients = []
    for device in ("cpu", "cuda"):
        x, y = (side.to(device).float() if device == "cpu" else side.to(device) for side in pairs.unbind())
        x.requires_grad_()
        y.requires_grad_()
        loss = chunked.loss(LossInputs(x, y, 20.0, bias))
        loss.backward()
        gradients.append([loss.detach().cpu().double(), x.grad.cpu().double(), y.grad.cpu().double()])
    for actual, expected in zip(gradients[1], gradients[0], strict=True):
        assert (actual - expected).norm() / expected.norm() < (2**-7 if dtype == torch.bfloat16 else 1e-4)
