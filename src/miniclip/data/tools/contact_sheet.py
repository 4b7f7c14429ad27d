"""Contact sheet: some images of a dataset, each with its first caption below, in one PNG."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo

from miniclip.data.dataset import ImageCaptionDataset, image_of
from miniclip.data.given import as_dataset
from miniclip.utils.atomic import write_atomically

IMAGE_SIDE, GAP, FONT_SIZE = 176, 12, 13  # pixels
MAX_CAPTION_LINES = 4
LINE_HEIGHT = FONT_SIZE + 4
SOFTWARE = "miniclip, contact sheet"  # in the file, so that a new sheet replaces an old one, and no image of the user
BACKGROUND, TEXT_COLOR, BOX_COLOR = "white", (30, 30, 30), (236, 236, 236)


def contact_sheet(
    data: ImageCaptionDataset,
    path: str | Path,
    *,
    indices: Sequence[int] | None = None,
    count: int = 30,
    columns: int = 6,
) -> None:
    """Draw evenly spaced images of a dataset into a PNG, which is written atomically.

    Args:
        data: images with captions.
        path: the PNG.
        indices: images to choose from; None: all.
        count: greatest number of images.
        columns: greatest number of columns.

    Raises:
        ValueError: no image can be read.
        DataError: an image cannot be read.
        FileExistsError: the file exists and is not a contact sheet.
    """
    data = as_dataset(data)
    require_sheet_path(Path(path))
    indices = range(len(data)) if indices is None else indices
    if not indices:
        raise ValueError("no image can be read, so that the contact sheet would be empty")
    count = min(count, len(indices))
    chosen = [indices[k * len(indices) // count] for k in range(count)]
    columns = min(columns, count)
    rows = -(-count // columns)
    font = _font()
    captions = [wrapped(data.captions[index][0], font) for index in chosen]
    width, height = IMAGE_SIDE + GAP, IMAGE_SIDE + max(map(len, captions)) * LINE_HEIGHT + 2 * GAP
    sheet = Image.new("RGB", (columns * width + GAP, rows * height + GAP), BACKGROUND)
    for position, (index, lines) in enumerate(zip(chosen, captions, strict=True)):
        corner = GAP + position % columns * width, GAP + position // columns * height
        _draw_image(sheet, corner, image_of(data, index, IMAGE_SIDE), lines, font)
    info = PngInfo()
    info.add_text("Software", SOFTWARE)
    write_atomically(Path(path), lambda temporary: sheet.save(temporary, "PNG", pnginfo=info))


def require_sheet_path(path: Path) -> None:
    """Check that a contact sheet can be written to a path and replaces nothing but an earlier sheet.

    Raises:
        ValueError: the file's suffix is not .png, or the path is a folder.
        FileNotFoundError: the file's folder does not exist.
        FileExistsError: the file is something else than a contact sheet.
    """
    if path.suffix.lower() != ".png":
        raise ValueError(f"{path}: the contact sheet is a PNG; call it {path.with_suffix('.png')}")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path}: the folder {path.parent} does not exist")
    if path.is_dir():
        raise ValueError(f"{path}: is a folder; the contact sheet is a file")
    if path.exists() and not _is_sheet(path):
        raise FileExistsError(f"{path} exists and is not a contact sheet: choose another name")


def _is_sheet(path: Path) -> bool:
    try:
        with Image.open(path) as image:
            return image.info.get("Software") == SOFTWARE
    except OSError:
        return False


def _draw_image(
    sheet: Image.Image,
    corner: tuple[int, int],
    image: Image.Image,
    lines: Sequence[str],
    font: ImageFont.FreeTypeFont,
) -> None:
    """Draw an image in its box, and its caption below."""
    left, top = corner
    draw = ImageDraw.Draw(sheet)
    draw.rectangle((left, top, left + IMAGE_SIDE - 1, top + IMAGE_SIDE - 1), fill=BOX_COLOR)
    image = _fitted(image)
    sheet.paste(image, (left + (IMAGE_SIDE - image.width) // 2, top + (IMAGE_SIDE - image.height) // 2))
    for number, line in enumerate(lines):
        draw.text((left, top + IMAGE_SIDE + GAP // 2 + number * LINE_HEIGHT), line, fill=TEXT_COLOR, font=font)


def wrapped(
    caption: str, font: ImageFont.FreeTypeFont, max_lines: int = MAX_CAPTION_LINES, width: int = IMAGE_SIDE
) -> list[str]:
    """Wrap a caption to lines of a width; long words are broken, and a caption that is too long ends in an ellipsis."""
    words = caption[:1000].split()
    lines: list[str] = []
    while words and len(lines) < max_lines:
        line = ""
        while words and font.getlength(f"{line} {words[0]}".strip()) <= width:
            line = f"{line} {words.pop(0)}".strip()
        if not line:
            length = _fitting_length(words[0], font, width)
            line, words[0] = words[0][:length], words[0][length:]
        lines.append(line)
    if words:
        last = lines[-1]
        if font.getlength(f"{last}…") > width:
            last = last[: _fitting_length(last, font, width - int(font.getlength("…")) - 1)]
        lines[-1] = f"{last}…"
    return lines


def _fitting_length(word: str, font: ImageFont.FreeTypeFont, width: int) -> int:
    """Return the number of letters that fit into a width, at least one."""
    return next((k for k in range(1, len(word)) if font.getlength(word[: k + 1]) > width), len(word))


def _fitted(image: Image.Image) -> Image.Image:
    """Resize an image to fit its box, enlarged at most twice."""
    scale = min(IMAGE_SIDE / image.width, IMAGE_SIDE / image.height, 2.0)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return image.resize(size, Image.Resampling.LANCZOS)


def _font() -> ImageFont.FreeTypeFont:
    """Return DejaVu Sans, a part of matplotlib: Latin, Greek, Cyrillic, Arabic and Hebrew letters, no CJK."""
    import matplotlib

    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"), FONT_SIZE)
