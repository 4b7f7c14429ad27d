"""RAW files of cameras, developed by rawpy (LibRaw) with the camera's white balance, upright, at half their size."""

from __future__ import annotations

import io
from pathlib import Path

from PIL import Image

from miniclip.data.decoding import MAX_PIXELS
from miniclip.errors import UnreadableError


def open_raw(source: bytes | Path, name: str) -> Image.Image:
    """Open a RAW file as an RGB image.

    Args:
        source: the path of a file, or its bytes.
        name: the file's name in error messages.

    Raises:
        ImportError: rawpy is not installed.
        DataError: the file cannot be read.
    """
    try:
        import rawpy
    except ImportError:
        raise ImportError(
            'it is a RAW file of a camera, which needs rawpy: pip install "miniclip[raw]", or convert it to JPEG',
            name="rawpy",
        ) from None
    try:
        with rawpy.imread(io.BytesIO(source) if isinstance(source, bytes) else str(source)) as raw:
            pixels = raw.sizes.raw_width * raw.sizes.raw_height
            if pixels > MAX_PIXELS:
                raise UnreadableError(name, f"has {pixels:,} pixels, more than {MAX_PIXELS:,}")
            return Image.fromarray(raw.postprocess(use_camera_wb=True, half_size=True, output_bps=8))
    except rawpy.LibRawError as error:
        reason = error.args[0].decode() if error.args and isinstance(error.args[0], bytes) else str(error)
        raise UnreadableError(name, f"cannot be read as a RAW file of a camera: {reason}; replace the file") from error
