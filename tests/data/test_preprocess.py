"""Preprocessing equals torchvision's and open_clip's."""

import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image

from miniclip.data import preprocess as module
from miniclip.data.preprocess import Preprocess
from tests.data.images import CONFIG, SIZES, S, make_image


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
    image = make_image(*size, mode)
    assert image.mode == mode
    pixels = Preprocess(config)(image)
    assert pixels.shape == (3, S, S)
    assert pixels.dtype == torch.float32
    white = Image.new("RGBA", image.size, "white")
    rgb = Image.alpha_composite(white, image).convert("RGB") if mode == "RGBA" else image.convert("RGB")
    torch.testing.assert_close(pixels, expected(rgb), rtol=0, atol=1e-6)


@pytest.mark.parametrize("size", [(400, 7), (7, 400), (101, 10)])
@pytest.mark.parametrize("crop_rounding", ["rounded", "floored"])
def test_long_images_are_cropped_before_resizing_with_the_same_result(size, crop_rounding, monkeypatch):
    waves = 128 + 60 * np.add.outer(np.sin(np.arange(size[1]) / 5), np.cos(np.arange(size[0]) / 7))
    smooth = Image.fromarray(waves.astype(np.uint8)).convert("RGB")  # noise would show the order of Pillow's passes
    preprocess = Preprocess(dataclasses.replace(CONFIG, crop_rounding=crop_rounding))
    whole = preprocess.pixels(smooth).int()
    monkeypatch.setattr(module, "MAX_RESIZED", 1)
    assert (preprocess.pixels(smooth).int() - whole).abs().max() <= 1


def test_an_image_of_30_000_by_1_pixels_is_resized_within_memory():
    preprocess = Preprocess(dataclasses.replace(CONFIG, image=dataclasses.replace(CONFIG.image, image_size=224)))
    for size in ((30_000, 1), (1, 30_000)):
        assert preprocess.pixels(Image.new("RGB", size, "red")).float().mean((1, 2)).tolist() == [255, 0, 0]


def test_pixels_are_uint8_and_normalise_takes_uint8_and_float():
    preprocess, image = Preprocess(CONFIG), make_image(61, 47)
    pixels = preprocess.pixels(image)
    assert pixels.dtype == torch.uint8
    assert pixels.shape == (3, S, S)
    expected = (pixels.double() / 255 - torch.tensor(CONFIG.mean)[:, None, None]) / torch.tensor(CONFIG.std)[
        :, None, None
    ]
    torch.testing.assert_close(preprocess.normalise(pixels).double(), expected, rtol=0, atol=1e-6)
    assert torch.equal(preprocess.normalise(pixels.float() / 255), preprocess.normalise(pixels))
    assert torch.equal(preprocess.normalise(pixels[None].expand(2, -1, -1, -1))[1], preprocess(image))


def test_an_image_of_the_models_size_is_unchanged():
    image = make_image(S, S)
    assert torch.equal(Preprocess(CONFIG).pixels(image), torch.from_numpy(np.array(image)).permute(2, 0, 1))


@pytest.mark.peer
@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("size", SIZES)
def test_within_a_grey_level_of_open_clip(size, mode):
    open_clip = pytest.importorskip("open_clip")
    peer = open_clip.image_transform(S, is_train=False, mean=CONFIG.mean, std=CONFIG.std)
    image = make_image(*size, mode)
    levels = (Preprocess(CONFIG)(image) - peer(image)).abs() * torch.tensor(CONFIG.std)[:, None, None] * 255
    assert float(levels.max()) < 1.01


@pytest.mark.parametrize("size", SIZES)
def test_squash_resizes_both_sides(size):
    image = make_image(*size)
    pixels = Preprocess(dataclasses.replace(CONFIG, resize="squash")).pixels(image)
    expected = np.asarray(image.resize((S, S), Image.Resampling.BICUBIC))
    assert np.array_equal(pixels.permute(1, 2, 0).numpy(), expected)


@pytest.mark.parametrize(
    ("excess", "rounded", "floored"), [(0, 0, 0), (1, 0, 0), (2, 1, 1), (3, 2, 1), (5, 2, 2), (7, 4, 3)]
)
def test_crop_rounding(excess, rounded, floored):
    """Half pixels are rounded to even as in torchvision, or down as in transformers."""
    image = make_image(S + excess, S)
    for crop_rounding, left in (("rounded", rounded), ("floored", floored)):
        pixels = Preprocess(dataclasses.replace(CONFIG, crop_rounding=crop_rounding)).pixels(image)
        assert np.array_equal(pixels.permute(1, 2, 0).numpy(), np.asarray(image)[:, left : left + S])
