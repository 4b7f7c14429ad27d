"""Augmentation stays in range and depends only on the generator's state."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from miniclip.data.augmentation import Augment


def batch(count: int = 6, side: int = 16, seed: int = 0) -> torch.Tensor:
    return torch.randint(
        0, 256, (count, 3, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed)
    )


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


ALL = {"min_crop_area": 0.4, "max_rotation_degrees": 20, "flip": True, "color_jitter": 0.5}


def test_torch_default_dtype_changes_nothing():
    expected = Augment(**ALL)(batch(), seeded(1))
    torch.set_default_dtype(torch.float64)
    try:
        augmented = Augment(**ALL)(batch(), seeded(1))
    finally:
        torch.set_default_dtype(torch.float32)
    torch.testing.assert_close(augmented, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    "options", [{}, {"min_crop_area": 1.0, "max_rotation_degrees": 0.0, "flip": False, "color_jitter": 0.0}]
)
def test_default_options_change_nothing(options):
    pixels = batch()
    assert torch.equal(Augment(**options)(pixels, seeded(0)), pixels.float() / 255)


@pytest.mark.parametrize("options", [{name: value} for name, value in ALL.items()] + [ALL])
def test_equal_generator_states_give_equal_results(options):
    augment, pixels = Augment(**options), batch()
    original = pixels.clone()
    result = augment(pixels, seeded(3))
    torch.manual_seed(99)  # the global generator is not used
    assert torch.equal(augment(pixels, seeded(3)), result)
    assert not torch.equal(augment(pixels, seeded(4)), result)
    assert not torch.equal(result, pixels.float() / 255)
    assert torch.equal(pixels, original)


@pytest.mark.parametrize("options", [{"min_crop_area": 0.4}, {"max_rotation_degrees": 20}, {"color_jitter": 0.5}])
def test_parameters_are_drawn_for_each_image(options):
    same = batch(1).expand(6, -1, -1, -1)
    rows = Augment(**options)(same, seeded(0))
    assert len({tuple(row.flatten().tolist()) for row in rows}) == 6


@given(st.floats(0.05, 1), st.floats(0, 180), st.booleans(), st.floats(0, 1), st.integers(0, 2**32 - 1))
def test_range_and_shape(crop, rotate, flip, color, seed):
    x = Augment(crop, rotate, flip, color)(batch(3, 8, seed), seeded(seed))
    assert x.shape == (3, 3, 8, 8)
    assert x.dtype == torch.float32
    assert float(x.min()) >= -1e-6
    assert float(x.max()) <= 1 + 1e-6


@pytest.mark.parametrize("side", [16, 15])
def test_flip_mirrors_about_half_of_the_images_exactly(side):
    pixels = batch(400, side)
    plain = pixels.float() / 255
    flipped = Augment(flip=True)(pixels, seeded(0))
    unchanged = (flipped - plain).abs().amax(dim=(1, 2, 3)) < 1e-5
    mirrored = (flipped - plain.flip(-1)).abs().amax(dim=(1, 2, 3)) < 1e-5
    assert bool((unchanged ^ mirrored).all())
    assert 160 <= int(mirrored.sum()) <= 240  # four standard deviations of 400 coin throws


def test_crop_keeps_at_least_min_crop_area():
    """The color of each pixel is its position, so the corners of the result show the crop."""
    side = 64
    ramp = (torch.arange(side) * 255 / (side - 1)).round().to(torch.uint8)
    positions = torch.stack([ramp.expand(side, side), ramp[:, None].expand(side, side), torch.zeros(side, side)]).byte()
    x = Augment(min_crop_area=0.5)(positions.expand(200, -1, -1, -1), seeded(0))
    widths, heights = x[:, 0, 32, -1] - x[:, 0, 32, 0], x[:, 1, -1, 32] - x[:, 1, 0, 32]
    areas = widths * heights
    torch.testing.assert_close(widths, heights, rtol=0, atol=0.02)  # squares stay squares
    assert 0.47 < float(areas.min()) < 0.55
    assert 0.9 < float(areas.max()) < 1.02
    lefts = x[:, 0, 32, 0]
    assert float(lefts.min()) < 0.03
    assert float(lefts.max()) > 0.15  # the crop's position varies


def test_rotation_stays_within_max_rotation_degrees():
    side = 65
    dot = torch.zeros(1, 3, side, side, dtype=torch.uint8)
    dot[..., 30:35, 50:55] = 255  # 20 pixels right of the centre
    x = Augment(max_rotation_degrees=30)(dot.expand(200, -1, -1, -1), seeded(0))[:, 0]
    row, column = torch.arange(side) - 32.0, torch.arange(side) - 32.0
    weight = x.sum(dim=(1, 2))
    angle = torch.atan2((x.sum(2) * row).sum(1) / weight, (x.sum(1) * column).sum(1) / weight).rad2deg()
    assert 25 < float(angle.max()) < 31
    assert -31 < float(angle.min()) < -25


def test_colors_equal_the_three_steps():
    """Brightness, then contrast about the mean, then saturation about the greys."""
    augment, pixels = (
        Augment(color_jitter=0.9),
        torch.randint(256, (16, 3, 9, 9), dtype=torch.uint8, generator=seeded(1)),
    )
    parameters = augment.draw(16, seeded(0))
    brightness, contrast, saturation = parameters[:, 6:, None, None, None].unbind(dim=1)
    x = pixels / 255 * brightness
    mean = x.mean(dim=(1, 2, 3), keepdim=True)
    x = mean + (x - mean) * contrast
    grey = x.mean(dim=1, keepdim=True)
    expected = (grey + (x - grey) * saturation).clamp(0, 1)
    torch.testing.assert_close(augment.apply(pixels, parameters), expected, rtol=0, atol=1e-6)


def test_colors_stay_within_color_jitter():
    grey = torch.full((200, 3, 4, 4), 100, dtype=torch.uint8)
    x = Augment(color_jitter=0.3)(grey, seeded(0)) * 255
    assert 69.9 < float(x.min()) < 75
    assert 125 < float(x.max()) < 130.1
    assert float((x.amax(dim=(1, 2, 3)) - x.amin(dim=(1, 2, 3))).max()) < 1e-3  # grey stays grey


@pytest.mark.parametrize(
    "options",
    [
        {"min_crop_area": 0.0},
        {"min_crop_area": 1.1},
        {"max_rotation_degrees": -1},
        {"max_rotation_degrees": 181},
        {"color_jitter": -0.1},
        {"color_jitter": 1.1},
    ],
)
def test_options_out_of_range_are_refused(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        Augment(**options)


def test_a_slice_of_a_batch_is_augmented_as_in_the_whole_batch():
    augment, pixels = Augment(min_crop_area=0.5, max_rotation_degrees=20, flip=True, color_jitter=0.4), batch()
    parameters = augment.draw(len(pixels), seeded(3))
    parts = [augment.apply(pixels[rows], parameters[rows]) for rows in (slice(0, 3), slice(3, len(pixels)))]
    torch.testing.assert_close(torch.cat(parts), augment(pixels, seeded(3)), rtol=0, atol=1e-6)
