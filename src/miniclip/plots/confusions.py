"""The worst confusions as a picture: pictures whose own captions lost to those of others, `confusions.png`.

How badly a picture is confused is the cosine of the nearest caption of another picture less that of its own nearest
one. A caption that reads like one of its own, letter by letter, is no confusion. Often the picture shows at a glance
what is wrong: labels, captions that hold for many pictures, or what the model cannot see.
Letters: N pictures, M captions, n pictures at a time.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from miniclip.data.dataset import ImageCaptionDataset, image_of, name_of
from miniclip.errors import DataError
from miniclip.evaluation.retrieval import Embeddings
from miniclip.plots.learning_curve import new_figure, write_figure
from miniclip.plots.similarity import evenly

FILE = "confusions.png"
LOOKED_AT = 1000  # pictures, evenly spread: of more, the search would cost as much as the evaluation
AT_A_TIME = 128  # pictures whose similarities with all captions are held
SHOWN, WINNERS = 6, 3  # pictures, and captions of others beside each
SIDE = 256  # pixels of a picture, at most
WIDTH, LINES = 62, 2  # of a caption: letters in a line, lines
RIGHT, WRONG = "#2d7d2d", "#c03b3b"


class Confusion(NamedTuple):
    """A picture, its own nearest caption, and the nearest captions of others; each caption with its cosine."""

    picture: int
    right: tuple[int, float]
    wrong: list[tuple[int, float]]

    @property
    def margin(self) -> float:
        """By how much the wrong one is nearer; below 0 where it is not."""
        return self.wrong[0][1] - self.right[1]


def worst(embedded: Embeddings, captions: Sequence[Sequence[str]], count: int = SHOWN) -> list[Confusion]:
    """The pictures that are confused worst, the worst one first; where few are, the closest calls follow.

    Args:
        embedded: the pictures and captions; captions in the order of their pictures.
        captions: of all N pictures.
        count: how many.
    """
    ids: dict[str, int] = {}
    text = torch.tensor([ids.setdefault(c, len(ids)) for own in captions for c in own])  # (M,) equal where they read so
    found = [
        confusion
        for rows in torch.split(evenly(len(embedded.images), LOOKED_AT), AT_A_TIME)
        for confusion in _of(embedded, rows, text, len(ids), count)
    ]
    return sorted(found, key=lambda confusion: -confusion.margin)[:count]


def _of(embedded: Embeddings, rows: Tensor, text: Tensor, texts: int, count: int) -> Iterator[Confusion]:
    """The worst of some pictures, of which a picture is left out if no caption differs from its own."""
    owner = embedded.image_indices.cpu()
    similarity = (embedded.images[rows.to(embedded.images.device)] @ embedded.texts.T).float().cpu()  # (n, M)
    similarity = similarity.nan_to_num(-1.0)
    mine = owner == rows[:, None]
    known = torch.zeros(len(rows), texts, dtype=torch.bool)  # which texts a picture's own captions are
    row, caption = mine.nonzero(as_tuple=True)
    known[row, text[caption]] = True
    right, right_at = similarity.masked_fill(~mine, -torch.inf).max(dim=1)
    others = similarity.masked_fill(known[:, text], -torch.inf)
    best, at = others.topk(min(16 * WINNERS, others.shape[1]), dim=1)  # more than are shown: some may read the same
    for i in (best[:, 0] - right).topk(min(count, len(rows))).indices.tolist():
        wrong: list[tuple[int, float]] = []
        seen: set[Any] = set()
        for value, index in zip(best[i].tolist(), at[i].tolist(), strict=True):
            words, whose = ("text", int(text[index])), ("picture", int(owner[index]))
            if value > -torch.inf and not seen & {words, whose}:  # each of another picture, and another sentence
                wrong.append((index, value))
                seen |= {words, whose}
        if wrong:
            yield Confusion(int(rows[i]), (int(right_at[i]), float(right[i])), wrong[:WINNERS])


def draw_confusions(embedded: Embeddings, data: ImageCaptionDataset, path: str | Path, title: str = "") -> None:
    """Draw the worst confusions: each picture, its own caption, and the captions that won.

    Args:
        embedded: the data as the model sees it.
        data: the same pictures with their captions.
        path: the picture, written atomically.
        title: above it.
    """
    flat = [caption for own in data.captions for caption in own]
    owners = embedded.image_indices.tolist()
    found = worst(embedded, data.captions)
    rows = max(1, -(-len(found) // 2))
    figure = new_figure(13, 0.5 + 2.3 * rows, arranged=False)
    grid = figure.subplots(rows, 4, squeeze=False, width_ratios=(1, 1.8, 1, 1.8))
    figure.subplots_adjust(0.01, 0.01, 0.99, 1 - 0.6 / figure.get_figheight(), wspace=0.05, hspace=0.15)
    for axes in grid.flat:
        axes.set_axis_off()
    for place, confusion in enumerate(found):
        picture, words = grid[place // 2, 2 * (place % 2) : 2 * (place % 2) + 2]
        _draw_picture(picture, data, confusion.picture)
        _write_captions(words, confusion, flat, owners)
    figure.suptitle(title)
    write_figure(figure, path)


def _draw_picture(axes: Any, data: ImageCaptionDataset, index: int) -> None:
    try:
        picture = image_of(data, index, at_least=SIDE)
    except DataError:  # it could be read a moment ago
        axes.text(0.5, 0.5, "cannot be read", ha="center", fontsize=8)
        return
    picture.thumbnail((SIDE, SIDE))
    axes.imshow(picture, interpolation="nearest" if max(picture.size) < SIDE // 2 else "antialiased")
    name = Path(name_of(data, index)).name
    axes.set_title(name if len(name) <= 28 else f"…{name[-27:]}", fontsize=7, color="grey", parse_math=False)


def _write_captions(axes: Any, confusion: Confusion, flat: Sequence[str], owners: Sequence[int]) -> None:
    """The captions below each other, each with its cosine."""
    lines = [("its own", confusion.right, RIGHT)]
    lines += [(f"of picture {owners[index]}", (index, value), WRONG) for index, value in confusion.wrong]
    y = 1.0
    for whose, (index, cosine), color in lines:
        words = textwrap.wrap(_printable(flat[index]), WIDTH, max_lines=LINES, placeholder=" …") or ["(empty)"]
        text = f"{cosine:+.2f}  {whose}\n" + "\n".join(words)
        axes.text(0, y, text, transform=axes.transAxes, va="top", fontsize=8, color=color, parse_math=False)
        y -= 0.068 * (len(words) + 1) + 0.05


def _printable(caption: str) -> str:
    return "".join(letter if letter.isprintable() else " " for letter in caption)
