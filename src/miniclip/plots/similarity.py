"""The similarity matrix of validation pictures and captions as a picture: `similarities.png`.

A model that has learnt shows a bright diagonal, and two heaps far apart beside it. A flat matrix is a model that knows
nothing yet; one bright all over has mapped everything to one point. Letters: n pairs of the matrix, E embedding.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from miniclip.evaluation.retrieval import Embeddings
from miniclip.plots.learning_curve import TRAIN, VALIDATION, new_figure, write_figure

FILE = "similarities.png"
SHOWN = 48  # pairs in the matrix: each still some pixels wide
COUNTED = 1000  # pairs in the heaps
BINS = 100  # of the cosines from -1 to 1


def evenly(n: int, most: int) -> Tensor:
    """At most so many of 0..n-1, evenly spread: `evenly(10, 3)` is `[0, 3, 6]`."""
    few = min(n, most)
    return torch.arange(few) * n // max(1, few)


def pairs(embedded: Embeddings, most: int) -> Tensor:
    """Cosines (n, n) of at most so many pictures, evenly spread, with the first caption of each."""
    rows = evenly(len(embedded.images), most).to(embedded.image_indices.device)
    firsts = torch.searchsorted(embedded.image_indices, rows)
    return (embedded.images[rows].float() @ embedded.texts[firsts].float().T).cpu()


def draw_similarities(embedded: Embeddings, path: str | Path, title: str = "") -> None:
    """Draw the matrix, and how the cosines of right and of wrong pairs are spread.

    Args:
        embedded: the validation data; captions in the order of their pictures.
        path: the picture, written atomically.
        title: above it.
    """
    matrix, many = pairs(embedded, SHOWN), pairs(embedded, COUNTED)
    right = many.diagonal()
    wrong = many[~torch.eye(len(many), dtype=torch.bool)]
    figure = new_figure(11, 5.2, arranged=False)
    left, heaps = figure.subplots(1, 2, width_ratios=(6, 5))
    figure.subplots_adjust(0.06, 0.16, 0.98, 0.86, wspace=0.1)
    image = left.imshow(matrix.numpy(), cmap="viridis", interpolation="nearest")
    left.set(xlabel="caption", ylabel="picture", title=f"{len(matrix)} pairs: the diagonal should be bright")
    figure.colorbar(image, ax=left, label="cosine", shrink=0.85)
    for values, color, name in ((wrong, VALIDATION, "wrong"), (right, TRAIN, "right")):
        if values.isfinite().any():
            values = values[values.isfinite()]
            label = f"{name} pairs, mean {float(values.mean()):.2f}"
            heaps.hist(values.numpy(), bins=BINS, range=(-1, 1), density=True, color=color, alpha=0.6, label=label)
    heaps.set(
        xlabel="cosine",
        xlim=(min(-0.2, float(many.nan_to_num().min())), 1),
        title=f"{len(many):,} pairs: two heaps, far apart",
    )
    heaps.set_yticks([])
    heaps.spines[["top", "right", "left"]].set_visible(False)
    if heaps.patches:
        heaps.legend(loc="upper center", bbox_to_anchor=(0.5, -0.12), ncols=2, fontsize=9, frameon=False)
    figure.suptitle(title)
    write_figure(figure, path)
