"""The chunked losses: the reference's value and gradients for any block size, with less memory."""

import math
import os
import re
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from miniclip import losses
from miniclip.losses import blocks, chunked, reference
from miniclip.losses.reference import l2_normalize

seeds = st.integers(0, 2**32 - 1)
sizes = st.integers(1, 40)
chunks = st.integers(1, 45)
scales = st.one_of(st.floats(0, 30), st.floats(30, 120), st.floats(120, 1500))
kinds = st.sampled_from(["any", "aligned", "opposed", "equal", "one far row"])


def embeddings(kind, n, seed, width=5):
    """Pairs in float64, of any length; some kinds drive the row and column sums to the limits of their type."""
    generator = torch.Generator().manual_seed(seed)
    x, y, noise = torch.randn(3, n, width, generator=generator, dtype=torch.float64).unbind()
    if kind == "equal":
        return x[:1].expand(n, -1), y[:1].expand(n, -1)
    if kind in ("aligned", "opposed"):
        y = (x + 0.1 * noise) * (1 if kind == "aligned" else -1)
    if kind == "one far row":  # far from every column, or a column that is far from every row
        x, y = x[:1] + 0.1 * noise, x[:1] + 0.1 * y
        (x if seed % 2 else y)[n // 2].neg_()
    return x, y


def results(module, dtype, pairs, scale, ids=None, sigmoid=False, **options):
    """Loss, and gradients of embeddings, scale and bias, converted to float64."""
    numbers = [*pairs, torch.tensor(scale), torch.tensor(-2.0)] if sigmoid else [*pairs, torch.tensor(scale)]
    numbers = [number.detach().to(dtype).clone().requires_grad_() for number in numbers]
    function = module.sigmoid_loss if sigmoid else module.contrastive_loss
    loss = function(*numbers, ids=ids, **options)
    (3.0 * loss).backward()  # not 1: the incoming gradient must be applied
    assert all(number.grad.dtype == dtype for number in numbers)
    return [result.double() for result in (loss.detach(), *(number.grad for number in numbers))]


def some_ids(n, seed):
    return torch.randint(0, max(1, n // 2), (n,), generator=torch.Generator().manual_seed(seed))


def assert_close(actual, expected, tolerance):
    """Close relative to the largest magnitude of each tensor."""
    for a, b in zip(actual, expected, strict=True):
        assert a.isfinite().all()
        torch.testing.assert_close(a, b, rtol=0, atol=tolerance * max(1.0, float(b.abs().max())))


@pytest.fixture(params=["fixed offset", "running max"])
def summation(request, monkeypatch):
    """Both ways to sum exponentials: GPUs use the running maximum, and so do CPUs for large similarities."""
    if request.param == "running max":
        monkeypatch.setattr(chunked, "sums_with_fixed_offset", lambda *matrix: None)
    return request.param


@pytest.mark.parametrize("sigmoid", [False, True], ids=["contrastive", "sigmoid"])
@given(kinds, sizes, chunks, scales, st.booleans(), seeds)
def test_equals_the_reference_in_float64(sigmoid, kind, n, chunk, scale, with_ids, seed):
    ids = some_ids(n, seed) if with_ids else None
    arguments = (torch.float64, embeddings(kind, n, seed), scale, ids, sigmoid)
    assert_close(results(losses, *arguments, chunk_size=chunk), results(reference, *arguments), 1e-10)


@pytest.mark.parametrize("sigmoid", [False, True], ids=["contrastive", "sigmoid"])
@given(kinds, sizes, chunks, scales, st.booleans(), seeds)
def test_equals_the_reference_in_float32(sigmoid, kind, n, chunk, scale, with_ids, seed):
    """Against float64; in float32 a similarity itself is off by the scale times 1e-7."""
    ids = some_ids(n, seed) if with_ids else None
    pairs = [side.float() for side in embeddings(kind, n, seed)]
    arguments = (pairs, scale, ids, sigmoid)
    actual = results(losses, torch.float32, *arguments, chunk_size=chunk)
    assert_close(actual, results(reference, torch.float64, *arguments), 1e-5 * max(1.0, scale / 20))


@given(kinds, sizes, chunks, scales, st.booleans(), seeds)
def test_running_max_equals_the_reference(kind, n, chunk, scale, with_ids, seed):
    ids = some_ids(n, seed) if with_ids else None
    pairs = embeddings(kind, n, seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chunked, "sums_with_fixed_offset", lambda *matrix: None)
        actual = results(losses, torch.float64, pairs, scale, ids, chunk_size=chunk)
    assert_close(actual, results(reference, torch.float64, pairs, scale, ids), 1e-10)


@pytest.mark.parametrize(
    ("kind", "scale", "in_range"),
    [
        *[
            ("any", 60, True),
            ("any", 100, True),
            ("aligned", 100, True),
            ("equal", 59, True),
            ("one far row", 59, True),
        ],
        *[("one far row", 100, False), ("opposed", 1000, False), ("any", math.inf, False), ("any", math.nan, False)],
    ],
)
def test_fixed_offset_is_used_while_the_sums_stay_in_range(kind, scale, in_range):
    x, y = (side.float() for side in embeddings(kind, 50, 0))
    diagonal = torch.empty(50)

    def keep(block):
        if block.rows == block.columns:
            diagonal[block.rows] = block.positives

    result = chunked.sums_with_fixed_offset(x, y, None, 16, torch.tensor(float(scale)) / math.log(2), keep)
    assert (result is not None) == in_range
    if in_range:
        offset, sums = result
        s = scale * (l2_normalize(x).double() @ l2_normalize(y).double().T)
        log_sums = torch.cat([s.logsumexp(dim=1), s.logsumexp(dim=0)])
        torch.testing.assert_close((sums.double().log2() + offset) * math.log(2), log_sums, rtol=0, atol=2e-5)
        torch.testing.assert_close(diagonal.double() * math.log(2), s.diagonal(), rtol=0, atol=2e-5)


def test_large_and_small_sums_in_one_matrix():
    """At scale 59 the sums range from 2^-85 to 2^85, and no offset is needed."""
    x = torch.tensor([[1.0, 0.0], [-1.0, 0.0]]).repeat_interleave(10, 0)
    y = torch.tensor([[1.0, 0.0]]).repeat(20, 1)
    ids = torch.arange(20)
    arguments = ([x, y], 59.0, ids)
    offset, sums = chunked.sums_with_fixed_offset(x, y, ids, 7, torch.tensor(59 / math.log(2)), lambda block: None)
    assert float(offset) == 0
    assert float(sums.min()) < 2.0**-80
    assert float(sums.max()) > 2.0**85
    actual = results(losses, torch.float32, *arguments, chunk_size=1024)
    assert_close(actual, results(reference, torch.float64, *arguments), 3e-5)


def test_a_column_with_masked_first_blocks_keeps_its_small_values(summation):
    """Similarities near -1 at scale 100: an offset that stays at 0 after masked blocks would underflow."""
    x = torch.tensor([[1.0, 0.0]] * 4 + [[-1.0, 0.0]])
    ids = torch.tensor([0, 0, 0, 1, 0])
    for scale in (100.0, 300.0):
        expected = reference.contrastive_loss(-x, x, scale, ids)
        assert losses.contrastive_loss(-x, x, scale, ids, chunk_size=1) == pytest.approx(expected.item(), rel=1e-5)


def test_a_loss_near_zero_is_accurate(summation):
    """Row sum and positive nearly cancel, so the positive must be exactly the similarity that is in the sum."""
    x, y = (side.float() for side in embeddings("aligned", 64, 0, width=32))
    exact = reference.contrastive_loss(x.double(), y.double(), 100.0)
    assert float(exact) < 1e-6
    assert float(losses.contrastive_loss(x, y, 100.0, chunk_size=10)) == pytest.approx(float(exact), abs=2e-7)


@pytest.mark.parametrize("sigmoid", [False, True])
def test_gradients_against_finite_differences(sigmoid, summation):
    x, y = torch.randn(2, 7, 3, dtype=torch.float64).unbind()
    numbers = [x, y, torch.tensor(4.0, dtype=torch.float64)] + ([torch.tensor(-1.0, dtype=torch.float64)] * sigmoid)
    function = losses.sigmoid_loss if sigmoid else losses.contrastive_loss
    ids = torch.tensor([0, 1, 1, 2, 3, 0, 0])
    assert torch.autograd.gradcheck(
        lambda *numbers: function(*numbers, ids=ids, chunk_size=3), [n.clone().requires_grad_() for n in numbers]
    )


def test_rows_of_zeros_and_rows_of_any_length():
    x, y = embeddings("any", 9, 0)
    x[2], y[5], x[7], y[7] = 0, 0, 0, 0
    x[3], y[3], y[4] = x[3] * 1e30, y[3] * 1e-30, y[4] * 1e-12
    for sigmoid in (False, True):
        arguments = (torch.float64, (x, y), 20.0, None, sigmoid)
        for a, b in zip(results(losses, *arguments, chunk_size=4), results(reference, *arguments), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-25)
    actual = results(losses, torch.float32, (x, y), 20.0, chunk_size=4)
    assert all(result.isfinite().all() for result in actual)


@pytest.mark.parametrize("needed", [(1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0), (0, 0, 0, 1), (0, 1, 1, 0), (1, 0, 1, 1)])
@pytest.mark.parametrize("sigmoid", [False, True], ids=["contrastive", "sigmoid"])
def test_computes_only_the_gradients_that_are_needed(sigmoid, needed, monkeypatch):
    products = []
    monkeypatch.setattr(blocks, "matmul", lambda a, b: products.append(a.shape) or a @ b)
    monkeypatch.setattr(blocks, "addmm_", lambda to, a, b: products.append(a.shape) or to.addmm_(a, b))
    count = 4 if sigmoid else 3
    if not any(needed[:count]):
        return
    pairs, numbers = embeddings("any", 9, 0), {}
    for module, options in ((losses, {"chunk_size": 1024}), (reference, {})):
        numbers[module] = [n.clone() for n in (*pairs, torch.tensor(9.0).double(), torch.tensor(-3.0).double())[:count]]
        for number, is_needed in zip(numbers[module], needed, strict=False):
            number.requires_grad_(bool(is_needed))
        getattr(module, "sigmoid_loss" if sigmoid else "contrastive_loss")(*numbers[module], **options).backward()
    for a, b in zip(numbers[losses], numbers[reference], strict=True):
        assert (a.grad is None) == (b.grad is None)
        if a.grad is not None:
            torch.testing.assert_close(a.grad, b.grad, rtol=1e-10, atol=1e-12)
    assert len(products) == 2 + max(1, sum(needed[:2]))  # the matrix twice, and only the gradients that are needed


def test_the_scale_may_be_a_number_or_a_tensor_with_one_element():
    x, y = embeddings("any", 5, 0)
    expected = losses.contrastive_loss(x, y, 7.0, chunk_size=5)
    for scale in (7, torch.tensor(7.0), torch.tensor([7.0]), torch.nn.Parameter(torch.tensor([7.0]))):
        assert torch.equal(losses.contrastive_loss(x, y, scale, chunk_size=5), expected)
    parameter = torch.nn.Parameter(torch.tensor([7.0]))
    losses.contrastive_loss(x, y, parameter, chunk_size=5).backward()
    assert parameter.grad.shape == (1,)


def test_non_contiguous_inputs_and_a_second_backward():
    x, y = (side.T.contiguous().T for side in embeddings("any", 9, 0))
    x.requires_grad_(), y.requires_grad_()
    loss = losses.contrastive_loss(x[::2], y[1:6], 9.0, chunk_size=2)
    expected = torch.autograd.grad(reference.contrastive_loss(x[::2], y[1:6], 9.0), (x, y))
    for _ in range(2):
        assert_close(torch.autograd.grad(loss, (x, y), retain_graph=True), expected, 1e-12)


@pytest.mark.parametrize("name", ["contrastive_loss", "sigmoid_loss"])
@pytest.mark.parametrize("onednn", [False, True])
def test_autocast_changes_nothing(name, onednn, monkeypatch):
    if not onednn:
        monkeypatch.setattr(blocks, "matmul", torch.mm)
    rest = (20.0,) if name == "contrastive_loss" else (20.0, -5.0)

    def run(forward, backward):
        x, y = (side.float().requires_grad_() for side in embeddings("any", 33, 0, width=8))
        with torch.autocast("cpu", torch.bfloat16, enabled=forward):
            loss = getattr(losses, name)(x, y, *rest, chunk_size=10)
        with torch.autocast("cpu", torch.bfloat16, enabled=backward):
            loss.backward()
        return loss, x.grad, y.grad

    expected = run(False, False)
    for result in (run(True, False), run(True, True)):
        assert all(torch.equal(a, b) for a, b in zip(result, expected, strict=True))


@pytest.mark.parametrize("name", ["contrastive_loss", "sigmoid_loss"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(name, dtype):
    rest = (20.0,) if name == "contrastive_loss" else (20.0, -5.0)
    half = [side.to(dtype).requires_grad_() for side in embeddings("any", 33, 0, width=8)]
    full = [side.detach().float().requires_grad_() for side in half]
    values = [getattr(losses, name)(*pairs, *rest, chunk_size=10) for pairs in (half, full)]
    for value in values:
        value.backward()
    assert values[0].dtype == torch.float32
    assert torch.equal(*values)
    for a, b in zip(half, full, strict=True):
        assert torch.equal(a.grad, b.grad.to(dtype))  # rounded once, at the end


def test_compiled():
    """Inside a compiled function, under bf16 autocast: the code before and after the loss is traced."""

    def step(x, y, weight, scale):
        with torch.autocast("cpu", torch.bfloat16):
            x, y = x @ weight, y @ weight
        return 2 * losses.contrastive_loss(x, y, scale.exp(), chunk_size=10)

    torch.compiler.reset()
    tensors = [torch.randn(33, 8), torch.randn(33, 8), torch.randn(8, 8), torch.tensor(3.0)]
    plain, compiled = ([tensor.clone().requires_grad_() for tensor in tensors] for _ in range(2))
    step(*plain).backward()
    torch.compile(step, backend="aot_eager")(*compiled).backward()
    for a, b in zip(plain, compiled, strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=2e-2, atol=2e-2 * float(a.grad.abs().max()))  # bf16 before it


def test_large_batches_and_chunk_sizes_use_blocks(monkeypatch):
    monkeypatch.setattr(losses, "CHUNKED_FROM", 10)
    called = []
    monkeypatch.setattr(chunked, "loss", lambda inputs: called.append("chunked"))
    for name, rest in (("contrastive_loss", (1.0,)), ("sigmoid_loss", (1.0, 0.0))):
        monkeypatch.setattr(reference, name, lambda *a: called.append("reference"))
        for n, chunk_size in ((9, None), (10, None), (9, 4)):
            getattr(losses, name)(torch.ones(n, 2), torch.ones(n, 2), *rest, chunk_size=chunk_size)
        assert called == ["reference", "chunked", "chunked"]
        called.clear()


def test_wrong_arguments_are_refused():
    with pytest.raises(ValueError, match="chunk_size is 0"):
        losses.contrastive_loss(torch.ones(3, 2), torch.ones(3, 2), 1.0, chunk_size=0)
    with pytest.raises(ValueError, match="same shape"):
        losses.sigmoid_loss(torch.ones(3, 2), torch.ones(4, 2), 1.0, 0.0, chunk_size=2)
    with pytest.raises(ValueError, match="ids"):
        losses.contrastive_loss(torch.ones(3, 2), torch.ones(3, 2), 1.0, ids=torch.zeros(2), chunk_size=2)


def mebibytes(key):
    return int(re.search(key + r":\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) / 1024


def print_peak(function, rest, pairs, width, **options):
    """Print by how much a loss and its gradients raise this process's memory."""
    x, y = (side.clone().requires_grad_() for side in torch.randn(2, pairs, width).unbind())
    function(x[:64], y[:64], *rest, **options).backward()  # loads libraries
    x.grad = y.grad = None
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    before = mebibytes("VmRSS")
    function(x, y, *rest, **options).backward()
    print(mebibytes("VmHWM") - before, flush=True)


def print_peaks(folder):
    """Measure each loss in a fork, which does not have the memory that the one before has kept."""
    for case, options in (
        ((reference.contrastive_loss, (10.0,), 4096, 64), {}),
        ((losses.contrastive_loss, (10.0,), 8192, 512), {"chunk_size": 1024}),
        ((losses.sigmoid_loss, (10.0, -10.0), 8192, 64), {"chunk_size": 1024}),
    ):
        if os.fork() == 0:
            print_peak(*case, **options)
            os._exit(0)
        assert os.wait()[1] == 0


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the peak is read from /proc")
def test_memory_is_a_tenth_of_the_reference(ranks, tmp_path):
    """65,536 pairs of width 512 must fit into 1 GiB, so 8,192 pairs into an eighth of that.

    The memory of the reference is quadratic in the number of pairs; it is measured on half as many.
    """
    ((_, output, _),) = ranks(1, print_peaks, tmp_path)
    plain, contrastive, sigmoid = map(float, output.split())
    assert plain > 4 * 64  # the measurement sees several matrices of 64 MiB
    assert contrastive < 4 * plain / 10
    assert contrastive < 1024 / 8
    assert sigmoid < 256 / 4
