"""Pictures to pixels as torchvision and open_clip do it; augmentation in range, and drawn from its seed alone."""

import dataclasses
import io

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from miniclip.config import CLIPConfig, ImageConfig, TextConfig
from miniclip.data import transforms
from miniclip.data.decoding import open_image
from miniclip.data.transforms import Augment, Preprocess
from miniclip.errors import DataError

S = 24
CONFIG = CLIPConfig(ImageConfig(S, 8, 6, 1, 1), TextConfig(5, 10, 6, 1, 1), 4)
SIZES = [(1, 1), (500, 3), (3, 500), (24, 24), (24, 25), (25, 24), (23, 23), (61, 47), (48, 48), (2, 1)]


def picture(width: int, height: int, mode: str = "RGB") -> Image.Image:
    rng = np.random.default_rng(width * 1000 + height)
    smooth = np.add.outer(np.arange(height) * 3, np.arange(width) * 2)[:, :, None]
    noise = rng.integers(0, 60, (height, width, 4))
    values = ((smooth + np.array([0, 60, 120, 180]) + noise) % 256).astype(np.uint8)
    if mode == "L":
        return Image.fromarray(values[:, :, 0])
    if mode == "RGBA":
        return Image.fromarray(values, "RGBA")
    rgb = Image.fromarray(np.ascontiguousarray(values[:, :, :3]))
    return rgb.quantize(16) if mode == "P" else rgb


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "P"])
@pytest.mark.parametrize("size", SIZES)
def test_preprocess_equals_torchvision(size, mode, interpolation):
    from torchvision import transforms as tv

    config = dataclasses.replace(CONFIG, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4), interpolation=interpolation)
    expected = tv.Compose(
        [
            tv.Resize(S, tv.InterpolationMode(interpolation)),
            tv.CenterCrop(S),
            tv.ToTensor(),
            tv.Normalize(config.mean, config.std),
        ]
    )
    made = picture(*size, mode)
    assert made.mode == mode
    pixels = Preprocess(config)(made)
    assert pixels.shape == (3, S, S)
    assert pixels.dtype == torch.float32
    white = Image.new("RGBA", made.size, "white")
    rgb = Image.alpha_composite(white, made).convert("RGB") if mode == "RGBA" else made.convert("RGB")
    torch.testing.assert_close(pixels, expected(rgb), rtol=0, atol=1e-6)


@pytest.mark.parametrize("size", [(400, 7), (7, 400), (101, 10)])
@pytest.mark.parametrize("min_crop_area", ["rounded", "floored"])
def test_the_middle_of_a_strip_is_that_of_the_whole(size, crop, monkeypatch):
    waves = 128 + 60 * np.add.outer(np.sin(np.arange(size[1]) / 5), np.cos(np.arange(size[0]) / 7))
    smooth = Image.fromarray(waves.astype(np.uint8)).convert("RGB")  # of noise, the order of Pillow's passes would show
    preprocess = Preprocess(dataclasses.replace(CONFIG, crop_rounding=crop))
    whole = preprocess.pixels(smooth).int()
    monkeypatch.setattr(transforms, "RESIZED", 1)
    assert (preprocess.pixels(smooth).int() - whole).abs().max() <= 1


def test_a_strip_of_30_000_pixels_is_resized_within_memory():
    preprocess = Preprocess(dataclasses.replace(CONFIG, image=dataclasses.replace(CONFIG.image, image_size=224)))
    for size in ((30_000, 1), (1, 30_000)):
        assert preprocess.pixels(Image.new("RGB", size, "red")).float().mean((1, 2)).tolist() == [255, 0, 0]


def test_pixels_are_bytes_and_normalise_takes_both_kinds():
    preprocess, made = Preprocess(CONFIG), picture(61, 47)
    pixels = preprocess.pixels(made)
    assert pixels.dtype == torch.uint8
    assert pixels.shape == (3, S, S)
    expected = (pixels.double() / 255 - torch.tensor(CONFIG.mean)[:, None, None]) / torch.tensor(CONFIG.std)[
        :, None, None
    ]
    torch.testing.assert_close(preprocess.normalise(pixels).double(), expected, rtol=0, atol=1e-6)
    assert torch.equal(preprocess.normalise(pixels.float() / 255), preprocess.normalise(pixels))
    assert torch.equal(preprocess.normalise(pixels[None].expand(2, -1, -1, -1))[1], preprocess(made))


def test_a_picture_of_the_right_size_is_left_as_it_is():
    made = picture(S, S)
    assert torch.equal(Preprocess(CONFIG).pixels(made), torch.from_numpy(np.array(made)).permute(2, 0, 1))


@pytest.mark.peer
@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("size", SIZES)
def test_within_a_grey_level_of_open_clip(size, mode):
    open_clip = pytest.importorskip("open_clip")
    peer = open_clip.image_transform(S, is_train=False, mean=CONFIG.mean, std=CONFIG.std)
    made = picture(*size, mode)
    levels = (Preprocess(CONFIG)(made) - peer(made)).abs() * torch.tensor(CONFIG.std)[:, None, None] * 255
    assert float(levels.max()) < 1.01


def jpeg(width, height, kind="JPEG", mode="RGB"):
    """Blocks and noise: what overshoots when it is resized."""
    image = picture(width, height, mode)
    if min(width, height) > 8:
        image.paste(Image.new("RGB", (width // 3, height // 2), "white").convert(mode), (width // 4, height // 3))
        image.paste(Image.new("RGB", (width // 3, height // 3), "black").convert(mode), (width // 3, height // 2))
    file = io.BytesIO()
    image.save(file, kind)
    return file.getvalue()


def off(preprocess, content, **options):
    """How far the fast way is from Pillow's, in grey levels: mean and greatest."""
    found, expected = preprocess.read(content, **options), preprocess.pixels(open_image(content, **options))
    assert found.dtype == torch.uint8
    assert found.shape == (3, preprocess.size, preprocess.size)
    assert found.is_contiguous()
    difference = (found.int() - expected.int()).abs()
    return float(difference.float().mean()), int(difference.max())


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("how", [{}, {"crop_rounding": "floored"}, {"resize": "squash"}])
@pytest.mark.parametrize("side", [24, 61, 224])
def test_jpegs_are_read_within_two_grey_levels_of_pillow(side, how, interpolation):
    image = dataclasses.replace(CONFIG.image, image_size=side, patch_size=side)
    preprocess = Preprocess(dataclasses.replace(CONFIG, image=image, interpolation=interpolation, **how))
    sizes = [*SIZES, (500, 375), (375, 500), (640, 427), (225, 224), (1000, 90), (90, 1000), (1201, 900), (13, 200)]
    sizes += [(300, 600), (300, 601), (400, 536), (360, 640), (601, 1201)]
    found = [off(preprocess, jpeg(*size)) for size in sizes]
    assert max(most for _, most in found) <= 2, found
    assert max(mean for mean, _ in found) < 0.05, found


def test_what_is_reduced_is_read_within_two_grey_levels_too():
    assert off(Preprocess(CONFIG), jpeg(500, 375), at_least=2 * S)[1] <= 2


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("kind", "mode"), [("PNG", "RGB"), ("PNG", "RGBA"), ("JPEG", "L")])
def test_what_is_no_plain_jpeg_is_read_as_pillow_does(size, kind, mode):
    assert off(Preprocess(CONFIG), jpeg(*size, kind, mode)) == (0, 0)


def test_without_the_instructions_jpegs_are_read_as_pillow_does(monkeypatch):
    assert off(Preprocess(CONFIG), jpeg(500, 375))[1] in (0, 1, 2)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "DEFAULT")
    assert off(Preprocess(CONFIG), jpeg(500, 375)) == (0, 0)


def test_a_jpeg_of_the_right_size_is_left_as_it_is():
    assert off(Preprocess(CONFIG), jpeg(S, S)) == (0, 0)


def test_a_strip_of_jpeg_is_read_within_memory():
    preprocess = Preprocess(dataclasses.replace(CONFIG, image=dataclasses.replace(CONFIG.image, image_size=224)))
    for size in ((30_000, 1), (1, 30_000)):
        assert off(preprocess, jpeg(*size)) == (0, 0)


def test_what_cannot_be_read_is_named(tmp_path):
    (tmp_path / "cut.jpg").write_bytes(jpeg(100, 80)[:-300])
    with pytest.raises(DataError, match=r"cut\.jpg: cannot be read as a picture: .*truncated"):
        Preprocess(CONFIG).read(tmp_path / "cut.jpg")
    with pytest.raises(DataError, match=r"a name: cannot be read"):
        Preprocess(CONFIG).read(b"nothing", "a name")


def batch(count: int = 6, side: int = 16, seed: int = 0) -> torch.Tensor:
    return torch.randint(
        0, 256, (count, 3, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed)
    )


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


ALL = {"min_crop_area": 0.4, "max_rotation_degrees": 20, "flip": True, "color_jitter": 0.5}


@pytest.mark.parametrize(
    "options", [{}, {"min_crop_area": 1.0, "max_rotation_degrees": 0.0, "flip": False, "color_jitter": 0.0}]
)
def test_nothing_asked_for_nothing_done(options):
    pixels = batch()
    assert torch.equal(Augment(**options)(pixels, seeded(0)), pixels.float() / 255)


@pytest.mark.parametrize("options", [{name: value} for name, value in ALL.items()] + [ALL])
def test_the_same_state_gives_the_same_pictures(options):
    augment, pixels = Augment(**options), batch()
    kept = pixels.clone()
    one = augment(pixels, seeded(3))
    torch.manual_seed(99)  # the global generator has no part in it
    assert torch.equal(augment(pixels, seeded(3)), one)
    assert not torch.equal(augment(pixels, seeded(4)), one)
    assert not torch.equal(one, pixels.float() / 255)
    assert torch.equal(pixels, kept)


@pytest.mark.parametrize("options", [{"min_crop_area": 0.4}, {"max_rotation_degrees": 20}, {"color_jitter": 0.5}])
def test_each_picture_is_drawn_for_itself(options):
    same = batch(1).expand(6, -1, -1, -1)
    rows = Augment(**options)(same, seeded(0))
    assert len({tuple(row.flatten().tolist()) for row in rows}) == 6


@given(st.floats(0.05, 1), st.floats(0, 180), st.booleans(), st.floats(0, 1), st.integers(0, 2**32 - 1))
def test_in_range_and_in_shape(crop, rotate, flip, color, seed):
    x = Augment(crop, rotate, flip, color)(batch(3, 8, seed), seeded(seed))
    assert x.shape == (3, 3, 8, 8)
    assert x.dtype == torch.float32
    assert float(x.min()) >= -1e-6
    assert float(x.max()) <= 1 + 1e-6


@pytest.mark.parametrize("side", [16, 15])
def test_flip_mirrors_about_half_and_those_exactly(side):
    pixels = batch(400, side)
    plain = pixels.float() / 255
    flipped = Augment(flip=True)(pixels, seeded(0))
    as_it_was = (flipped - plain).abs().amax(dim=(1, 2, 3)) < 1e-5
    mirrored = (flipped - plain.flip(-1)).abs().amax(dim=(1, 2, 3)) < 1e-5
    assert bool((as_it_was ^ mirrored).all())
    assert 160 <= int(mirrored.sum()) <= 240  # 400 throws of a coin: four standard deviations


def test_crop_keeps_at_least_its_share_of_the_area():
    """On a picture whose colour is its place, what is seen at the corners tells where the crop was."""
    side = 64
    ramp = (torch.arange(side) * 255 / (side - 1)).round().to(torch.uint8)
    places = torch.stack([ramp.expand(side, side), ramp[:, None].expand(side, side), torch.zeros(side, side)]).byte()
    x = Augment(min_crop_area=0.5)(places.expand(200, -1, -1, -1), seeded(0))
    widths, heights = x[:, 0, 32, -1] - x[:, 0, 32, 0], x[:, 1, -1, 32] - x[:, 1, 0, 32]
    areas = widths * heights
    torch.testing.assert_close(widths, heights, rtol=0, atol=0.02)  # squares stay squares
    assert 0.47 < float(areas.min()) < 0.55
    assert 0.9 < float(areas.max()) < 1.02
    lefts = x[:, 0, 32, 0]
    assert float(lefts.min()) < 0.03
    assert float(lefts.max()) > 0.15  # it moves about


def test_rotation_turns_no_further_than_asked():
    side = 65
    dot = torch.zeros(1, 3, side, side, dtype=torch.uint8)
    dot[..., 30:35, 50:55] = 255  # 20 pixels right of the centre
    x = Augment(max_rotation_degrees=30)(dot.expand(200, -1, -1, -1), seeded(0))[:, 0]
    row, column = torch.arange(side) - 32.0, torch.arange(side) - 32.0
    weight = x.sum(dim=(1, 2))
    angle = torch.atan2((x.sum(2) * row).sum(1) / weight, (x.sum(1) * column).sum(1) / weight).rad2deg()
    assert 25 < float(angle.max()) < 31
    assert -31 < float(angle.min()) < -25


def test_colours_change_no_further_than_asked():
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
def test_options_out_of_their_range(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        Augment(**options)


def test_a_part_of_a_batch_is_augmented_as_in_the_whole():
    augment, pixels = Augment(min_crop_area=0.5, max_rotation_degrees=20, flip=True, color_jitter=0.4), batch()
    drawn = augment.draw(len(pixels), seeded(3))
    parts = [augment.apply(pixels[rows], drawn[rows]) for rows in (slice(0, 3), slice(3, len(pixels)))]
    torch.testing.assert_close(torch.cat(parts), augment(pixels, seeded(3)), rtol=0, atol=1e-6)


@pytest.mark.parametrize("size", SIZES)
def test_squash_resizes_both_sides(size):
    made = picture(*size)
    pixels = Preprocess(dataclasses.replace(CONFIG, resize="squash")).pixels(made)
    expected = np.asarray(made.resize((S, S), Image.Resampling.BICUBIC))
    assert np.array_equal(pixels.permute(1, 2, 0).numpy(), expected)


@pytest.mark.parametrize(
    ("over", "rounded", "floored"), [(0, 0, 0), (1, 0, 0), (2, 1, 1), (3, 2, 1), (5, 2, 2), (7, 4, 3)]
)
def test_the_crops_corner(over, rounded, floored):
    """Half pixels: to even, as Python and torchvision round, or down, as transformers does."""
    made = picture(S + over, S)
    for crop, left in (("rounded", rounded), ("floored", floored)):
        pixels = Preprocess(dataclasses.replace(CONFIG, crop_rounding=crop)).pixels(made)
        assert np.array_equal(pixels.permute(1, 2, 0).numpy(), np.asarray(made)[:, left : left + S])
