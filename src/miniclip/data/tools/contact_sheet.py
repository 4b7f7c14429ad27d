"""A contact sheet: some pictures of a data set, each with its first caption below, in one PNG."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from miniclip.data.dataset import ImageCaptionDataset, image_of
from miniclip.utils.atomic import write_atomically

SIDE, GAP, LINES, TEXT = 176, 12, 4, 13  # pixels: of a picture's box, between boxes; lines of a caption, its letters
GROUND, INK, BOX = "white", (30, 30, 30), (236, 236, 236)


def contact_sheet(
    data: ImageCaptionDataset,
    path: str | Path,
    *,
    indices: Sequence[int] | None = None,
    count: int = 30,
    columns: int = 6,
) -> None:
    """Draw pictures from all over a data set, at equal distances, into a PNG; written atomically.

    Args:
        data: pictures with captions.
        path: the PNG.
        indices: of the pictures to choose from; None: all.
        count: how many to draw at most.
        columns: of the sheet.

    Raises:
        ValueError: there is none to draw.
        DataError: a picture cannot be read.
    """
    known = range(len(data)) if indices is None else indices
    if not known:
        raise ValueError("no picture can be read: there is no sheet to draw")
    count = min(count, len(known))
    chosen = [known[k * len(known) // count] for k in range(count)]
    columns = min(columns, count)
    rows = -(-count // columns)
    font = _font()
    texts = [wrapped(data.captions[index][0], font) for index in chosen]
    line = TEXT + 4
    width, height = SIDE + GAP, SIDE + max(map(len, texts)) * line + 2 * GAP
    sheet = Image.new("RGB", (columns * width + GAP, rows * height + GAP), GROUND)
    draw = ImageDraw.Draw(sheet)
    for place, index in enumerate(chosen):
        left, top = GAP + place % columns * width, GAP + place // columns * height
        draw.rectangle((left, top, left + SIDE - 1, top + SIDE - 1), fill=BOX)
        picture = _fitted(image_of(data, index, SIDE))
        sheet.paste(picture, (left + (SIDE - picture.width) // 2, top + (SIDE - picture.height) // 2))
        for number, text in enumerate(texts[place]):
            draw.text((left, top + SIDE + GAP // 2 + number * line), text, fill=INK, font=font)
    write_atomically(Path(path), lambda temporary: sheet.save(temporary, "PNG"))


def wrapped(caption: str, font: ImageFont.FreeTypeFont, lines: int = LINES, width: int = SIDE) -> list[str]:
    """A caption in lines of a width; what does not fit ends in an ellipsis, and words that are too long are broken."""
    words = caption[:1000].split()
    done: list[str] = []
    while words and len(done) < lines:
        text = ""
        while words and font.getlength(f"{text} {words[0]}".strip()) <= width:
            text = f"{text} {words.pop(0)}".strip()
        if not text:
            kept = _that_fit(words[0], font, width)
            text, words[0] = words[0][:kept], words[0][kept:]
        done.append(text)
    if words:
        last = f"{done[-1]}…" if font.getlength(f"{done[-1]}…") <= width else ""
        done[-1] = last or f"{done[-1][: _that_fit(done[-1], font, width - int(font.getlength('…')) - 1)]}…"
    return done


def _that_fit(word: str, font: ImageFont.FreeTypeFont, width: int) -> int:
    """How many letters, one at least."""
    return next((k for k in range(1, len(word)) if font.getlength(word[: k + 1]) > width), len(word))


def _fitted(picture: Image.Image) -> Image.Image:
    """In the box as a whole, enlarged at most twice."""
    scale = min(SIDE / picture.width, SIDE / picture.height, 2.0)
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    return picture.resize(size, Image.Resampling.LANCZOS)


def _font() -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which matplotlib brings along: Latin, Greek, Cyrillic, Arabic and Hebrew letters, no CJK."""
    import matplotlib

    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"), TEXT)
