"""Decoding of image files: errors, orientation, transparency, bit depths and modes."""

import pytest
from PIL import Image

from miniclip.data import Captions
from miniclip.data.decoding import open_image
from miniclip.errors import DataError


@pytest.mark.parametrize("name", ["truncated.jpg", "truncated.png", "empty.jpg", "text.jpg", "missing.jpg", "dir.jpg"])
def test_unreadable_file_raises_in_one_line(tmp_path, name):
    image = Image.effect_noise((64, 64), 50)
    for whole in ("truncated.jpg", "truncated.png"):
        image.save(tmp_path / whole)
        content = (tmp_path / whole).read_bytes()
        (tmp_path / whole).write_bytes(content[: len(content) // 2])
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "text.jpg").write_text("<html>not\nfound</html>")
    (tmp_path / "dir.jpg").mkdir()
    reason = {"empty.jpg": "the file is empty", "text.jpg": "<html>", "missing.jpg": "no such file"}
    with pytest.raises(DataError) as error:
        open_image(tmp_path / name)
    message = str(error.value)
    assert "\n" not in message
    for part in (str(tmp_path / name), reason.get(name, ""), "replace the file"):
        assert part in message
    with pytest.raises(DataError, match=name):
        Captions([tmp_path / name], [["one"]])[0]


def test_jpeg_equals_pillow(tmp_path):
    Image.effect_noise((40, 30), 50).convert("RGB").save(tmp_path / "a.jpg")
    image = open_image(str(tmp_path / "a.jpg"))
    assert image.tobytes() == Image.open(tmp_path / "a.jpg").convert("RGB").tobytes()
    assert image.resize((5, 5)).size == (5, 5)


@pytest.mark.parametrize("source", ["path", "named bytes", "bytes with the tag of DNG"])
def test_thumbnail_of_a_raw_file_is_not_taken_for_the_image(tmp_path, source):
    tags = {0xC612: b"\1\4\0\0"} if "tag" in source else {}
    image, path = Image.new("RGB", (64, 48), "red"), tmp_path / "a.DNG"
    Image.new("RGB", (16, 12)).save(path, "TIFF", save_all=True, append_images=[image], tiffinfo=tags)
    name = "photos.tar, a.dng" if source == "named bytes" else None
    with pytest.raises(DataError, match=r"it is a RAW file of a camera.*convert it to JPEG"):
        open_image(path if source == "path" else path.read_bytes(), name)
    image.save(path, "JPEG")
    assert open_image(path).size == (64, 48)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["jpg", "png", "webp", "tif"])
def test_orientation_is_applied_once(tmp_path, orientation, kind):
    upright = Image.new("RGB", (48, 32), "white")
    upright.paste((255, 0, 0), (0, 0, 16, 16))  # the top left corner of the upright image
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}
    stored = upright.transpose(Image.Transpose(undo[orientation])) if orientation in undo else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"a.{kind}"
    stored.save(path, exif=exif)
    image = open_image(path)
    assert image.size == (48, 32)
    assert image.getpixel((5, 5))[1] < 60
    assert image.getpixel((43, 27))[1] > 200
    assert image.getexif().get(0x0112, 1) == 1


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")  # from Pillow
def test_broken_exif_is_ignored(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.jpg", exif=b"Exif\x00\x00MM\x00*\xff\xff\xff\xff" + b"\xff" * 20)
    assert open_image(tmp_path / "a.jpg").size == (8, 8)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "P-bytes", "RGB-key", "L-key"])
def test_transparency_becomes_white(tmp_path, mode):
    path = tmp_path / "a.png"
    if mode in {"RGBA", "LA"}:
        image = Image.new(mode, (2, 1), (0,) * len(mode))
        image.putpixel((1, 0), (*(0,) * (len(mode) - 1), 255))
        image.save(path)
    elif mode.startswith("P"):
        image = Image.new("P", (2, 1), 0)
        image.putpalette([0, 0, 0, 0, 0, 0])
        image.putpixel((1, 0), 1)
        image.save(path, transparency=0 if mode == "P" else b"\x00\xff")
    else:
        base_mode = mode[:-4]
        image = Image.new(base_mode, (2, 1), 0)
        image.putpixel((1, 0), (1,) * 3 if base_mode == "RGB" else 1)
        image.save(path, transparency=(0, 0, 0) if base_mode == "RGB" else 0)
    opened = open_image(path)
    assert opened.mode == "RGB"
    assert opened.getpixel((0, 0)) == (255, 255, 255)
    assert max(opened.getpixel((1, 0))) <= 1


def test_half_transparent_becomes_half_white(tmp_path):
    Image.new("RGBA", (1, 1), (255, 0, 0, 128)).save(tmp_path / "a.png")
    assert open_image(tmp_path / "a.png").getpixel((0, 0)) == (255, 127, 127)


def test_16_bit_grey_is_scaled(tmp_path):
    image = Image.new("I;16", (3, 1))
    for x, value in enumerate((0, 32768, 65535)):
        image.putpixel((x, 0), value)
    image.save(tmp_path / "a.png")
    image.save(tmp_path / "a.tif")
    image.save(tmp_path / "key.png", transparency=40_000)
    for name in ("a.png", "a.tif", "key.png"):
        opened = open_image(tmp_path / name)
        assert [opened.getpixel((x, 0))[0] for x in range(3)] == [0, 128, 255]


@pytest.mark.parametrize("white", [1.0, 255.0])
def test_float_grey_is_scaled(tmp_path, white):
    image = Image.new("F", (2, 1), white)
    image.putpixel((0, 0), 0.0)
    image.save(tmp_path / "a.tif")
    opened = open_image(tmp_path / "a.tif")
    assert [opened.getpixel((x, 0)) for x in range(2)] == [(0, 0, 0), (255, 255, 255)]


@pytest.mark.parametrize(
    ("mode", "kind"), [("L", "jpg"), ("CMYK", "jpg"), ("1", "png"), ("P", "gif"), ("YCbCr", "jpg")]
)
def test_other_modes_become_rgb(tmp_path, mode, kind):
    Image.new("RGB", (8, 8), "white").convert(mode).save(tmp_path / f"a.{kind}")
    opened = open_image(tmp_path / f"a.{kind}")
    assert opened.mode == "RGB"
    assert min(opened.getpixel((4, 4))) > 250


def test_first_frame_is_read(tmp_path):
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert open_image(tmp_path / "a.gif").getpixel((0, 0)) == (255, 0, 0)
