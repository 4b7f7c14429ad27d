"""Operations: backward inverts forward bit for bit, `shape` predicts forward, positions are resized."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from miniclip.checkpoints.operations import SAME, TRANSPOSED, leading, positions, resized, scalar, stacked

sizes = st.integers(1, 5)
tripled = sizes.map(lambda n: 3 * n)
OPERATIONS = {  # with the shapes of the parameters
    "same": (SAME, st.lists(sizes, max_size=4)),
    "transposed": (TRANSPOSED, st.tuples(sizes, sizes)),
    "three equal parts": (
        stacked(1, 1, 1),
        st.tuples(tripled) | st.tuples(tripled, sizes),
    ),
    "one part and two": (stacked(1, 2), st.tuples(tripled, sizes)),
    "scalar": (scalar(0), st.just(())),
    "scalar of one dimension": (scalar(1), st.just(())),
    "one leading dimension": (leading(1), st.lists(sizes, max_size=2)),
    "two leading dimensions": (leading(2), st.lists(sizes, max_size=2)),
    "positions": (positions(), st.tuples(st.sampled_from([1, 2, 4, 5, 9, 10]), sizes)),
    "positions with a leading dimension": (positions(1), st.tuples(st.sampled_from([1, 2, 4, 5, 9, 10]), sizes)),
}
DTYPES = st.sampled_from([torch.float32, torch.float16, torch.bfloat16, torch.float64])


@pytest.mark.parametrize("name", OPERATIONS)
@given(data=st.data())
def test_forward_inverts_backward(name, data):
    operation, shapes = OPERATIONS[name]
    target = tuple(data.draw(shapes))
    x = torch.randn(target).to(data.draw(DTYPES))
    parts = operation.backward(x)
    assert all(part.is_contiguous() and part.dtype == x.dtype for part in parts)
    assert sum(part.numel() for part in parts) == x.numel()
    back = operation.forward(parts, target)
    assert back.dtype == x.dtype
    assert back.is_contiguous()
    assert torch.equal(back, x)
    assert operation.shape([tuple(part.shape) for part in parts], target) == target


@pytest.mark.filterwarnings("ignore:the position embeddings")
@pytest.mark.parametrize("name", OPERATIONS)
@given(data=st.data())
def test_forward_gives_the_shape_that_fits(name, data):
    operation, shapes = OPERATIONS[name]
    count = {"three equal parts": 3, "one part and two": 2}.get(name, 1)
    target = tuple(data.draw(shapes))
    some = st.sampled_from([1, 2, 4, 5, 9, *target])
    sources = data.draw(st.lists(st.lists(some, max_size=4).map(tuple), min_size=count, max_size=count))
    if operation.shape(sources, target) == target:
        assert tuple(operation.forward([torch.randn(shape) for shape in sources], target).shape) == target


@pytest.mark.parametrize(
    ("operation", "sources", "target", "fits"),
    [
        (SAME, [(2, 3)], (3, 2), False),
        (TRANSPOSED, [(2, 3)], (3, 2), True),
        (TRANSPOSED, [(2, 3)], (2, 3), False),
        (stacked(1, 1, 1), [(4, 2), (4, 2), (4, 2)], (12, 2), True),
        (stacked(1, 1, 1), [(4, 2), (3, 2), (5, 2)], (12, 2), False),
        (stacked(1, 1, 1), [(4, 2), (4, 2), (4, 3)], (12, 2), False),
        (stacked(1, 2), [(4, 2), (8, 2)], (12, 2), True),
        (stacked(1, 2), [(8, 2), (4, 2)], (12, 2), False),
        (stacked(1, 2), [(), (8, 2)], (12, 2), False),
        (scalar(0), [(1,)], (), True),
        (scalar(1), [(1, 1)], (), True),
        (scalar(0), [(2,)], (), False),
        (leading(2), [(1, 1, 7)], (7,), True),
        (leading(2), [(1, 2, 7)], (7,), False),
        (leading(2), [(7,)], (7,), True),  # already without the dimensions
        (positions(), [(17, 6)], (10, 6), True),
        (positions(), [(16, 6)], (9, 6), True),
        (positions(), [(17, 6)], (16, 6), False),  # one has a class token
        (positions(), [(16, 6)], (17, 6), False),
        (positions(), [(18, 6)], (10, 6), False),
        (positions(), [(17, 6)], (10, 5), False),
        (positions(), [(17,)], (10,), False),
        (positions(1), [(1, 16, 6)], (9, 6), True),
        (positions(1), [(2, 16, 6)], (9, 6), False),
    ],
)
def test_shape_predicts_whether_tensors_fit(operation, sources, target, fits):
    assert (operation.shape(sources, target) == target) == fits


HUGE = 10**12  # no tensor of this side can be allocated


def test_compares_shapes_without_allocating():
    assert SAME.shape([(HUGE, HUGE)], (1,)) == (HUGE, HUGE)
    assert TRANSPOSED.shape([(HUGE, 2)], (2, HUGE)) == (2, HUGE)
    assert stacked(1, 2).shape([(HUGE, 2), (2 * HUGE, 2)], (3 * HUGE, 2)) == (3 * HUGE, 2)
    assert leading(1).shape([(1, HUGE)], (HUGE,)) == (HUGE,)
    assert scalar(0).shape([(HUGE,)], ()) == (HUGE,)
    assert positions(1).shape([(1, HUGE**2 + 1, 8)], (17, 8)) == (17, 8)


def interpolated(grid, side):
    """Interpolate a grid (old, old, D) to (side, side, D) with torch, as open_clip does."""
    grid = F.interpolate(grid.permute(2, 0, 1)[None], size=(side, side), mode="bicubic", antialias=True)
    return grid[0].permute(1, 2, 0)


@pytest.mark.parametrize("tokens", [0, 1])
@pytest.mark.parametrize(("old", "new"), [(4, 6), (4, 2), (3, 7), (7, 3), (2, 1)])
def test_interpolates_positions(old, new, tokens):
    x = torch.randn(tokens + old**2, 5)
    with pytest.warns(UserWarning, match=f"{old} x {old} patches were resized to {new} x {new}") as caught:
        result = resized(x, (tokens + new**2, 5))
    assert len(caught) == 1
    assert torch.equal(result[:tokens], x[:tokens])
    expected = interpolated(x[tokens:].view(old, old, 5), new).reshape(-1, 5)
    torch.testing.assert_close(result[tokens:], expected, rtol=0, atol=1e-6)


@pytest.mark.filterwarnings("ignore:the position embeddings")
def test_resized_positions_keep_precision_and_orientation():
    x = torch.randn(17, 3).half()
    assert resized(x, (10, 3)).dtype == torch.float16
    torch.testing.assert_close(resized(x, (10, 3)).float(), resized(x.float(), (10, 3)), rtol=0, atol=2e-3)
    down, right = torch.meshgrid(torch.arange(4.0), torch.arange(4.0), indexing="ij")
    ramp = torch.stack([down, right], dim=-1).view(16, 2)
    grown = resized(ramp, (64, 2)).view(8, 8, 2)
    assert bool((grown[1:, :, 0] > grown[:-1, :, 0]).all())  # rows stay rows
    assert bool((grown[:, 1:, 1] > grown[:, :-1, 1]).all())  # columns stay columns


def test_keeps_positions_that_fit(recwarn):
    x = torch.randn(17, 3)
    assert resized(x, (17, 3)) is x
    assert positions().forward([x], (17, 3)).data_ptr() == x.data_ptr()
    assert not recwarn.list


@given(st.integers(1, 40), st.integers(0, 1))
def test_distinguishes_a_class_token_from_patches(side, tokens):
    rows = side**2 + tokens
    target = (side + 1) ** 2 + tokens
    assert positions().shape([(rows, 4)], (target, 4)) == (target, 4)
    assert math.isqrt(rows) ** 2 == rows or tokens == 1
