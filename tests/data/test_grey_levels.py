"""Scale of grey images of more than 8 bits: read bright by what the format defines, or refused; never almost black."""

import io
import struct

import numpy as np
import pytest
from PIL import Image, TiffImagePlugin

from miniclip.data import Captions
from miniclip.data.decoding import open_image
from miniclip.data.decoding.rgb import to_rgb
from miniclip.errors import DataError
from tests.data.bad_images import png, saved

RAMP = np.linspace(0, 1, 12).reshape(3, 4)
NOT_CERTAIN = "8 bits per channel, with white as 255"


def levels(white, dtype):
    return (RAMP * white).astype(dtype)


def tiff(pixels, **tags):
    """A TIFF as tifffile writes arrays, uncompressed, with other tags than Pillow would give it."""
    image = Image.fromarray(np.zeros(pixels.shape, {1: "u1", 2: "u2", 4: "i4"}[pixels.dtype.itemsize]))
    ifd = TiffImagePlugin.ImageFileDirectory_v2()
    for tag, value in tags.items():
        ifd[getattr(TiffImagePlugin, tag)] = value
    content = bytearray(saved(image, "TIFF", tiffinfo=ifd))
    with Image.open(io.BytesIO(content)) as written:
        start = written.tag_v2[TiffImagePlugin.STRIPOFFSETS][0]
    content[start : start + pixels.nbytes] = pixels.tobytes()
    return bytes(content)


def check_bright(image):
    grey = np.asarray(image)[..., 0]
    assert np.abs(grey - RAMP * 255).max() <= 1.01
    assert np.asarray(image).shape[2] == 3


# Array or image that Pillow makes, and the file format.
BRIGHT = {
    "int32 TIFF": (levels(255, np.int32), "TIFF"),
    "uint16 TIFF": (levels(65535, np.uint16), "TIFF"),
    "uint16 PNG": (levels(65535, np.uint16), "PNG"),
    "uint16 PGM": (levels(65535, np.uint16), "PPM"),
    "uint16 JPEG 2000": (levels(65535, np.uint16), "JPEG2000"),
    "float TIFF, 0 to 1": (levels(1, np.float32), "TIFF"),
    "float TIFF, 0 to 255": (levels(255, np.float32), "TIFF"),
    "float PFM": (levels(1, np.float32), "PPM"),
}


@pytest.mark.parametrize("case", BRIGHT)
def test_file_is_read_bright(case):
    pixels, kind = BRIGHT[case]
    image = Image.fromarray(pixels)
    if kind == "PPM" and image.mode == "I;16":
        image = image.convert("I")
    options = {"irreversible": False} if kind == "JPEG2000" else {}
    check_bright(open_image(saved(image, kind, **options)))


@pytest.mark.parametrize("mode", ["I", "I;16", "I;16L", "I;16B", "F"])
def test_image_in_memory_is_read_bright(mode):
    if mode.startswith("I;"):
        big = mode == "I;16B"
        content = levels(65535, ">u2" if big else "<u2").tobytes()
        image = Image.frombytes(mode, (4, 3), content)
    else:
        image = Image.fromarray(levels(255, np.int32 if mode == "I" else np.float32))
    assert image.mode == mode
    check_bright(to_rgb(image))


@pytest.mark.parametrize("value", [1, 255, 1023, 4095])
@pytest.mark.parametrize("kind", ["TIFF", "PNG"])
def test_few_bits_in_16_are_refused(value, kind):
    with pytest.raises(DataError, match=r"almost black where 65,535 is white.*8 bits per channel") as caught:
        open_image(saved(Image.fromarray(levels(value, np.uint16)), kind))
    assert f"from 0 to {value}" in str(caught.value)


@pytest.mark.parametrize(
    ("pixels", "found"),
    [
        (levels(65535, np.int32), "from 0 to 65535"),
        (levels(256, np.int32), "from 0 to 256"),
        (levels(255, np.int32) - 1, "from -1 to 254"),
        (levels(15, np.int32), "almost black where 255"),
        (levels(1.02, np.float32), "almost black where 255"),
        (levels(300, np.float32), "from 0 to 300"),
        (levels(2, np.float32) - 1, "from -1 to 1"),
        (levels(1, np.float32) * np.nan, "nan"),
        (np.where(RAMP > 0.5, np.nan, RAMP).astype(np.float32), "nan"),
        (np.where(RAMP > 0.5, np.inf, RAMP).astype(np.float32), "inf"),
    ],
    ids=["16 bits", "over", "negative", "labels", "overshoot", "float over", "float negative", "nan", "a nan", "inf"],
)
def test_values_without_a_certain_scale_are_refused(pixels, found):
    image = Image.fromarray(pixels)
    for read in (to_rgb, lambda image: open_image(saved(image, "TIFF"))):
        with pytest.raises(DataError, match=NOT_CERTAIN) as caught:
            read(image)
        assert found in str(caught.value)


def test_the_advice_works():
    image = Image.fromarray(levels(40_000, np.int32))
    with pytest.raises(DataError, match=NOT_CERTAIN):
        to_rgb(image)
    check_bright(to_rgb(Image.fromarray((np.asarray(image) * (255 / 40_000)).round().astype(np.uint8))))


@pytest.mark.parametrize("dtype", [np.int32, np.uint16, np.float32])
def test_black_is_black(dtype):
    image = Image.fromarray(np.zeros((3, 4), dtype))
    assert not np.asarray(to_rgb(image)).any()
    assert not np.asarray(open_image(saved(image, "TIFF"))).any()


class TestTags:
    def test_signed_16_bits(self):
        check_bright(open_image(tiff(levels(255, "<i2"), SAMPLEFORMAT=2)))
        with pytest.raises(DataError, match="from 0 to 32767"):
            open_image(tiff(levels(32767, "<i2"), SAMPLEFORMAT=2))

    def test_signed_8_bits(self):
        with pytest.raises(DataError, match="signed integers of 8 bits"):
            open_image(tiff(levels(127, "i1"), SAMPLEFORMAT=2))

    def test_12_bits(self):
        values = levels(4095, np.uint16).ravel()
        packed = bytearray()
        for a, b in zip(values[::2].tolist(), values[1::2].tolist(), strict=True):
            packed += bytes([a >> 4, (a & 15) << 4 | b >> 8, b & 255])
        content = tiff(np.frombuffer(bytes(packed).ljust(24, b"\0"), "<u2").reshape(3, 4))
        entry = struct.pack("<HHI", TiffImagePlugin.BITSPERSAMPLE, 3, 1)
        content = content.replace(entry + b"\x10", entry + b"\x0c")
        check_bright(open_image(content))

    def test_white_is_zero(self):
        for pixels in (levels(65535, np.uint16), levels(1, np.float32)):
            inverted = (pixels.max() - pixels).astype(pixels.dtype)
            content = saved(Image.fromarray(inverted), "TIFF", tiffinfo={TiffImagePlugin.PHOTOMETRIC_INTERPRETATION: 0})
            check_bright(open_image(content))


@pytest.mark.parametrize("sample", [255, 4095])
def test_rgb_of_16_bits_with_few_bits_is_refused(sample):
    row = b"\0" + sample.to_bytes(2, "big") * 3 * 8
    with pytest.raises(DataError, match=r"all its 16-bit samples are below 4,096.*8 bits per channel"):
        open_image(png(bits=16, rows=row * 6))
    lazy = Image.open(io.BytesIO(png(bits=16, rows=row * 6)))  # as a user hands it over
    with pytest.raises(DataError, match="below 4,096"):
        to_rgb(lazy)


@pytest.mark.parametrize(
    "mode", ["1", "L", "P", "RGB", "RGBA", "CMYK", "YCbCr", "LAB", "HSV", "LA", "PA", "RGBX", "La", "RGBa"]
)
def test_other_modes_keep_white(mode):
    white = Image.new("RGB", (4, 3), "white")
    if mode in ("La", "RGBa"):
        image = white.convert("LA" if mode == "La" else "RGBA").convert(mode)
    elif mode == "LAB":
        image = Image.merge("LAB", [Image.new("L", (4, 3), value) for value in (255, 128, 128)])
    else:
        image = (white.convert("P") if mode == "PA" else white).convert(mode)
    assert image.mode == mode
    assert np.asarray(to_rgb(image)).min() >= 250


@pytest.mark.parametrize("mode", ["I", "I;16", "F"])
@pytest.mark.parametrize("transformed", [False, True], ids=["stored", "transformed"])
def test_a_hugging_face_dataset_keeps_the_scale(mode, transformed):
    datasets = pytest.importorskip("datasets")
    pixels = {"I": levels(255, np.int32), "I;16": levels(65535, np.uint16), "F": levels(255, np.float32)}[mode]
    image = Image.fromarray(pixels)
    if transformed:
        dataset = datasets.Dataset.from_dict({"image": ["x"], "caption": ["one"]})
        dataset = dataset.with_transform(lambda batch: batch | {"image": [image]})
    else:
        features = datasets.Features({"image": datasets.Image(), "caption": datasets.Value("string")})
        dataset = datasets.Dataset.from_dict({"image": [image], "caption": ["one"]}, features=features)
    check_bright(Captions.from_huggingface(dataset)[0][0])
