"""Memory that decoding takes: bounded for every format and mode."""

import io
from pathlib import Path

import numpy as np
import pytest
import torchvision  # noqa: F401  # else the first image pays for its import
from PIL import Image, features

from miniclip.data import decoding
from miniclip.data.decoding import open_image, rgb
from miniclip.data.decoding.jpeg import decode_image
from miniclip.errors import DataError

CLEAR_REFS = Path("/proc/self/clear_refs")  # Linux only: 5 resets the peak of the resident memory
SIZE = (3200, 2500)
PIXELS = SIZE[0] * SIZE[1]
MORE = 24 << 20  # strips, buffers of files, and what the allocator keeps


def encoded(kind, mode="RGB", orientation=None, **options):
    """Encode an image of a gradient."""
    image = Image.linear_gradient("L").resize(SIZE)
    if mode == "F":
        image = image.convert("F").point(lambda value: value / 255)
    elif mode == "I;16":
        image = Image.fromarray(np.asarray(image).astype(np.uint16) * 257)
    else:
        image = image.convert(mode)
    if orientation is not None:
        exif = Image.Exif()
        exif[0x0112] = orientation
        options["exif"] = exif
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def status(name):
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) << 10


def growth(function, *arguments):
    """Return by how many bytes the process grows at most while the function runs."""
    CLEAR_REFS.write_text("5")
    before = status("VmRSS")
    function(*arguments)
    return status("VmHWM") - before


CASES = {
    "RGB": lambda: encoded("PNG"),
    "RGBA": lambda: encoded("PNG", "RGBA", compress_level=1),
    "RGBA, turned": lambda: encoded("PNG", "RGBA", 6, compress_level=1),
    "LA": lambda: encoded("PNG", "LA", compress_level=1),
    "key": lambda: encoded("PNG", "L", transparency=3, compress_level=1),
    "palette": lambda: encoded("PNG", "P", transparency=3, compress_level=1),
    "GIF": lambda: encoded("GIF", "P", transparency=3),
    "CMYK": lambda: encoded("TIFF", "CMYK"),
    "F": lambda: encoded("TIFF", "F"),
    "I;16": lambda: encoded("PNG", "I;16", compress_level=1),
    "turned JPEG": lambda: encoded("JPEG", "RGB", 6),
    "progressive JPEG": lambda: encoded("JPEG", progressive=True, subsampling=0),
    "CMYK JPEG": lambda: encoded("JPEG", "CMYK", progressive=True),
    "deflated TIFF": lambda: encoded("TIFF", "RGBA", compression="tiff_adobe_deflate", strip_size=1 << 30),
    "WebP": lambda: encoded("WEBP", "RGBA", method=0),
}
if features.check("jpg_2000"):
    CASES["JPEG 2000"] = lambda: encoded("JPEG2000", "RGB")
if features.check("avif"):
    CASES["AVIF"] = lambda: encoded("AVIF", "RGBA", speed=10)


@pytest.mark.skipif(not CLEAR_REFS.exists(), reason="Linux measures the peak of a process")
@pytest.mark.parametrize("case", CASES)
def test_memory_is_bounded(case):
    content = CASES[case]()
    with Image.open(io.BytesIO(content)) as image:
        bytes_per_pixel = max(8, decoding._decoder_bytes(image))
    for function in (open_image, decode_image):
        assert growth(function, content) <= PIXELS * bytes_per_pixel + MORE


def test_limit_depends_on_the_decoder(monkeypatch):
    contents = {name: encoded("JPEG", progressive=name == "progressive") for name in ("baseline", "progressive")}
    monkeypatch.setattr(decoding, "MAX_BYTES", 8 * PIXELS)
    monkeypatch.setattr(decoding, "MAX_PIXELS", PIXELS)
    assert open_image(contents["baseline"]).size == SIZE
    with pytest.raises(DataError, match=r"3,200 x 2,500 pixels are more than 6,400,000"):
        open_image(contents["progressive"])


def test_strips_change_no_pixel(monkeypatch):
    """A large image is converted in strips, to the pixels of a conversion at once."""
    for mode in ("RGBA", "LA", "P", "CMYK", "I;16", "F", "L"):
        kind = "TIFF" if mode in ("CMYK", "F") else "PNG"
        content = encoded(kind, mode, **({"transparency": 3} if mode == "P" else {}))
        monkeypatch.setattr(rgb, "STRIP_PIXELS", PIXELS)
        whole = open_image(content).resize((320, 250), Image.Resampling.NEAREST).tobytes()
        monkeypatch.setattr(rgb, "STRIP_PIXELS", 3200 * 7)
        assert open_image(content).resize((320, 250), Image.Resampling.NEAREST).tobytes() == whole


def test_an_icon_that_holds_a_large_image_is_refused(monkeypatch):
    file = io.BytesIO()
    Image.new("RGBA", (64, 64)).save(file, "ICO", sizes=[(64, 64)])
    content = bytearray(file.getvalue())
    content[6:8] = b"\x08\x08"  # the directory has 8 x 8 pixels
    monkeypatch.setattr(decoding, "MAX_PIXELS", 1000)
    with pytest.raises(DataError, match="64 x 64 pixels"):
        open_image(bytes(content))


def test_a_file_that_is_too_large_is_refused(tmp_path):
    path = tmp_path / "a.webp"
    with path.open("wb") as file:
        file.write(b"RIFF\xff\xff\xff\x7fWEBPVP8 ")
        file.truncate(decoding.MAX_FILE_BYTES + 1)  # takes no space
    with pytest.raises(DataError, match=r"a\.webp: .* it has 1,073,741,825 bytes, more than 1,073,741,824"):
        open_image(path)
