"""The losses against their formulas, written as loops, and against their mathematical properties."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from miniclip.losses import contrastive_loss, sigmoid_loss
from miniclip.losses.reference import l2_normalize

seeds = st.integers(0, 2**32 - 1)
sizes = st.integers(1, 7)
scales = st.floats(0, 20)
biases = st.floats(-10, 10)
EXTREME_SCALES = [0.0, 1e-6, 100.0, 1e4]


def embeddings(n: int, e: int, seed: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(2, n, e, generator=generator, dtype=torch.float64).to(dtype).unbind())


def some_ids(n: int, seed: int) -> Tensor:
    return torch.randint(0, max(1, n // 2) + 1, (n,), generator=torch.Generator().manual_seed(seed))


def both(x: Tensor, y: Tensor, scale: object, bias: object, ids: Tensor | None = None) -> Tensor:
    """Both losses, as one tensor of two numbers."""
    return torch.stack([contrastive_loss(x, y, scale, ids), sigmoid_loss(x, y, scale, bias, ids)])


def loop_cosines(x: Tensor, y: Tensor) -> list[list[float]]:
    def cosine(a: list[float], b: list[float]) -> float:
        dot = sum(p * q for p, q in zip(a, b, strict=True))
        return dot / math.sqrt(sum(p * p for p in a)) / math.sqrt(sum(q * q for q in b))

    return [[cosine(a, b) for b in y.tolist()] for a in x.tolist()]


def loop_contrastive(x: Tensor, y: Tensor, scale: float, ids: list[int]) -> float:
    logits = [[scale * c for c in row] for row in loop_cosines(x, y)]
    n, total = len(logits), 0.0
    for i in range(n):
        terms = [j for j in range(n) if j == i or ids[j] != ids[i]]
        total -= logits[i][i] - math.log(sum(math.exp(logits[i][j]) for j in terms))
        total -= logits[i][i] - math.log(sum(math.exp(logits[j][i]) for j in terms))
    return total / (2 * n)


def loop_sigmoid(x: Tensor, y: Tensor, scale: float, bias: float, ids: list[int]) -> float:
    cosines = loop_cosines(x, y)
    n, total = len(cosines), 0.0
    for i in range(n):
        for j in range(n):
            if i != j and ids[i] == ids[j]:
                continue
            sign = 1 if i == j else -1
            total += math.log1p(math.exp(-sign * (scale * cosines[i][j] + bias)))
    return total / n


@given(sizes, st.integers(1, 5), scales, biases, seeds)
def test_equals_the_formula(n, e, scale, bias, seed):
    x, y = embeddings(n, e, seed)
    distinct = list(range(n))
    assert float(contrastive_loss(x, y, scale)) == pytest.approx(loop_contrastive(x, y, scale, distinct), abs=1e-9)
    assert float(sigmoid_loss(x, y, scale, bias)) == pytest.approx(loop_sigmoid(x, y, scale, bias, distinct), abs=1e-9)


@given(st.integers(2, 7), scales, biases, seeds)
def test_ids_mask_exactly_the_pairs_that_share_one(n, scale, bias, seed):
    x, y = embeddings(n, 3, seed)
    ids = some_ids(n, seed)
    expected = [loop_contrastive(x, y, scale, ids.tolist()), loop_sigmoid(x, y, scale, bias, ids.tolist())]
    assert both(x, y, scale, bias, ids).tolist() == pytest.approx(expected, abs=1e-9)


@given(sizes, scales, biases, seeds)
def test_distinct_ids_change_nothing(n, scale, bias, seed):
    x, y = embeddings(n, 4, seed)
    ids = torch.randperm(n, generator=torch.Generator().manual_seed(seed)) * 7 - 3
    assert torch.equal(both(x, y, scale, bias, ids), both(x, y, scale, bias))


def test_a_single_id_leaves_no_negatives():
    x, y = embeddings(5, 4, 0)
    ids = torch.full((5,), 3)
    assert float(contrastive_loss(x, y, 10.0, ids)) == 0.0
    positives = torch.tensor([row[i] for i, row in enumerate(loop_cosines(x, y))], dtype=torch.float64)
    expected = torch.nn.functional.softplus(-(10.0 * positives - 2.0)).mean()
    assert float(sigmoid_loss(x, y, 10.0, -2.0, ids)) == pytest.approx(float(expected), abs=1e-12)


@given(st.integers(2, 7), scales, biases, st.booleans(), seeds)
def test_symmetric_under_exchange_of_image_and_text(n, scale, bias, with_ids, seed):
    x, y = embeddings(n, 4, seed)
    ids = some_ids(n, seed) if with_ids else None
    torch.testing.assert_close(both(x, y, scale, bias, ids), both(y, x, scale, bias, ids), rtol=0, atol=1e-12)


@given(st.integers(2, 7), scales, biases, st.booleans(), seeds)
def test_invariant_to_a_joint_permutation(n, scale, bias, with_ids, seed):
    x, y = embeddings(n, 4, seed)
    ids = some_ids(n, seed) if with_ids else None
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    permuted = both(x[order], y[order], scale, bias, None if ids is None else ids[order])
    torch.testing.assert_close(permuted, both(x, y, scale, bias, ids), rtol=0, atol=1e-12)


def test_a_permutation_of_one_side_raises_the_loss():
    x = torch.eye(4, dtype=torch.float64)
    assert bool((both(x, x.roll(1, 0), 5.0, 0.0) > both(x, x, 5.0, 0.0) + 1).all())


@given(st.integers(1, 6), scales, biases, seeds, st.data())
def test_invariant_to_the_length_of_each_row(n, scale, bias, seed, data):
    x, y = embeddings(n, 4, seed, torch.float32)
    exponents = st.lists(st.floats(-30, 30), min_size=n, max_size=n)
    stretch_x, stretch_y = (10 ** torch.tensor(data.draw(exponents)).float()[:, None] for _ in range(2))
    torch.testing.assert_close(
        both(x * stretch_x, y * stretch_y, scale, bias), both(x, y, scale, bias), rtol=0, atol=5e-5
    )


@given(st.integers(1, 50), st.floats(0, 100), seeds)
def test_log_n_for_equal_embeddings(n, scale, seed):
    x, y = (side.expand(n, -1) for side in embeddings(1, 6, seed, torch.float32))
    assert float(contrastive_loss(x, x, scale)) == pytest.approx(math.log(n), abs=1e-4)
    assert float(contrastive_loss(x, y, scale)) == pytest.approx(math.log(n), abs=1e-4)


@pytest.mark.parametrize("n", [2, 5, 16])
def test_near_zero_for_orthogonal_pairs_at_a_large_scale(n):
    x = torch.eye(n)
    assert float(contrastive_loss(x, x, 100.0)) < 1e-6
    assert float(contrastive_loss(x, x, 3.0)) == pytest.approx(math.log(1 + (n - 1) * math.exp(-3)), abs=1e-6)
    assert float(sigmoid_loss(x, x, 100.0, -50.0)) < 1e-6


def simplex(n: int) -> Tensor:
    """N unit vectors that are equally far apart: cosine -1/(N-1) between any two."""
    return l2_normalize(torch.eye(n, dtype=torch.float64) - 1 / n)


@given(st.integers(2, 6), st.floats(0.5, 15), st.sampled_from([0.01, 0.3, 3.0]), seeds)
def test_the_minimum_is_at_aligned_evenly_spread_pairs(n, scale, noise, seed):
    """The lower bound of Lu and Steinerberger (2022)."""
    best = contrastive_loss(simplex(n), simplex(n), scale)
    assert float(best) == pytest.approx(math.log(1 + (n - 1) * math.exp(-scale * n / (n - 1))), abs=1e-12)
    dx, dy = embeddings(n, n, seed)
    assert float(contrastive_loss(simplex(n) + noise * dx, simplex(n) + noise * dy, scale)) >= float(best) - 1e-12


@given(st.integers(2, 6), st.floats(0.5, 10), st.floats(0.05, math.pi), st.floats(0.05, 0.5), seeds)
def test_moving_a_text_away_raises_the_loss(n, scale, angle, step, seed):
    x = torch.eye(n, n + 1, dtype=torch.float64)

    def moved(t: float) -> Tensor:
        y = x.clone()
        y[seed % n] = math.cos(t) * x[seed % n]
        y[seed % n, n] = math.sin(t)  # towards a direction that no image has
        return both(x, y, scale, 0.0)

    assert bool((moved(angle) > moved(0.0)).all())
    assert bool((moved(angle) > moved(max(0.0, angle - step))).all())


@pytest.mark.parametrize("ids", [None, torch.tensor([0, 1, 0, 2, 1])], ids=["distinct", "ids"])
def test_gradients_against_finite_differences(ids):
    x, y = (side.requires_grad_() for side in embeddings(5, 3, 1))
    scale = torch.tensor(7.0, dtype=torch.float64, requires_grad=True)
    bias = torch.tensor(-3.0, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda *a: contrastive_loss(*a, ids), (x, y, scale))
    assert torch.autograd.gradcheck(lambda *a: sigmoid_loss(*a, ids), (x, y, scale, bias))
    grads = torch.autograd.grad(both(x, y, scale, bias, ids).sum(), (x, y, scale, bias))
    assert all(float(grad.abs().max()) > 1e-3 for grad in grads)  # otherwise gradcheck compared zeros


def finite_with_gradients(x: Tensor, y: Tensor, scale: float) -> Tensor:
    """Both losses, after a check that they and all their gradients are finite."""
    x, y = x.detach().clone().requires_grad_(), y.detach().clone().requires_grad_()
    scale, bias = torch.tensor(scale, requires_grad=True), torch.tensor(-10.0, requires_grad=True)
    losses = both(x, y, scale, bias, torch.tensor([0, 1, 2, 2]))
    losses.sum().backward()
    assert losses.isfinite().all(), losses
    for value in (x, y, scale, bias):
        assert value.grad.isfinite().all(), value.grad
    return losses


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("scale", EXTREME_SCALES)
def test_finite_for_extreme_scales(scale, dtype):
    x, y = embeddings(4, 3, 0, dtype)
    losses = finite_with_gradients(x, y, scale)
    assert losses.dtype == torch.float32
    finite_with_gradients(x, -x, scale)  # the largest loss
    finite_with_gradients(x, x, scale)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("scale", EXTREME_SCALES)
def test_finite_for_rows_of_zeros(scale, dtype):
    x, y = embeddings(4, 3, 0, dtype)
    x[1], y[1], y[3] = 0, 0, 0
    losses = finite_with_gradients(x, y, scale)
    nonzero = torch.tensor([0, 2])
    assert torch.equal(l2_normalize(x)[1], torch.zeros(3))
    assert losses.dtype == torch.float32
    torch.testing.assert_close(l2_normalize(x)[nonzero].norm(dim=1), torch.ones(2))


def test_bf16_inputs_are_computed_in_float32():
    x, y = embeddings(8, 16, 0, torch.bfloat16)
    assert torch.equal(both(x, y, 50.0, -5.0), both(x.float(), y.float(), 50.0, -5.0))


def test_float64_stays_float64():
    assert both(*embeddings(3, 4, 0), 10.0, 0.0).dtype == torch.float64


def test_autocast_changes_nothing():
    x, y = (side.requires_grad_() for side in embeddings(8, 16, 0, torch.float32))
    plain = both(x, y, 50.0, -5.0)
    grads = torch.autograd.grad(plain.sum(), (x, y))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert (x @ y.T).dtype == torch.bfloat16
        cast = both(x, y, 50.0, -5.0)
    assert torch.equal(cast, plain)
    exact = both(x.detach().double(), y.detach().double(), 50.0, -5.0)
    torch.testing.assert_close(plain.double(), exact, rtol=1e-5, atol=1e-5)  # and not silently bf16
    for grad, cast_grad in zip(grads, torch.autograd.grad(cast.sum(), (x, y)), strict=True):
        assert torch.equal(grad, cast_grad)


@pytest.mark.parametrize(
    "shapes", [((3, 4), (3, 5)), ((3, 4), (2, 4)), ((4,), (4,)), ((0, 4), (0, 4)), ((1, 2, 3),) * 2]
)
def test_shapes_that_do_not_match_are_refused(shapes):
    x, y = (torch.zeros(shape) for shape in shapes)
    for loss in (lambda: contrastive_loss(x, y, 1.0), lambda: sigmoid_loss(x, y, 1.0, 0.0)):
        with pytest.raises(ValueError, match="same shape") as caught:
            loss()
        assert str(shapes[0]) in str(caught.value)
        assert str(shapes[1]) in str(caught.value)


@pytest.mark.parametrize("ids", [torch.zeros(2), torch.zeros(3, 1), torch.tensor(0)])
def test_ids_of_a_wrong_shape_are_refused(ids):
    x, y = embeddings(3, 2, 0)
    for loss in (lambda: contrastive_loss(x, y, 1.0, ids), lambda: sigmoid_loss(x, y, 1.0, 0.0, ids)):
        with pytest.raises(ValueError, match="ids") as caught:
            loss()
        assert "(3,)" in str(caught.value)


@pytest.mark.peer
@pytest.mark.parametrize("n", [1, 2, 9])
def test_equals_open_clip(n):
    peer = pytest.importorskip("open_clip.loss")
    x, y = (l2_normalize(side).requires_grad_() for side in embeddings(n, 6, n, torch.float32))
    scale = torch.tensor(14.0, requires_grad=True)
    bias = torch.tensor(-4.0, requires_grad=True)
    actual = both(x, y, scale, bias)
    expected = torch.stack([peer.ClipLoss()(x, y, scale), peer.SigLipLoss()(x, y, scale, bias)])
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)
    for a, b in zip(*(torch.autograd.grad(loss.sum(), (scale, bias)) for loss in (actual, expected)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
