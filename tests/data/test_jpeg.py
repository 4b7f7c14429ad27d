"""The fast path for JPEG files gives Pillow's pixels within two grey levels, and refuses the same files."""

import dataclasses
import functools
import random
import sys
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from miniclip.data.decoding import jpeg as module
from miniclip.data.decoding import open_image
from miniclip.data.decoding.jpeg import decode_image, read_pixels
from miniclip.data.decoding.rgb import as_tensor
from miniclip.data.preprocess import Preprocess
from miniclip.errors import DataError
from tests.data.images import CONFIG, SIZES, S, drawing, encoded, make_image


@functools.cache  # eighteen tests read the same files
def make_file(width, height, format="JPEG", mode="RGB"):
    """Blocks and noise, which overshoot when they are resized."""
    image = make_image(width, height, mode)
    if min(width, height) > 8:
        image.paste(Image.new("RGB", (width // 3, height // 2), "white").convert(mode), (width // 4, height // 3))
        image.paste(Image.new("RGB", (width // 3, height // 3), "black").convert(mode), (width // 3, height // 2))
    return encoded(image, format)


def difference(preprocess, content, **options):
    """Mean and greatest difference of the fast path from Pillow, in grey levels."""
    pixels, expected = read_pixels(content, preprocess, **options), preprocess.pixels(open_image(content, **options))
    assert pixels.dtype == torch.uint8
    assert pixels.shape == (3, preprocess.size, preprocess.size)
    assert pixels.is_contiguous()
    levels = (pixels.int() - expected.int()).abs()
    return float(levels.float().mean()), int(levels.max())


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("settings", [{}, {"crop_rounding": "floored"}, {"resize": "squash"}])
@pytest.mark.parametrize("side", [24, 61, 224])
def test_jpegs_are_read_within_two_grey_levels_of_pillow(side, settings, interpolation):
    image = dataclasses.replace(CONFIG.image, image_size=side, patch_size=side)
    preprocess = Preprocess(dataclasses.replace(CONFIG, image=image, interpolation=interpolation, **settings))
    sizes = [*SIZES, (500, 375), (375, 500), (640, 427), (225, 224), (1000, 90), (90, 1000), (1201, 900), (13, 200)]
    sizes += [(300, 600), (300, 601), (400, 536), (360, 640), (601, 1201)]
    differences = [difference(preprocess, make_file(*size)) for size in sizes]
    assert max(most for _, most in differences) <= 2, differences
    assert max(mean for mean, _ in differences) < 0.05, differences


def test_reduced_jpegs_are_read_within_two_grey_levels_of_pillow():
    assert difference(Preprocess(CONFIG), make_file(500, 375), at_least=2 * S)[1] <= 2


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("format", "mode"), [("PNG", "RGB"), ("PNG", "RGBA"), ("JPEG", "L")])
def test_other_files_are_read_exactly_as_pillow_does(size, format, mode):
    assert difference(Preprocess(CONFIG), make_file(*size, format, mode)) == (0, 0)


def test_without_avx2_jpegs_are_read_exactly_as_pillow_does(monkeypatch):
    assert difference(Preprocess(CONFIG), make_file(500, 375))[1] in (0, 1, 2)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "DEFAULT")
    assert difference(Preprocess(CONFIG), make_file(500, 375)) == (0, 0)


def test_a_jpeg_of_the_models_size_is_unchanged():
    assert difference(Preprocess(CONFIG), make_file(S, S)) == (0, 0)


def test_a_jpeg_of_30_000_by_1_pixels_is_read_within_memory():
    preprocess = Preprocess(dataclasses.replace(CONFIG, image=dataclasses.replace(CONFIG.image, image_size=224)))
    for size in ((30_000, 1), (1, 30_000)):
        assert difference(preprocess, make_file(*size)) == (0, 0)


def test_unreadable_files_are_named(tmp_path):
    path = tmp_path / "cut.jpg"
    path.write_bytes(make_file(100, 80)[:-300])
    with pytest.raises(DataError, match=r"cut\.jpg: cannot be read as an image: .*truncated"):
        read_pixels(path, Preprocess(CONFIG))
    with pytest.raises(DataError, match=r"a name: cannot be read"):
        read_pixels(b"nothing", Preprocess(CONFIG), "a name")


def turned(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


PLAIN = [
    {},
    {"progressive": True},
    {"subsampling": 0},
    {"subsampling": 2, "optimize": True},
    {"restart_marker_blocks": 3},
    {"keep_rgb": True},
    {"exif": turned(1)},
]


@pytest.mark.parametrize("options", PLAIN)
@pytest.mark.parametrize("size", [(1, 1), (17, 9), (101, 64)])
def test_a_plain_jpeg_is_decoded_to_a_tensor_of_the_same_pixels(tmp_path, size, options):
    (tmp_path / "a.jpg").write_bytes(encoded(drawing((200, 150)).resize(size), **options))
    for source in (tmp_path / "a.jpg", str(tmp_path / "a.jpg"), (tmp_path / "a.jpg").read_bytes()):
        pixels = decode_image(source)
        assert isinstance(pixels, torch.Tensor)
        assert torch.equal(pixels, as_tensor(open_image(source)))


@pytest.mark.parametrize("at_least", [100, 300])
def test_a_plain_jpeg_is_reduced_to_the_same_pixels(at_least):
    pixels = decode_image(encoded(drawing((800, 600))), at_least=at_least)
    assert torch.equal(pixels, as_tensor(open_image(encoded(drawing((800, 600))), at_least=at_least)))


def test_other_jpegs_and_formats_are_decoded_by_pillow():
    image = drawing((60, 40))
    files = [encoded(image.convert(mode)) for mode in ("L", "CMYK")]
    files += [encoded(image, exif=turned(orientation)) for orientation in range(2, 9)]
    files += [encoded(image, format) for format in ("PNG", "BMP", "GIF", "WEBP")]
    files += [encoded(image, "MPO", save_all=True, append_images=[image.rotate(9)])]
    for content in files:
        decoded, expected = decode_image(content), open_image(content)
        assert isinstance(decoded, Image.Image)
        assert (decoded.size, decoded.mode, decoded.tobytes()) == (expected.size, "RGB", expected.tobytes())


def test_a_long_file_is_decoded_by_pillow(monkeypatch):
    content = encoded(drawing((60, 40)))
    whole = decode_image(content)
    monkeypatch.setattr(module, "MAX_JPEG_BYTES", len(content) - 1)
    monkeypatch.setattr(module, "_RGB", 99)  # torchvision would fail
    assert torch.equal(decode_image(content), whole)


def test_broken_torchvision_is_named_once_and_pillow_decodes(monkeypatch):
    content = make_file(90, 70)
    monkeypatch.setitem(sys.modules, "torchvision", None)  # its import raises
    monkeypatch.setattr(module, "register_decoder", functools.cache(module.register_decoder.__wrapped__))
    with pytest.warns(UserWarning, match="torchvision cannot be imported .*; Pillow decodes JPEG files") as warned:
        images = [decode_image(content) for _ in range(3)]
    assert len(warned) == 1
    assert all(torch.equal(image, as_tensor(open_image(content))) for image in images)


def test_without_torchvisions_decoders_pillow_decodes(monkeypatch):
    content = encoded(drawing((60, 40)))
    monkeypatch.setattr(torch.ops, "image", SimpleNamespace())  # announced for a later torchvision
    assert torch.equal(decode_image(content), as_tensor(open_image(content)))


def outcome(read, content):
    """The pixels, or the error message."""
    try:
        image = read(content, "a.jpg")
    except DataError as error:
        return str(error)
    return image if isinstance(image, torch.Tensor) else as_tensor(image)


@pytest.mark.parametrize("options", PLAIN[:5])
def test_both_decoders_refuse_the_same_damaged_jpegs(options):
    """Truncated or changed anywhere, a file is refused with the same message, or has the same pixels."""
    whole, rng = encoded(drawing((97, 61)), **options), random.Random(0)
    refused = 0
    for _ in range(150):
        start, length = rng.randrange(2, len(whole)), rng.randrange(1, 30)
        changed = bytearray(whole)
        changed[start] = rng.randrange(256)
        content = rng.choice(
            [
                whole[:start],
                bytes(changed),
                whole[:start] + whole[start + length :],
                whole[:start] + b"\xff" * length + whole[start:],
            ]
        )
        expected, actual = (outcome(read, content) for read in (open_image, decode_image))
        assert isinstance(actual, str) == isinstance(expected, str)
        assert actual == expected if isinstance(actual, str) else torch.equal(actual, expected)
        refused += isinstance(actual, str)
    assert 15 < refused < 135


def test_a_truncated_jpeg_is_refused():
    whole = encoded(drawing((200, 150)))
    for fraction in (0.99, 0.9, 0.5, 0.2):
        with pytest.raises(DataError, match=r"cut\.jpg: cannot be read as an image: .*truncated"):
            decode_image(whole[: int(fraction * len(whole))], "cut.jpg")


def test_a_jpeg_that_is_too_large_is_refused_before_it_is_decoded(monkeypatch):
    monkeypatch.setattr(module, "_decode_jpeg", lambda *_: pytest.fail("decoded"))
    content = bytearray(encoded(Image.new("RGB", (64, 64))))
    start = content.index(b"\xff\xc0") + 5
    content[start : start + 4] = b"\xff\xdc\xff\xdc"  # 65,500 x 65,500
    with pytest.raises(DataError, match="pixels"):
        decode_image(bytes(content))
    content[start : start + 4] = b"\x1f\x40\x1f\x40"  # 8,000 x 8,000 in a few hundred bytes
    with pytest.raises(DataError, match="decompression bomb"):
        decode_image(bytes(content))
