"""Picture files to pictures: RGB, wholly decoded, upright, at most 8 bits a channel, transparency over white."""

from __future__ import annotations

import io
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from PIL import Image, UnidentifiedImageError

from miniclip.errors import DataError, UnreadableError

if TYPE_CHECKING:
    from torch import Tensor

# What a header may ask for, before memory is taken for the pixels.
MAX_PIXELS = 178_956_970  # of one picture, as Pillow has it: half a GiB as RGB; it warns at half of that
LONGEST_SIDE = 1 << 17  # JPEG ends at 65,535
SMALL = 1 << 24  # pixels; up to here a bomb does no harm
PIXELS_A_BYTE = 1_000  # of the file, in larger pictures: photographs have 1 to 50, and a bomb has 10,000
LONGEST_JPEG = 1 << 26  # bytes that are read at once; Pillow reads what is longer piece by piece

_NO_FILES = {  # file types, as `stat` names them
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}
_RGB = 3  # torchvision.io.ImageReadMode.RGB
_ORIENTATION = 0x0112  # the EXIF tag
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def as_image(item: Any) -> Image.Image:
    """Whatever stands for a picture: a path, a PIL image, or an array (H, W, 3) of uint8.

    Raises:
        FileNotFoundError: the path does not exist.
        DataError: the file cannot be read as a picture.
        TypeError: something else was passed.
    """
    if isinstance(item, Image.Image):
        return item
    if isinstance(item, str | Path):
        return open_image(existing(item))
    if getattr(item, "ndim", None) == 3 and item.shape[2] == 3 and str(item.dtype) == "uint8":
        return Image.fromarray(item)
    shape = f" {tuple(item.shape)} of {item.dtype}" if hasattr(item, "shape") else ""
    raise TypeError(
        f"found a {type(item).__name__}{shape}; expected a path, a PIL image, an array (H, W, 3) of uint8, a list of "
        "them, or a float tensor (N, 3, S, S) of normalised pixels"
    )


def existing(path: str | Path) -> str | Path:
    """The path, if there is something.

    Raises:
        FileNotFoundError: there is not.
    """
    if not Path(path).exists():
        raise FileNotFoundError(f"{path}: there is no such picture file")
    return path


def open_image(source: str | Path | bytes, name: str | None = None, at_least: int | None = None) -> Image.Image:
    """Open a picture file as an RGB image, wholly decoded, upright by its EXIF orientation, transparency over white.

    Pictures of 16 bits a channel are brought to 8. A file of several frames gives its first. A file's name says
    nothing about its format: what is in it does.

    Args:
        source: the path of a file, or the bytes of one.
        name: what errors call it; by default its path.
        at_least: a JPEG may come out at 1/2, 1/4 or 1/8 of its size, as long as both sides have so many pixels: its
            decoder then skips most of the work (docs/packing.md says what it does to the pixels). None: as it is.

    Raises:
        DataError: the file is missing, no regular file, empty, truncated, no picture, or larger than is allowed above.
    """
    with _opened(source, name) as (image, _):
        if at_least is not None:
            image.draft(None, (at_least, at_least))  # of formats other than JPEG it does nothing
        return _whole(image)


def decode_image(
    source: str | Path | bytes, name: str | None = None, at_least: int | None = None
) -> Image.Image | Tensor:
    """The same pixels as `open_image`, in a form that is quicker to work on where the file is a plain JPEG.

    That is one of three channels, upright, and of any size. It is decoded straight to a tensor, by torchvision, or by
    Pillow if it is to be reduced, which torchvision cannot do. Whatever torchvision refuses goes to Pillow: what is a
    bad picture, and what is said of it, does not depend on who decodes.

    Args:
        source: as in `open_image`, and likewise the others.
        name: what errors call it.
        at_least: how small a JPEG may come out.

    Returns:
        (3, H, W) uint8 of a plain JPEG, whose memory is that of (H, W, 3); else an RGB picture.

    Raises:
        DataError: as of `open_image`.
    """
    with _opened(source, name) as (image, file):
        plain = image.format == "JPEG" and image.mode == "RGB" and _orientation(image) == 1
        size = image.size
        if at_least is not None:
            image.draft(None, (at_least, at_least))
        pixels = _decode_jpeg(file, size) if plain and image.size == size else None
        if pixels is not None:
            return pixels
        picture = _whole(image)
        return as_tensor(picture) if plain else picture


def as_tensor(picture: Image.Image) -> Tensor:
    """An RGB picture to (3, H, W) uint8, whose memory is that of (H, W, 3)."""
    import numpy as np
    import torch

    return torch.from_numpy(np.array(picture)).permute(2, 0, 1)


@contextmanager
def _opened(source: str | Path | bytes, name: str | None) -> Iterator[tuple[Image.Image, BinaryIO]]:
    """A picture whose header was looked at, not yet decoded, and its file; what goes wrong inside is a `DataError`."""
    start, pixels = b"", 0
    try:
        with io.BytesIO(source) if isinstance(source, bytes) else _open_regular(source) as file:
            start = file.read(12)
            file.seek(0)
            # from an open file: by its path, Pillow maps some formats, and a file cut short meanwhile kills the process
            with Image.open(file) as image:
                pixels = image.width * image.height
                _check_header(image, pixels, file)
                yield image, file
    except Exception as error:  # Pillow's decoders fail with more kinds than its documentation names
        if isinstance(error, MemoryError) and 0 < pixels <= SMALL:
            raise  # the machine is out of memory, and the picture is not to blame
        named = name or ("a picture" if isinstance(source, bytes) else str(source))
        advice = "put a whole picture in its place, or take it out of the captions"
        raise UnreadableError(named, f"cannot be read as a picture: {_reason(error, start)}; {advice}") from error


def _whole(image: Image.Image) -> Image.Image:
    """Decode what was opened."""
    image.load()
    return _upright(to_rgb(image), _orientation(image))


def _decode_jpeg(file: BinaryIO, size: tuple[int, int]) -> Tensor | None:
    """A JPEG of three channels and (W, H) pixels to (3, H, W) uint8; None if torchvision does not take it."""
    import torch
    import torchvision  # noqa: F401  # registers the decoder

    length = file.seek(0, os.SEEK_END)
    if length > LONGEST_JPEG:
        return None
    content = bytearray(length)
    file.seek(0)
    file.readinto(content)  # type: ignore[attr-defined]  # both kinds that `_opened` opens have it
    try:
        # not torchvision.io.decode_jpeg, which warns each time that some later torchvision will have no decoders
        pixels: Tensor = torch.ops.image.decode_jpeg(torch.frombuffer(content, dtype=torch.uint8), _RGB)
    except (RuntimeError, AttributeError):  # cut short or broken; or a torchvision without libjpeg
        return None
    return pixels if pixels.shape == (3, size[1], size[0]) else None


def _open_regular(path: str | Path) -> BinaryIO:
    """Open a file for reading; the rest that a path can be is refused, since opening a pipe waits for its writer.

    Raises:
        OSError: there is no such file, it may not be read, or it is no file.
    """
    mode = Path(path).stat().st_mode
    if not stat.S_ISREG(mode):
        raise OSError(f"it is {_NO_FILES.get(stat.S_IFMT(mode), 'no regular file')}")
    return Path(path).open("rb")


def _check_header(image: Image.Image, pixels: int, file: BinaryIO) -> None:
    """Refuse what the header alone tells.

    Raises:
        DataError: the picture is too large or too empty, or a program that would have to be run.
    """
    size = f"{image.width:,} x {image.height:,} pixels"
    if not pixels:
        raise DataError(f"it has {size}")
    if pixels > MAX_PIXELS or max(image.size) > LONGEST_SIDE:
        raise DataError(f"{size} are more than {MAX_PIXELS:,}, or than {LONGEST_SIDE:,} on a side")
    if image.format == "EPS":
        raise DataError("EPS is a program that draws, and is not run: convert it to PNG")
    if pixels > SMALL:
        at = file.tell()
        length = file.seek(0, os.SEEK_END)
        file.seek(at)
        if pixels > PIXELS_A_BYTE * length:
            raise DataError(f"{size} in {length:,} bytes: empty, or made to fill the memory")


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert any mode to RGB; an RGB picture is returned as it is, without a copy."""
    if image.mode.startswith("I") or image.mode == "F":
        return _to_8_bits(image).convert("RGB")
    if image.mode in {"RGBA", "LA", "PA", "La", "RGBa"} or "transparency" in image.info:
        layer = image.convert("LA") if image.mode == "La" else image
        layer = layer.convert("RGBA")
        white = Image.new("RGBA", layer.size, "white")
        return Image.alpha_composite(white, layer).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def _to_8_bits(image: Image.Image) -> Image.Image:
    """Scale a grey picture of 16-bit integers, or of floats in 0..1 or 0..255, to 8 bits; Pillow would clip it."""
    values = image.convert("F")
    values.info.pop("transparency", None)  # a grey level of 16 bits, which means another one in 8
    full = 65535.0
    if image.mode == "F":
        full = 1.0 if float(values.getextrema()[1]) <= 1.0 else 255.0  # type: ignore[arg-type]  # one band: (low, high)
    factor = 255.0 / full
    return values.point(lambda value: value * factor + 0.5).convert("L")


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 (upright) to 8; 1 where there is none or where it cannot be read."""
    if "exif" not in image.info:  # most pictures, and asking Pillow for an Exif object is not free
        return 1
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # broken EXIF around sound pixels is common, and no viewer refuses such a picture
        return 1


def _upright(image: Image.Image, orientation: int) -> Image.Image:
    # not ImageOps.exif_transpose: it copies upright pictures too, and writes the EXIF anew, which fails on odd tags
    if orientation not in _UPRIGHT:
        return image
    turned = image.transpose(_UPRIGHT[orientation])
    for key in ("exif", "xmp"):  # or whoever looks there would turn it once more
        turned.info.pop(key, None)
    return turned


def _reason(error: Exception, start: bytes) -> str:
    """What is wrong with a picture file that begins with `start`, in one line."""
    if isinstance(error, FileNotFoundError):
        return "there is no such file"
    if isinstance(error, UnidentifiedImageError):
        return f"no picture format that Pillow knows begins with {start!r}" if start else "the file is empty"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()  # without the path, which the message begins with
    if isinstance(error, MemoryError):
        return "it does not fit into this machine's memory"
    return " ".join(str(error).split()) or type(error).__name__
