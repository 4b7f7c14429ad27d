"""Worst confusions: validation images to which a caption of another image is at least as near as all of their own.

The margin of an image is the cosine of the nearest caption of another image minus that of its own nearest caption.
Images with a margin below 0 are not confused. A tie counts against the model, as in recall. Captions with equal text
are not confusions. The plot often shows the cause: wrong labels, captions that fit many images, or details that the
model does not recognise. Letters: N images, M captions, n images at a time, U texts.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from miniclip.data.dataset import ImageCaptionDataset, image_of, name_of
from miniclip.errors import DataError
from miniclip.evaluation.retrieval import Embeddings
from miniclip.plots.figure import NEGATIVE_COLOR, POSITIVE_COLOR, new_figure, write_figure
from miniclip.plots.similarity import spaced_indices

FILE = "confusions.png"
MAX_IMAGES = 1000  # searched images, evenly spaced; a full search would cost as much as the evaluation
CHUNK = 128  # images whose similarities with all captions are in memory at a time
MAX_CONFUSIONS, MAX_NEGATIVES = 6, 3  # images in the plot, and captions of other images beside each
CANDIDATES = 16 * MAX_NEGATIVES  # nearest captions of other images; several may have equal text
IMAGE_SIZE = 256  # pixels, at most
LINE_WIDTH, MAX_LINES = 62, 2  # characters per line and lines per caption
MAX_NAME_LENGTH = 28


class Confusions(NamedTuple):
    """Worst confusions, and the numbers of images that were confused and searched."""

    worst: list[Confusion]
    confused: int
    searched: int


class Confusion(NamedTuple):
    """An image with its own nearest caption and the nearest captions of other images.

    Captions are pairs of index and cosine.
    """

    image: int
    positive: tuple[int, float]
    negatives: list[tuple[int, float]]

    @property
    def margin(self) -> float:
        """Cosine of the nearest negative minus that of the positive, at least 0."""
        return self.negatives[0][1] - self.positive[1]


def find_confusions(
    embeddings: Embeddings, captions: Sequence[Sequence[str]], limit: int = MAX_CONFUSIONS
) -> Confusions:
    """Return the confused images with the largest margins, largest first.

    Args:
        embeddings: images and captions; captions in the order of their images.
        captions: captions of all N images.
        limit: maximum number of images.
    """
    ids: dict[str, int] = {}
    text_ids = torch.tensor([ids.setdefault(caption, len(ids)) for group in captions for caption in group])  # (M,)
    searched = spaced_indices(len(embeddings.images), MAX_IMAGES)
    chunks = [_chunk_confusions(embeddings, rows, text_ids, limit) for rows in torch.split(searched, CHUNK)]
    worst = [confusion for chunk in chunks for confusion in chunk.worst]
    worst.sort(key=lambda confusion: -confusion.margin)
    return Confusions(worst[:limit], sum(chunk.confused for chunk in chunks), len(searched))


def _chunk_confusions(embeddings: Embeddings, rows: Tensor, text_ids: Tensor, limit: int) -> Confusions:
    """Return the confusions of some images (n,). Images whose text all captions share are not confused."""
    image_indices = embeddings.image_indices.cpu()
    similarity = (embeddings.images[rows.to(embeddings.images.device)] @ embeddings.texts.T).float().cpu()  # (n, M)
    similarity = similarity.nan_to_num(-1.0)
    is_positive = image_indices == rows[:, None]
    has_text = torch.zeros(len(rows), int(text_ids.max()) + 1, dtype=torch.bool)  # (n, U) texts of each image
    row, caption = is_positive.nonzero(as_tuple=True)
    has_text[row, text_ids[caption]] = True
    positive, positive_caption = similarity.masked_fill(~is_positive, -torch.inf).max(dim=1)
    negative = similarity.masked_fill(has_text[:, text_ids], -torch.inf)
    nearest, nearest_caption = negative.topk(min(CANDIDATES, negative.shape[1]), dim=1)
    margins = nearest[:, 0] - positive
    confused = int((margins >= 0).sum())
    worst = []
    for i in margins.topk(min(limit, confused)).indices.tolist():
        candidates = list(zip(nearest_caption[i].tolist(), nearest[i].tolist(), strict=True))
        negatives = _distinct([(caption, x) for caption, x in candidates if x >= positive[i]], text_ids, image_indices)
        worst.append(Confusion(int(rows[i]), (int(positive_caption[i]), float(positive[i])), negatives))
    return Confusions(worst, confused, len(rows))


def _distinct(candidates: Sequence[tuple[int, float]], text_ids: Tensor, image_indices: Tensor) -> list[Any]:
    """Return the first candidates that differ from each other in both text and image."""
    distinct: list[tuple[int, float]] = []
    texts, images = set[int](), set[int]()
    for caption, cosine in candidates:
        text, image = int(text_ids[caption]), int(image_indices[caption])
        if text not in texts and image not in images:
            distinct.append((caption, cosine))
            texts.add(text)
            images.add(image)
    return distinct[:MAX_NEGATIVES]


def plot_confusions(embeddings: Embeddings, data: ImageCaptionDataset, path: str | Path, title: str = "") -> None:
    """Plot the worst confusions: each image, its own nearest caption, and captions of other images that are as near.

    The title gets the number of confused images. Without one, the figure has only the title.

    Args:
        embeddings: embeddings of `data`.
        data: images and captions.
        path: PNG file, written atomically.
        title: title of the figure.
    """
    confusions = find_confusions(embeddings, data.captions)
    captions = [caption for group in data.captions for caption in group]
    image_indices = embeddings.image_indices.tolist()
    rows = -(-len(confusions.worst) // 2)
    figure = new_figure(13, 1 + 2.3 * rows, automatic_layout=False)
    grid = figure.subplots(max(1, rows), 4, squeeze=False, width_ratios=(1, 1.8, 1, 1.8))
    figure.subplots_adjust(0.01, 0.01, 0.99, 1 - 0.9 / figure.get_figheight(), wspace=0.05, hspace=0.15)
    for axes in grid.flat:
        axes.set_axis_off()
    for position, confusion in enumerate(confusions.worst):
        row, column = position // 2, 2 * (position % 2)
        _draw_image(grid[row, column], data, confusion.image)
        lines = [("own caption", confusion.positive, POSITIVE_COLOR)]
        lines += [(f"caption of image {image_indices[n[0]]}", n, NEGATIVE_COLOR) for n in confusion.negatives]
        _draw_captions(grid[row, column + 1], lines, captions)
    count = f"{confusions.confused:,} of {confusions.searched:,} images have a nearer caption of another image"
    figure.suptitle(f"{title}\n{count}", parse_math=False)
    write_figure(figure, path)


def _draw_image(axes: Any, data: ImageCaptionDataset, index: int) -> None:
    try:
        image = image_of(data, index, at_least=IMAGE_SIZE)
    except DataError:  # the file was readable during the evaluation
        axes.text(0.5, 0.5, "unreadable", ha="center", fontsize=8)
        return
    image.thumbnail((IMAGE_SIZE, IMAGE_SIZE))
    axes.imshow(image, interpolation="nearest" if max(image.size) < IMAGE_SIZE // 2 else "antialiased")
    name = Path(name_of(data, index)).name
    title = name if len(name) <= MAX_NAME_LENGTH else f"…{name[1 - MAX_NAME_LENGTH :]}"
    axes.set_title(title, fontsize=8, color="grey", parse_math=False)


def _draw_captions(axes: Any, lines: Sequence[tuple[str, tuple[int, float], str]], captions: Sequence[str]) -> None:
    """Write captions below each other, each with its cosine and its image."""
    y = 1.0
    for label, (index, cosine), color in lines:
        printable = "".join(character if character.isprintable() else " " for character in captions[index])
        wrapped = textwrap.wrap(printable, LINE_WIDTH, max_lines=MAX_LINES, placeholder=" …") or ["(empty)"]
        text = f"{cosine:+.2f}  {label}\n" + "\n".join(wrapped)
        axes.text(0, y, text, transform=axes.transAxes, va="top", fontsize=8, color=color, parse_math=False)
        y -= 0.068 * (len(wrapped) + 1) + 0.05
