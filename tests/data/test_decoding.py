"""What stands for a picture: paths, PIL images, arrays; and everything else, refused by name."""

import io
import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from miniclip.config import preset
from miniclip.data import decoding as pictures
from miniclip.data.decoding import as_image, as_tensor, decode_image, open_image
from miniclip.data.transforms import Preprocess
from miniclip.errors import DataError

RNG = np.random.default_rng(0)
ARRAY = RNG.integers(0, 256, (5, 7, 3), dtype=np.uint8)


def test_a_pil_image_is_itself():
    for mode in ("RGB", "L", "RGBA"):
        image = Image.new(mode, (3, 2))
        assert as_image(image) is image


@pytest.mark.parametrize("kind", [str, lambda path: path])
def test_a_path_is_opened(tmp_path, kind):
    path = tmp_path / "picture.png"
    Image.fromarray(ARRAY).save(path)
    picture = as_image(kind(path))
    assert picture.mode == "RGB"
    assert np.array_equal(np.array(picture), ARRAY)


def test_an_array_is_a_picture():
    picture = as_image(ARRAY)
    assert (picture.mode, picture.size) == ("RGB", (7, 5))
    assert np.array_equal(np.array(picture), ARRAY)
    assert np.array_equal(np.array(as_image(ARRAY[:, ::-1])), ARRAY[:, ::-1])


def test_a_missing_path(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"absent\.png"):
        as_image(str(tmp_path / "absent.png"))


def test_files_that_are_no_pictures(tmp_path):
    whole = tmp_path / "whole.jpg"
    Image.fromarray(RNG.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(whole)
    contents = {"cut.jpg": whole.read_bytes()[:1000], "empty.png": b"", "text.png": b"hello, world, no picture"}
    for name, data in contents.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(DataError, match=name) as caught:
            as_image(tmp_path / name)
        assert "\n" not in str(caught.value)
    with pytest.raises(DataError, match="cannot be read"):
        as_image(tmp_path)


@pytest.mark.parametrize(
    ("item", "named"),
    [
        (ARRAY[:, :, 0], r"ndarray \(5, 7\) of uint8"),
        (ARRAY[:, :, :2], r"ndarray \(5, 7, 2\) of uint8"),
        (ARRAY.transpose(2, 0, 1), r"ndarray \(3, 5, 7\)"),
        (ARRAY[None], r"ndarray \(1, 5, 7, 3\)"),
        (ARRAY / 255, r"ndarray \(5, 7, 3\) of float64"),
        (torch.zeros(5, 7, 3), r"Tensor \(5, 7, 3\) of torch\.float32"),
        (None, "NoneType"),
        (b"abc", "bytes"),
        (7, "int"),
        ([ARRAY], "list"),
    ],
)
def test_anything_else_is_named(item, named):
    with pytest.raises(TypeError, match=f"found an? {named}.*expected a path, a PIL image"):
        as_image(item)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_are_turned_upright(tmp_path, orientation):
    from PIL import ImageOps

    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "turned.png"
    Image.fromarray(ARRAY).save(path, exif=exif)
    with Image.open(path) as image:
        expected = np.array(ImageOps.exif_transpose(image))
    assert np.array_equal(np.array(as_image(path)), expected)


def test_transparency_stands_over_white(tmp_path):
    image = Image.new("RGBA", (2, 1), (255, 0, 0, 255))
    image.putpixel((1, 0), (0, 0, 0, 0))
    image.save(tmp_path / "clear.png")
    assert list(open_image(tmp_path / "clear.png").get_flattened_data()) == [(255, 0, 0), (255, 255, 255)]


def drawing(size):
    """Lines, discs and letters on stripes: all that a reduced decoding finds hard."""
    rng = np.random.default_rng(0)
    image = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(image)
    for x in range(0, size[0], 7):
        draw.line([x, 0, size[0] - x, size[1]], fill=tuple(rng.integers(0, 256, 3).tolist()), width=2)
    for _ in range(30):
        x, y, r = rng.integers(0, min(size), 3).tolist()
        draw.ellipse([x, y, x + r / 2, y + r / 2], fill=tuple(rng.integers(0, 256, 3).tolist()))
    draw.text((10, 10), "a word", fill="black", font_size=size[1] / 6)
    return image


@pytest.mark.parametrize(("side", "reduced"), [(76, (200, 150)), (75, (100, 75)), (300, (400, 300)), (301, (800, 600))])
def test_a_jpeg_is_decoded_no_smaller_than_is_asked_for(tmp_path, side, reduced):
    drawing((800, 600)).save(tmp_path / "large.jpg")
    assert open_image(tmp_path / "large.jpg", at_least=side).size == reduced
    assert reduced == open_image((tmp_path / "large.jpg").read_bytes(), at_least=side).size


def test_other_formats_come_at_their_size(tmp_path):
    drawing((800, 600)).save(tmp_path / "large.png")
    assert open_image(tmp_path / "large.png", at_least=50).size == (800, 600)


@pytest.mark.parametrize("size", [(1200, 900), (515, 1030)])
def test_reduced_decoding_changes_pixels_by_little(tmp_path, size):
    preprocess = Preprocess(preset("bert_vit_small"))
    drawing(size).save(tmp_path / "large.jpg", quality=90)
    whole, reduced = (open_image(tmp_path / "large.jpg", at_least=a) for a in (None, 2 * preprocess.size))
    assert reduced.size[0] < whole.size[0] / 3
    difference = (preprocess.pixels(whole).int() - preprocess.pixels(reduced).int()).abs()
    assert difference.float().mean() < 3
    assert difference.max() < 64


def encoded(image, kind="JPEG", **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


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
def test_a_plain_jpeg_is_the_same_as_a_tensor(tmp_path, size, options):
    (tmp_path / "a.jpg").write_bytes(encoded(drawing((200, 150)).resize(size), **options))
    for source in (tmp_path / "a.jpg", str(tmp_path / "a.jpg"), (tmp_path / "a.jpg").read_bytes()):
        found = decode_image(source)
        assert isinstance(found, torch.Tensor)
        assert torch.equal(found, as_tensor(open_image(source)))


@pytest.mark.parametrize("at_least", [100, 300])
def test_a_plain_jpeg_is_reduced_to_the_same(at_least):
    found = decode_image(encoded(drawing((800, 600))), at_least=at_least)
    assert torch.equal(found, as_tensor(open_image(encoded(drawing((800, 600))), at_least=at_least)))


def test_jpegs_that_are_not_plain_and_other_formats_are_left_to_pillow():
    image = drawing((60, 40))
    others = [encoded(image.convert(mode)) for mode in ("L", "CMYK")]
    others += [encoded(image, exif=turned(orientation)) for orientation in range(2, 9)]
    others += [encoded(image, kind) for kind in ("PNG", "BMP", "GIF", "WEBP")]
    others += [encoded(image, "MPO", save_all=True, append_images=[image.rotate(9)])]
    for content in others:
        found, expected = decode_image(content), open_image(content)
        assert isinstance(found, Image.Image)
        assert (found.size, found.mode, found.tobytes()) == (expected.size, "RGB", expected.tobytes())


def test_a_long_file_is_left_to_pillow(monkeypatch):
    content = encoded(drawing((60, 40)))
    whole = decode_image(content)
    monkeypatch.setattr(pictures, "LONGEST_JPEG", len(content) - 1)
    monkeypatch.setattr(pictures, "_RGB", 99)  # which the decoder refuses otherwise
    assert torch.equal(decode_image(content), whole)


def test_a_torchvision_without_decoders_leaves_all_to_pillow(monkeypatch):
    content = encoded(drawing((60, 40)))
    monkeypatch.setattr(torch.ops, "image", SimpleNamespace())  # what a later one is to be like
    assert torch.equal(decode_image(content), as_tensor(open_image(content)))


def outcome(read, content):
    try:
        found = read(content, "a.jpg")
    except DataError as error:
        return str(error)
    return found if isinstance(found, torch.Tensor) else as_tensor(found)


@pytest.mark.parametrize("options", PLAIN[:5])
def test_of_a_broken_jpeg_both_say_the_same(options):
    """Cut, changed, longer or shorter at any place: refused in the same words, or with the same pixels."""
    whole, chance = encoded(drawing((97, 61)), **options), random.Random(0)
    refused = 0
    for _ in range(150):
        at, piece = chance.randrange(2, len(whole)), chance.randrange(1, 30)
        changed = bytearray(whole)
        changed[at] = chance.randrange(256)
        content = chance.choice(
            [whole[:at], bytes(changed), whole[:at] + whole[at + piece :], whole[:at] + b"\xff" * piece + whole[at:]]
        )
        expected, found = (outcome(read, content) for read in (open_image, decode_image))
        assert isinstance(found, str) == isinstance(expected, str)
        assert found == expected if isinstance(found, str) else torch.equal(found, expected)
        refused += isinstance(found, str)
    assert 15 < refused < 135


def test_a_jpeg_without_its_end_is_refused():
    whole = encoded(drawing((200, 150)))
    for share in (0.99, 0.9, 0.5, 0.2):
        with pytest.raises(DataError, match=r"cut\.jpg: cannot be read as a picture: .*truncated"):
            decode_image(whole[: int(share * len(whole))], "cut.jpg")


def test_a_jpeg_that_asks_for_too_much_is_refused_before_it_is_decoded(monkeypatch):
    monkeypatch.setattr(pictures, "_decode_jpeg", lambda *_: pytest.fail("decoded"))
    content = bytearray(encoded(Image.new("RGB", (64, 64))))
    at = content.index(b"\xff\xc0") + 5
    content[at : at + 4] = b"\xff\xdc\xff\xdc"  # 65,500 x 65,500
    with pytest.raises(DataError, match="pixels"):
        decode_image(bytes(content))
    content[at : at + 4] = b"\x1f\x40\x1f\x40"  # 8,000 x 8,000 in some hundred bytes
    with pytest.raises(DataError, match="made to fill the memory"):
        decode_image(bytes(content))
