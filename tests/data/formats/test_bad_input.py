"""Table of bad input: each case is read correctly, pixels and caption, or raises with its reason; nothing hangs.

A row has a name, a function that makes a file, and the expected colour or error message. Colours are checked, since an
image that is read wrong is worse than one that is not read.
"""

import contextlib
import io
import json
import os
import signal
import socket
import struct
import sys
import tarfile
import warnings
import zlib
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms, PngImagePlugin, features

from miniclip import DataError, Tokenizer
from miniclip.config import preset
from miniclip.data import decoding, open_data
from miniclip.data.decoding import open_image
from miniclip.data.loader import ImageCaptionLoader
from miniclip.data.options import LoaderOptions
from miniclip.data.preprocess import Preprocess
from miniclip.data.skipping import MAX_WARNINGS

RED, BLUE, WHITE, BLACK, GREY = (255, 0, 0), (0, 0, 255), (255, 255, 255), (0, 0, 0), (128, 128, 128)
HALF = {(0, 0): WHITE, (7, 5): RED}
ORIENTATION = 0x0112


@pytest.fixture(autouse=True)
def _time_limit():
    """Raise in a test that hangs."""
    if not hasattr(signal, "SIGALRM"):
        yield
        return

    def stop(*_):
        raise TimeoutError("the test hangs")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, 60)
    yield
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


# Functions that make files


def plain(colour=RED, size=(8, 6), mode="RGB"):
    return Image.new("RGB", size, colour).convert(mode)


def saved(image, kind, **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def frames(kind, **options):
    return saved(plain(RED), kind, save_all=True, append_images=[plain(BLUE), plain(WHITE)], duration=50, **options)


def pages(kind):
    return saved(plain(RED), kind, save_all=True, append_images=[plain(BLUE)])


def two_halves(kind, orientation):
    """Image of red and blue, stored so that the orientation puts red on the left."""
    upright = plain(BLUE, (8, 8))
    upright.paste(RED, (0, 0, 4, 8))
    undo = {1: None, 3: Image.Transpose.ROTATE_180, 6: Image.Transpose.ROTATE_90, 8: Image.Transpose.ROTATE_270}
    stored = upright if undo[orientation] is None else upright.transpose(undo[orientation])
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    return saved(stored, kind, exif=exif, lossless=True)  # for WebP


def chunk(kind, data, crc=None):
    crc = zlib.crc32(kind + data) if crc is None else crc
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", crc)


def png(width=8, height=6, bits=8, colour=2, rows=None, more=b"", crc=None):
    """Make a PNG with features that Pillow does not write."""
    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    rows = b"".join(b"\0" + b"\xff\0\0" * width for _ in range(height)) if rows is None else rows
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header, crc)
        + more
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


def png_with_16_bits():
    return png(bits=16, rows=(b"\0" + b"\xff\xff\0\0\0\0" * 8) * 6)


def grey_with_16_bits(kind):
    image = Image.new("I;16", (8, 6))
    image.putdata([32896] * 48)
    return saved(image, kind)


def palette_with_transparency(kind="PNG"):
    image = Image.new("P", (8, 6), 1)
    image.putpalette([0, 255, 0, 255, 0, 0])
    image.paste(0, (0, 0, 4, 6))
    return saved(image, kind, transparency=0)


def cmyk_without_adobe():
    content = saved(plain(mode="CMYK"), "JPEG", quality=95)
    at = content.index(b"\xff\xee")
    return content[:at] + content[at + 2 + struct.unpack(">H", content[at + 2 : at + 4])[0] :]


def jpeg_with(marker, data, content=None):
    content = content or saved(plain(), "JPEG", quality=95)
    return content[:2] + bytes([0xFF, marker]) + struct.pack(">H", len(data) + 2) + data + content[2:]


def with_broken_exif():
    return jpeg_with(0xE1, b"Exif\0\0II*\0\xff\xff\xff\x7f" + b"\xff" * 40)


def with_huge_exif():
    # as many maker notes of 60,000 bytes as fit
    entries = b"".join(struct.pack("<HHII", 0x9000 + k % 999, 7, 60_000, 8) for k in range(3_000))
    return jpeg_with(0xE1, (b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", 3_000) + entries)[:65_000])


def with_orientation(value, kind=3):
    data = struct.pack("<H", 1) + struct.pack("<HHII", ORIENTATION, kind, 1, value) + bytes(4)
    return jpeg_with(0xE1, b"Exif\0\0II*\0\x08\0\0\0" + data)


def icc(kind, profile=None):
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes() if profile is None else profile
    return saved(plain(), kind, icc_profile=profile)


def compressed_text(kind, megabytes=20):
    compressed = zlib.compress(bytes(megabytes << 20), 9)
    head = {b"zTXt": b"Comment\0\0", b"iCCP": b"icc\0\0", b"iTXt": b"XML\0\1\0\0\0"}[kind]
    return png(more=chunk(kind, head + compressed))


def long_text():
    notes = PngImagePlugin.PngInfo()
    notes.add_text("workflow", "x" * 900_000)
    return saved(plain(), "PNG", pnginfo=notes)


def gif_with_small_frame():
    """GIF whose frame covers the right half; the background is transparent."""
    frame = Image.new("P", (4, 6), 0)
    frame.putpalette([255, 0, 0, 0, 255, 0])
    content = saved(frame, "GIF")
    screen = content[:6] + struct.pack("<HH", 8, 6) + content[10:]
    at = screen.index(b"\x2c\0\0\0\0" + struct.pack("<HH", 4, 6))
    return screen[: at + 1] + struct.pack("<H", 4) + screen[at + 3 :]


def gif_with_size(side):
    return b"GIF89a" + struct.pack("<HH", side, side) + bytes(3) + b"\x2c" + bytes(9) + b"\2\0;"


def half_transparent(kind):
    image = Image.new("RGBA", (8, 6), (255, 0, 0, 255))
    image.paste((0, 0, 0, 0), (0, 0, 4, 6))
    return saved(image, kind, **({"lossless": True} if kind == "WEBP" else {}))


def cut(content, share=0.6):
    return content[: int(len(content) * share)]


def noise(kind, size=(64, 48), **options):
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return saved(Image.fromarray(pixels), kind, **options)


def flipped(content, at, bits=0x10):
    content = bytearray(content)
    content[at] ^= bits
    return bytes(content)


# Read correctly: file name, function that makes the file, expected colour of the centre or at several (x, y).
READ = {
    "a PNG called .jpg": ("a.jpg", lambda: saved(plain(), "PNG"), RED),
    "a JPEG called .png": ("a.png", lambda: saved(plain(), "JPEG", quality=95), RED),
    "a WebP without a suffix": ("a", lambda: saved(plain(), "WEBP", lossless=True), RED),
    "a name of spaces and umlauts": ("ein schöner Tag — 日本.JPG", lambda: saved(plain(), "PNG"), RED),
    "grey, 16 bits, PNG": ("a.png", lambda: grey_with_16_bits("PNG"), GREY),
    "grey, 16 bits, TIFF": ("a.tif", lambda: grey_with_16_bits("TIFF"), GREY),
    "RGB, 16 bits": ("a.png", png_with_16_bits, RED),
    "one bit": ("a.png", lambda: saved(plain(WHITE, mode="1"), "PNG"), WHITE),
    "grey with alpha": ("a.png", lambda: saved(Image.new("LA", (8, 6), (0, 0)), "PNG"), WHITE),
    "CMYK as Adobe writes it, inverted": ("a.jpg", lambda: saved(plain(mode="CMYK"), "JPEG", quality=95), RED),
    "CMYK without Adobe's mark": ("a.jpg", cmyk_without_adobe, RED),
    "CMYK TIFF": ("a.tif", lambda: saved(plain(mode="CMYK"), "TIFF"), RED),
    "palette with transparency": ("a.png", palette_with_transparency, HALF),
    "palette with transparency, GIF": ("a.gif", lambda: palette_with_transparency("GIF"), HALF),
    "half transparent": ("a.png", lambda: half_transparent("PNG"), HALF),
    "half transparent, WebP": ("a.webp", lambda: half_transparent("WEBP"), HALF),
    "animated GIF": ("a.gif", lambda: frames("GIF"), RED),
    "animated WebP": ("a.webp", lambda: frames("WEBP", lossless=True), RED),
    "animated PNG": ("a.png", lambda: frames("PNG"), RED),
    "several pages": ("a.tif", lambda: pages("TIFF"), RED),
    "several images of a camera": ("a.jpg", lambda: pages("MPO"), RED),
    "a frame smaller than the GIF": ("a.gif", gif_with_small_frame, {(7, 5): RED}),
    **{
        f"EXIF-rotated {kind}, {turn}": ("a.jpg", partial(two_halves, kind, turn), {(1, 4): RED, (6, 4): BLUE})
        for kind in ("JPEG", "PNG", "WEBP", "TIFF")
        for turn in (1, 3, 6, 8)
    },
    "broken EXIF": ("a.jpg", with_broken_exif, RED),
    "huge EXIF": ("a.jpg", with_huge_exif, RED),
    "an invalid orientation": ("a.jpg", lambda: with_orientation(99), RED),
    "an orientation of another type": ("a.jpg", lambda: with_orientation(0, kind=2), RED),
    "a profile": ("a.jpg", lambda: icc("JPEG"), RED),
    "an invalid profile": ("a.png", lambda: icc("PNG", b"no profile" * 9), RED),
    "a long comment": ("a.png", long_text, RED),
    "comments before the image": ("a.jpg", lambda: jpeg_with(0xFE, b"x" * 65_000), RED),
    "trailing bytes": ("a.jpg", lambda: saved(plain(), "JPEG", quality=95) + b"<html>" * 100, RED),
    "progressive": ("a.jpg", lambda: saved(plain(), "JPEG", quality=95, progressive=True), RED),
    "BMP": ("a.bmp", lambda: saved(plain(), "BMP"), RED),
    "TGA": ("a.tga", lambda: saved(plain(), "TGA"), RED),
    "ICO": ("a.ico", lambda: saved(plain(size=(16, 16)), "ICO"), RED),
    "PPM": ("a.ppm", lambda: saved(plain(), "PPM"), RED),
    "1x1": ("a.png", lambda: saved(plain(size=(1, 1)), "PNG"), {(0, 0): RED}),
    "30,000 wide": ("a.png", lambda: saved(plain(size=(30_000, 40)), "PNG"), {(0, 0): RED, (29_999, 39): RED}),
    "30,000 wide, JPEG": ("a.jpg", lambda: saved(plain(size=(30_000, 8)), "JPEG", quality=95), {(29_999, 7): RED}),
    "30,000 wide, 1 high": ("a.png", lambda: saved(plain(size=(30_000, 1)), "PNG"), {(29_999, 0): RED}),
    "30,000 high": ("a.png", lambda: saved(plain(size=(1, 30_000)), "PNG"), {(0, 29_999): RED}),
}  # fmt: skip
if features.check("avif"):
    READ["AVIF"] = ("a.avif", lambda: saved(plain(size=(16, 16)), "AVIF", quality=100), RED)
if features.check("jpg_2000"):
    READ["JPEG 2000"] = ("a.jp2", lambda: saved(plain(size=(16, 16)), "JPEG2000"), RED)

# Refused: file name, function that makes the file, error message.
REFUSED = {
    "empty": ("a.jpg", lambda: b"", "the file is empty"),
    "one byte": ("a.jpg", lambda: b"\xff", "no image format"),
    "HTML": ("a.jpg", lambda: b"<!DOCTYPE html><html>404 Not Found", r"no image format.*<!DOCTYPE"),
    "text": ("a.png", lambda: b"a dog\n", "no image format"),
    "a zip": ("a.jpg", lambda: b"PK\x03\x04" + bytes(100), "no image format"),
    "a film": ("a.jpg", lambda: b"\0\0\0\x18ftypmp42" + bytes(100), "no image format"),
    "SVG": ("a.svg", lambda: b"<svg xmlns='http://www.w3.org/2000/svg'/>", "no image format"),
    "NUL bytes": ("a.jpg", lambda: bytes(5_000), "no image format"),
    "EPS, which is a program": ("a.jpg", lambda: saved(plain(), "EPS"), "EPS files are programs"),
    "a truncated JPEG": ("a.jpg", lambda: cut(noise("JPEG")), "truncated"),
    "a truncated PNG": ("a.png", lambda: cut(noise("PNG")), "truncated"),
    "a truncated GIF": ("a.gif", lambda: cut(noise("GIF")), "truncated"),
    "a truncated WebP": ("a.webp", lambda: cut(noise("WEBP")), "no image format|decod|truncated"),
    "a truncated BMP": ("a.bmp", lambda: cut(noise("BMP")), "truncated"),
    "a truncated TIFF": ("a.tif", lambda: cut(noise("TIFF")), "truncated|no image format"),
    "a JPEG cut in its header": ("a.jpg", lambda: noise("JPEG")[:30], "(?i)no image format|truncated"),
    "a bit in the pixels of a PNG": ("a.png", lambda: flipped(noise("PNG"), 5_000), "broken"),
    "a wrong checksum in a PNG": ("a.png", lambda: png(crc=1), "broken|no image format"),
    "no pixels": ("a.png", lambda: png(0, 0), "0 x 0 pixels|no image format"),
    "a GIF without pixels": ("a.gif", lambda: gif_with_size(0), "0 x 0 pixels|no image format"),
    "a bomb of text": ("a.png", lambda: compressed_text(b"zTXt", 80), "too large"),
    "a bomb of a profile": ("a.png", lambda: compressed_text(b"iCCP", 80), "too large"),
    "a bomb of pixels": ("a.png", lambda: png(20_000, 20_000, 1, 0, bytes(2_501 * 20_000)), "pixels"),
    "a smaller bomb": ("a.png", lambda: png(12_000, 12_000, 1, 0, bytes(1_501 * 12_000)), "decompression bomb"),
    "a bomb of pixels, GIF": ("a.gif", lambda: gif_with_size(65_535), "pixels"),
    "a side of a million": ("a.png", lambda: png(1_000_000, 1, rows=bytes(3_000_001)), "131,072 on a side"),
    "a header that lies": ("a.png", lambda: png(13_000, 13_000, 8, 6, rows=b"abc"), "in 68 bytes: an empty image"),
    "a header that lies a little": ("a.png", lambda: png(4_000, 4_000, 8, 6, rows=b"abc"), "truncated"),
    "a BMP header that lies": ("a.bmp", lambda: flipped(noise("BMP"), 20, 0xFF), "pixels"),
}  # fmt: skip


def check_colours(expected, image):
    colours = expected if isinstance(expected, dict) else {(image.width // 2, image.height // 2): expected}
    for (x, y), colour in colours.items():
        assert np.abs(np.subtract(image.getpixel((x, y)), colour)).max() <= 12  # a JPEG is not exact


@pytest.mark.parametrize("case", READ)
def test_file_is_read_correctly(tmp_path, case):
    name, make, colour = READ[case]
    path = tmp_path / name
    path.write_bytes(make())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # from Pillow, for broken EXIF
        image = open_image(path)
        assert image.mode == "RGB"
        check_colours(colour, image)
        assert np.array_equal(np.array(open_image(path.read_bytes())), np.array(image))


@pytest.mark.parametrize("case", REFUSED)
def test_file_is_refused_with_reason(tmp_path, case):
    name, make, message = REFUSED[case]
    path = tmp_path / name
    path.write_bytes(make())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(DataError, match=message) as caught:
            open_image(path)
        with pytest.raises(DataError, match=message) as of_bytes:
            open_image(path.read_bytes(), name="shard.tar: 0.jpg")
    assert str(caught.value).startswith(f"{path}: cannot be read as an image: ")
    assert str(of_bytes.value).startswith("shard.tar: 0.jpg: cannot be read as an image: ")
    assert "\n" not in str(caught.value)


# Other things than a file at a path: function that makes it, and error message.
def bind(path):
    with socket.socket(socket.AF_UNIX) as server, contextlib.chdir(path.parent):  # socket paths must be short
        server.bind(path.name)


NOT_FILES = {
    "nothing": (lambda path: None, "there is no such file"),
    "a folder": (lambda path: path.mkdir(), "it is a folder"),
    "a pipe": (lambda path: os.mkfifo(path), "it is a pipe"),
    "a socket": (bind, "it is a socket"),
    "a device that never ends": (lambda path: path.symlink_to("/dev/zero"), "it is a device"),
    "a device without end": (lambda path: path.symlink_to("/dev/null"), "it is a device"),
    "a link to itself": (lambda path: path.symlink_to(path), "too many levels"),
    "a link to nothing": (lambda path: path.symlink_to(path.with_name("none")), "there is no such file"),
    "a file below a file": (lambda path: path.parent.joinpath("b").write_bytes(b""), None),
    "a name that is too long": (lambda path: None, None),
    "a name with a NUL": (lambda path: None, None),
}


@pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX pipes, sockets and links")
@pytest.mark.parametrize("case", NOT_FILES)
def test_path_without_regular_file_raises(tmp_path, case):
    make, message = NOT_FILES[case]
    path = tmp_path / "a.jpg"
    make(path)
    path, message = {
        "a file below a file": (tmp_path / "b" / "a.jpg", "not a directory"),
        "a name that is too long": (tmp_path / ("x" * 300 + ".jpg"), "name too long"),
        "a name with a NUL": (tmp_path / "a\0.jpg", "null"),
    }.get(case, (path, message))
    with pytest.raises(DataError, match=message):
        open_image(path)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root can read everything")
def test_file_without_permission_raises(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(saved(plain(), "PNG"))
    path.chmod(0)
    with pytest.raises(DataError, match="permission denied"):
        open_image(path)


def test_pillow_warning_about_large_images_is_not_an_error(tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    path.write_bytes(saved(plain(size=(100, 10)), "PNG"))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 600)
    with pytest.warns(Image.DecompressionBombWarning):
        assert open_image(path).size == (100, 10)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)  # as users do
    monkeypatch.setattr(decoding, "MAX_PIXELS", 999)
    with pytest.raises(DataError, match="100 x 10 pixels are more than 999"):
        open_image(path)


# Random damage

FORMATS = {
    "JPEG": noise("JPEG", (16, 12)),
    "progressive JPEG": noise("JPEG", (16, 12), progressive=True),
    "JPEG with EXIF": two_halves("JPEG", 6),
    "PNG": noise("PNG", (16, 12)),
    "16-bit PNG": png_with_16_bits(),
    "palette PNG": palette_with_transparency(),
    "GIF": frames("GIF"),
    "WebP": noise("WEBP", (16, 12)),
    "lossless WebP": frames("WEBP", lossless=True),
    "BMP": noise("BMP", (16, 12)),
    "TIFF": noise("TIFF", (16, 12)),
    "compressed TIFF": noise("TIFF", (16, 12), compression="tiff_lzw"),
    "16-bit TIFF": grey_with_16_bits("TIFF"),
    "ICO": saved(plain(size=(16, 16)), "ICO"),
    "TGA": noise("TGA", (16, 12)),
    "PPM": noise("PPM", (16, 12)),
    "MPO": pages("MPO"),
}  # fmt: skip


def damaged(content, changes, length, inserted):
    """Change some bytes, mostly in the header, insert one run of bytes, and cut the file."""
    content = bytearray(content)
    for place, value in changes:
        content[int(place**3 * (len(content) - 1))] = value
    if inserted:
        at = int(inserted[0] * len(content))
        content[at:at] = inserted[1]
    return bytes(content[: max(1, int(length * len(content)))])


DAMAGE = st.tuples(
    st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), max_size=6),
    st.one_of(st.just(1.0), st.floats(0, 1)),
    st.one_of(st.none(), st.tuples(st.floats(0, 1), st.binary(min_size=1, max_size=8))),
)


@pytest.mark.parametrize("kind", FORMATS)
@settings(max_examples=60)
@given(damage=DAMAGE)
def test_damaged_file_is_read_or_raises_data_error(kind, damage):
    content = damaged(FORMATS[kind], *damage)
    refusal = "an image: cannot be read as an image: -"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            image = open_image(content)
        except DataError as error:
            refusal, image = str(error), None
    assert refusal.startswith("an image: cannot be read as an image: ")
    assert "\n" not in refusal
    assert image is None or (image.mode == "RGB" and image.width * image.height > 0)


# Through dataset and loader


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train(["image number 0123456789", "a dog"] * 3, 600)


def write_dataset(folder):
    """Write all files above; return the captions of readable ones by path, and the paths of the others."""
    rows, good, bad = ["image,caption"], {}, set()
    for number, (name, make, _) in enumerate([*READ.values(), *REFUSED.values()]):
        path = folder / f"{number:03}-{name}"
        path.write_bytes(make())
        rows.append(f"{path.name},image number {number}")
        if number < len(READ):
            good[str(path)] = f"image number {number}"
        else:
            bad.add(str(path))
    for number, (make, _) in enumerate(list(NOT_FILES.values())[1:7]):
        path = folder / f"not-a-file-{number}.jpg"
        make(path)
        rows.append(f"{path.name},no image")
        bad.add(str(path))
    (folder / "all.csv").write_text("\n".join(rows), encoding="utf-8")
    return good, bad


@pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX pipes, sockets and links")
@pytest.mark.filterwarnings("ignore")  # from Pillow, for broken EXIF
@pytest.mark.parametrize("num_workers", [None, 1])
def test_all_files_in_one_dataset(tmp_path, tokenizer, num_workers):
    good, bad = write_dataset(tmp_path)
    with warnings.catch_warnings(action="ignore"):
        data = open_data(tmp_path / "all.csv", "all", on_error="skip", max_skip_fraction=1.0)
    preprocess = Preprocess(preset("bert_vit_tiny"))
    options = LoaderOptions(len(data), 16, num_workers=num_workers)
    skip = replace(options, on_error="skip", max_skip_fraction=1.0)
    with warnings.catch_warnings(record=True, action="always") as shown:
        loader = ImageCaptionLoader(data, tokenizer, preprocess, skip)
        batches = [*loader.epoch(0), *loader.epoch(1)]
        loader.close()
    assert loader.skip_log.reasons.keys() | data.skip_log.reasons.keys() == bad
    assert (
        len([warning for warning in shown if "(skipped)" in str(warning.message)]) == MAX_WARNINGS
    )  # the rest is only counted
    read = set()
    for batch in batches:
        for index, pixels, tokens in zip(batch.indices.tolist(), batch.pixels, batch.tokens, strict=True):
            name = data.name(index)
            read.add(name)
            assert tokenizer.decode(tokens.tolist()).split()[2:] == list(good[name].split()[2])  # digits are tokens
            assert torch.equal(pixels, preprocess.pixels(open_image(name)))
    assert read == good.keys()

    def run_epoch(**skipping):
        with contextlib.closing(
            ImageCaptionLoader(data, tokenizer, preprocess, replace(options, **skipping))
        ) as loader:
            list(loader.epoch(0))

    with warnings.catch_warnings(action="ignore"):
        with pytest.raises(DataError, match="cannot be read as an image"):
            run_epoch()
        with pytest.raises(DataError, match=r"more than 5\.0%"):
            run_epoch(on_error="skip")


@pytest.mark.parametrize("num_workers", [0, 1])
def test_file_removed_during_epoch(tmp_path, tokenizer, num_workers):
    for number in range(20):
        (tmp_path / f"{number}.png").write_bytes(saved(plain((number, 0, 0)), "PNG"))
        (tmp_path / f"{number}.txt").write_text(f"image number {number}")
    data = open_data(tmp_path, "all")

    def epochs(**options):
        options = LoaderOptions(2, 16, num_workers=num_workers, **options)
        loader = ImageCaptionLoader(data, tokenizer, Preprocess(preset("bert_vit_tiny")), options)
        removed = int(loader._order(0)[-1, 0])
        first = loader.epoch(0)
        next(first)
        path = tmp_path / data.name(removed)
        content = path.read_bytes()
        path.unlink()
        try:
            return path, [*first, *loader.epoch(1)], loader.skip_log
        finally:
            loader.close()
            path.write_bytes(content)

    with pytest.raises(DataError, match=r"png: cannot be read as an image: there is no such file"):
        epochs()
    with pytest.warns(UserWarning, match="no such file") as warned:
        path, batches, skip_log = epochs(on_error="skip")
    assert len([warning for warning in warned if "no such file" in str(warning.message)]) == 1
    assert list(skip_log.reasons) == [str(path)]
    assert sorted(len(batch.indices) for batch in batches) == [1, 1, *[2] * 17]
    assert str(path) not in {data.name(k) for batch in batches for k in batch.indices.tolist()}


# Captions: the caption in JSON (for JSONL and tars), its bytes (for .txt and CSV), and the expected captions or error.
CAPTIONS = {
    "plain": ('"a dog"', b"a dog", ["a dog"]),
    "umlauts": ('"ein B\\u00e4r \\ud83d\\udc3b"', "ein Bär 🐻".encode(), ["ein Bär 🐻"]),
    "empty": ('""', b"", "has no caption"),
    "blank": ('" \\n\\t "', b"   ", "has no caption"),
    "a number": ("1984", b"1984", ["1984"]),
    "a fraction": ("0.5", b"0.5", ["0.5"]),
    "null": ("null", b"", "has no caption"),
    "a list": ('["a dog", "", "two dogs"]', None, ["a dog", "two dogs"]),
    "a list of null": ("[null]", None, "has no caption"),
    "an object": ('{"en": "a dog"}', None, "expected|is a dict"),
    "true": ("true", None, "expected"),
    "half a surrogate pair": ('"a \\ud800"', None, "half a surrogate pair"),
    "a NUL character": ('"a\\u0000dog"', b"a\0dog", "NUL"),
    "another encoding": (None, "café".encode("latin-1"), "is not UTF-8"),
    "long": (f'"{"word " * 10_000}"', b"word " * 10_000, [("word " * 10_000).strip()]),
    "megabytes": (f'"{"a" * 3_000_000}"', b"a" * 3_000_000, "characters|bytes"),
}
GOOD = 19


def make_jsonl(folder, value, _):
    lines = [f'{{"image": "{k}.png", "caption": "number {k}"}}' for k in range(GOOD)]
    (folder / "a.jsonl").write_text("\n".join([*lines, f'{{"image": "x.png", "caption": {value}}}']))
    return folder / "a.jsonl"


def make_csv(folder, _, value):
    lines = [f"{k}.png,number {k}".encode() for k in range(GOOD)]
    (folder / "a.csv").write_bytes(b"\n".join([b"image,caption", *lines, b"x.png," + value]))
    return folder / "a.csv"


def make_texts(folder, _, value):
    for k in range(GOOD):
        (folder / f"{k}.txt").write_text(f"number {k}")
    (folder / "x.txt").write_bytes(value)
    return folder


def make_tar(folder, value, text):
    with tarfile.open(folder / "a.tar", "w") as tar:
        for name in [*map(str, range(GOOD)), "x"]:
            text_json = json.dumps({"caption": f"number {name}"}) if name != "x" else f'{{"caption": {value}}}'
            parts = {"png": (folder / f"{name}.png").read_bytes(), "json": text_json.encode()}
            if name == "x" and value is None:
                parts = {"png": parts["png"], "txt": text}
            for ending, content in parts.items():
                member = tarfile.TarInfo(f"{name}.{ending}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    return folder / "a.tar"


@pytest.mark.parametrize(
    ("make", "case"),
    [
        pytest.param(make, case, id=f"{make.__name__}-{case}")
        for make in (make_jsonl, make_csv, make_texts, make_tar)
        for case, (value, text, _) in CAPTIONS.items()
        if (value if make is make_jsonl else value or text if make is make_tar else text) is not None
    ],
)
def test_caption_is_read_or_raises(tmp_path, make, case):
    value, text, expected = CAPTIONS[case]
    for number, name in enumerate([*map(str, range(GOOD)), "x"]):
        (tmp_path / f"{name}.png").write_bytes(saved(plain((number, 0, 0)), "PNG"))
    spec = make(tmp_path, value, text)
    if isinstance(expected, list):
        data = open_data(spec, "all")
        index = next(k for k in range(len(data)) if "x.png" in data.name(k))
        assert data.captions[index] == expected
        assert data[index][0].getpixel((0, 0)) == (GOOD, 0, 0)
    else:
        with pytest.raises(DataError, match=expected) as caught:
            open_data(spec, "all")
        assert len(str(caught.value)) < 1_000
        with pytest.warns(UserWarning, match=expected) as warned:
            data = open_data(spec, "all", on_error="skip")
        assert len(warned) == len(data.skip_log) == 1
    rest = {captions[0]: image.getpixel((0, 0)) for image, captions in data if captions[0].startswith("number")}
    assert rest == {f"number {k}": (k, 0, 0) for k in range(GOOD)}
