"""Decoding of image files, and conversion of paths, PIL images and arrays; other types are refused."""

import numpy as np
import pytest
from PIL import Image

from miniclip.config import preset
from miniclip.data.decoding import open_image
from miniclip.data.image_types import as_image
from miniclip.data.preprocess import Preprocess
from miniclip.errors import DataError
from tests.data.images import drawing

RNG = np.random.default_rng(0)
ARRAY = RNG.integers(0, 256, (5, 7, 3), dtype=np.uint8)


def test_a_pil_image_is_returned_unchanged():
    for mode in ("RGB", "L", "RGBA"):
        image = Image.new(mode, (3, 2))
        assert as_image(image) is image


@pytest.mark.parametrize("kind", [str, lambda path: path])
def test_a_path_is_opened(tmp_path, kind):
    path = tmp_path / "image.png"
    Image.fromarray(ARRAY).save(path)
    image = as_image(kind(path))
    assert image.mode == "RGB"
    assert np.array_equal(np.array(image), ARRAY)


def test_an_array_is_converted():
    image = as_image(ARRAY)
    assert (image.mode, image.size) == ("RGB", (7, 5))
    assert np.array_equal(np.array(image), ARRAY)
    assert np.array_equal(np.array(as_image(ARRAY[:, ::-1])), ARRAY[:, ::-1])


def test_a_missing_path_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"absent\.png"):
        as_image(str(tmp_path / "absent.png"))


def test_files_that_are_not_images_are_refused(tmp_path):
    whole = tmp_path / "whole.jpg"
    Image.fromarray(RNG.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(whole)
    contents = {"cut.jpg": whole.read_bytes()[:1000], "empty.png": b"", "text.png": b"hello, world"}
    for name, data in contents.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(DataError, match=name) as caught:
            as_image(tmp_path / name)
        assert "\n" not in str(caught.value)
    with pytest.raises(DataError, match="is a folder"):
        as_image(tmp_path)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_are_turned_upright(tmp_path, orientation):
    from PIL import ImageOps

    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "turned.png"
    Image.fromarray(ARRAY).save(path, exif=exif)
    with Image.open(path) as image:
        expected = np.array(ImageOps.exif_transpose(image))
    assert np.array_equal(np.array(as_image(path)), expected)


def test_transparency_is_composed_over_white(tmp_path):
    image = Image.new("RGBA", (2, 1), (255, 0, 0, 255))
    image.putpixel((1, 0), (0, 0, 0, 0))
    image.save(tmp_path / "clear.png")
    assert list(open_image(tmp_path / "clear.png").get_flattened_data()) == [(255, 0, 0), (255, 255, 255)]


@pytest.mark.parametrize(("side", "reduced"), [(76, (200, 150)), (75, (100, 75)), (300, (400, 300)), (301, (800, 600))])
def test_a_jpeg_is_reduced_to_at_least_the_given_size(tmp_path, side, reduced):
    drawing((800, 600)).save(tmp_path / "large.jpg")
    assert open_image(tmp_path / "large.jpg", at_least=side).size == reduced
    assert reduced == open_image((tmp_path / "large.jpg").read_bytes(), at_least=side).size


def test_other_formats_are_not_reduced(tmp_path):
    drawing((800, 600)).save(tmp_path / "large.png")
    assert open_image(tmp_path / "large.png", at_least=50).size == (800, 600)


@pytest.mark.parametrize("size", [(1200, 900), (515, 1030)])
def test_reduced_decoding_changes_pixels_little(tmp_path, size):
    preprocess = Preprocess(preset("bert_vit_small"))
    drawing(size).save(tmp_path / "large.jpg", quality=90)
    whole, reduced = (open_image(tmp_path / "large.jpg", at_least=a) for a in (None, 2 * preprocess.size))
    assert reduced.size[0] < whole.size[0] / 3
    difference = (preprocess.pixels(whole).int() - preprocess.pixels(reduced).int()).abs()
    assert difference.float().mean() < 3
    assert difference.max() < 64
