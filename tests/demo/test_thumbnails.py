"""Cache of thumbnails and check of uploads."""

import io
import struct
import threading
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

pytest.importorskip("fastapi", reason="needs the extra demo")

from miniclip.demo.limits import Limits, read_upload
from miniclip.demo.thumbnails import ByteCache, Thumbnails
from miniclip.demo.uploads import Uploads
from miniclip.errors import DataError


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 60))))
def test_cache_keeps_the_last_values_within_its_bytes(operations):
    cache, order = ByteCache(100), {}
    for key, size in operations:
        if size == 0:
            assert cache.get(key) == order.get(key)
            if key in order:
                order[key] = order.pop(key)
            continue
        cache.put(key, bytes(size))
        order.pop(key, None)
        order[key] = bytes(size)
        while sum(map(len, order.values())) > 100:
            order.pop(next(iter(order)))
        assert cache.size == sum(map(len, order.values())) <= 100
        assert len(cache) == len(order)


def test_value_larger_than_the_cache_is_not_kept():
    cache = ByteCache(10)
    cache.put("a", bytes(8))
    cache.put("b", bytes(11))
    assert cache.get("b") is None
    assert cache.get("a") == bytes(8)


def test_thumbnail_is_made_once_and_small():
    reads, free = [], threading.Event()

    def read(item, side):
        reads.append(item)
        free.wait(30)
        if item == 2:
            raise DataError("broken")
        return Image.new("RGB", (600, 300), "red")

    thumbnails = Thumbnails(read, 1 << 20, workers=1)
    first, second, broken = thumbnails.get(1, 100), thumbnails.get(1, 100), thumbnails.get(2, 100)
    assert first is second
    assert thumbnails.pending == 2
    free.set()
    image = Image.open(io.BytesIO(first.result(30)))
    assert (image.format, image.size) == ("JPEG", (100, 50))
    with pytest.raises(DataError):
        broken.result(30)
    assert thumbnails.get(1, 100).result(30) == first.result()
    assert reads == [1, 2]
    assert thumbnails.pending == 0
    thumbnails.close()


def test_thumbnail_has_no_metadata(photos, tmp_path):
    exif = Image.Exif()
    exif[0x010E] = "secret place"
    image = Image.open(photos / "00.jpg")
    image.info["exif"] = exif.tobytes()
    image.info["comment"] = b"secret"
    thumbnails = Thumbnails(lambda *_: image, 1 << 20)
    assert b"secret" not in thumbnails.get(1, 320).result(30)
    thumbnails.close()


def encoded(image, form="PNG", **options):
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def bomb(width, height):
    """Bytes of a small PNG file that names a size of many pixels."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(99))) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
def test_upload_equals_the_file(form, demo_model, train_data):
    content = encoded(train_data[0][0].resize((50, 40)), form)
    pixels = read_upload(content, demo_model.preprocess, Limits())
    assert demo_model.encode_image(pixels[None]).tolist() == demo_model.encode_image(content).tolist()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not an image that can be read; expected JPEG, PNG"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image"),
        (encoded(Image.new("RGB", (40, 40)), "PPM"), "not an image"),  # a format that no camera or browser writes
        (encoded(Image.effect_noise((64, 64), 90))[:-2000], "cannot be read as an image"),
        (bomb(9_000, 9_000), "9,000 x 9,000 pixels, more than 50,000,000"),
        (bomb(60_000, 60_000), "more than 50,000,000"),
        (bomb(5_000, 5_000), "a decompression bomb"),
        (bytes(20_971_521), "larger than 20 MiB"),
    ],
    ids=["empty", "svg", "eps", "ppm", "truncated", "bomb", "large_bomb", "small_bomb", "bytes"],
)
def test_other_uploads_are_refused(content, message, demo_model):
    with pytest.raises(DataError, match=message):
        read_upload(content, demo_model.preprocess, Limits())


def test_uploads_are_bounded_and_their_names_random():
    uploads = Uploads(2)
    names = [uploads.add(number) for number in range(2)]
    assert uploads.get(names[0]) == 0
    names.append(uploads.add(2))
    assert [uploads.get(name) for name in names] == [0, None, 2]
    assert len(uploads) == 2
    assert len(set(names)) == 3
    assert all(len(name) >= 16 for name in names)
