"""Image files of every kind, good and bad, and the expected results.

A case has a file name, a function that makes the file, and the expected colour or error message. Colours are checked,
since an image that is read wrong is worse than one that is not read.
"""

import contextlib
import io
import os
import socket
import struct
import zlib
from functools import partial

import numpy as np
from PIL import Image, ImageCms, PngImagePlugin, features

RED, BLUE, WHITE, BLACK, GREY = (255, 0, 0), (0, 0, 255), (255, 255, 255), (0, 0, 0), (128, 128, 128)
HALF = {(0, 0): WHITE, (7, 5): RED}
ORIENTATION = 0x0112


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


# Other things than a file at a path: function that makes it, and error message.
def bind(path):
    with socket.socket(socket.AF_UNIX) as server, contextlib.chdir(path.parent):  # socket paths must be short
        server.bind(path.name)


NOT_FILES = {
    "nothing": (lambda path: None, "no such file"),
    "a folder": (lambda path: path.mkdir(), "it is a directory"),
    "a pipe": (lambda path: os.mkfifo(path), "it is a named pipe"),
    "a socket": (bind, "it is a socket"),
    "a device that never ends": (lambda path: path.symlink_to("/dev/zero"), "it is a device"),
    "a device without end": (lambda path: path.symlink_to("/dev/null"), "it is a device"),
    "a link to itself": (lambda path: path.symlink_to(path), "too many levels"),
    "a link to nothing": (lambda path: path.symlink_to(path.with_name("none")), "no such file"),
    "a file below a file": (lambda path: path.parent.joinpath("b").write_bytes(b""), None),
    "a name that is too long": (lambda path: None, None),
    "a name with a NUL": (lambda path: None, None),
}
