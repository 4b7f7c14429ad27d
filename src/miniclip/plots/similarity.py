"""Similarity matrix of validation pairs, and the distributions of positive and negative cosines.

The colors have a fixed scale, so that the plots of all runs compare. A trained model shows a bright diagonal and two
separate distributions. In a uniform matrix the model cannot distinguish the pairs. Letters: n pairs.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from miniclip.evaluation.retrieval import Embeddings
from miniclip.plots.figure import NEGATIVE_COLOR, POSITIVE_COLOR, new_figure, write_figure

FILE = "similarities.png"
MATRIX_PAIRS = 48  # each cell stays several pixels wide
HISTOGRAM_PAIRS = 1000
BINS = 100  # number of bins for cosines from -1 to 1
COLOR_RANGE = (0.0, 1.0)  # cosines; fixed, since a range that follows the data shows noise as a pattern


def spaced_indices(n: int, limit: int) -> Tensor:
    """Return at most `limit` evenly spaced indices below n: `spaced_indices(10, 3)` is `[0, 3, 6]`."""
    count = min(n, limit)
    return torch.arange(count) * n // max(1, count)


def pair_cosines(embeddings: Embeddings, limit: int) -> Tensor:
    """Return the cosines (n, n) of up to `limit` evenly spaced images with the first caption of each."""
    rows = spaced_indices(len(embeddings.images), limit).to(embeddings.image_indices.device)
    first_captions = torch.searchsorted(embeddings.image_indices, rows)
    return (embeddings.images[rows].float() @ embeddings.texts[first_captions].float().T).cpu()


def plot_similarities(embeddings: Embeddings, path: str | Path, title: str = "") -> None:
    """Plot the similarity matrix and the distributions of positive and negative cosines.

    Args:
        embeddings: validation data; captions in the order of their images.
        path: PNG file, written atomically.
        title: title of the figure.
    """
    figure = new_figure(11, 5.2, automatic_layout=False)
    matrix_axes = figure.add_axes((0.06, 0.12, 0.35, 0.74))  # left, bottom, width, height
    bar_axes = figure.add_axes((0.42, 0.12, 0.015, 0.74))
    histogram_axes = figure.add_axes((0.56, 0.19, 0.41, 0.67))
    matrix, (low, high) = pair_cosines(embeddings, MATRIX_PAIRS), COLOR_RANGE
    heat_map = matrix_axes.imshow(matrix.numpy(), cmap="viridis", interpolation="nearest", vmin=low, vmax=high)
    matrix_axes.set(xlabel="caption", ylabel="image", title=f"Similarity matrix of {len(matrix)} pairs")
    figure.colorbar(heat_map, cax=bar_axes, label="cosine; below 0 as 0")
    _plot_histograms(histogram_axes, pair_cosines(embeddings, HISTOGRAM_PAIRS))
    figure.suptitle(title, parse_math=False)
    write_figure(figure, path)


def separation(positive: Tensor, negative: Tensor) -> float | None:
    """Return the fraction of comparisons in which a positive pair has a higher cosine than a negative one.

    It is the area under the ROC curve: 1 if the distributions are separate, 0.5 by chance. A tie counts half. None if
    either kind lacks finite cosines.
    """
    positive, negative = (values[values.isfinite()] for values in (positive, negative))
    if not len(positive) or not len(negative):
        return None
    negative = negative.sort().values
    below, not_above = (torch.searchsorted(negative, positive.contiguous(), right=right) for right in (False, True))
    return float((below + not_above).double().mean() / 2 / len(negative))


def _plot_histograms(axes: Any, cosines: Tensor) -> None:
    positive = cosines.diagonal()
    negative = cosines[~torch.eye(len(cosines), dtype=torch.bool)]
    for values, color, name in (
        (negative, NEGATIVE_COLOR, "negative pairs"),
        (positive, POSITIVE_COLOR, "positive pairs"),
    ):
        if values.isfinite().any():
            values = values[values.isfinite()]
            label = f"{name}, mean {float(values.mean()):.2f}"
            axes.hist(values.numpy(), bins=BINS, range=(-1, 1), density=True, color=color, alpha=0.6, label=label)
    fraction = separation(positive, negative)
    result = "" if fraction is None else f"\npositive above negative: {fraction:.0%}; by chance 50%"
    axes.set(
        xlabel="cosine",
        xlim=(min(-0.2, float(cosines.nan_to_num().min())), 1),
        title=f"Distribution of cosines, {len(cosines):,} pairs{result}",
    )
    axes.set_yticks([])
    axes.spines[["top", "right", "left"]].set_visible(False)
    if axes.patches:
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=2, fontsize=9, frameon=False)
