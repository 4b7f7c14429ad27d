"""Plot of an explanation: the image, the heat map over it, and the words shaded by their relevance."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from miniclip.explanation.explain import TOP_FRACTION, Explanation
from miniclip.explanation.patches import enlarge
from miniclip.plots.figure import new_figure, write_figure

WORD_COLOR = "#f28e2b"
MIN_PIXELS = 224  # smaller images are enlarged, so that their pixels stay sharp


def plot_explanation(explanation: Explanation, path: str | Path) -> None:
    """Draw an explanation into a PNG file, written atomically."""
    figure = new_figure(8.6, 5.0, automatic_layout=False)
    image = explanation.image.permute(1, 2, 0).numpy()
    for left, title in ((0.03, "image as the model takes it"), (0.49, f"relevance, {explanation.method}")):
        axes = figure.add_axes((left, 0.22, 0.43, 0.68))
        axes.imshow(image, interpolation="nearest" if len(image) < MIN_PIXELS else "antialiased")
        axes.set_axis_off()
        axes.set_title(title, fontsize=10)
    side = len(image) - 0.5
    heat_map = axes.imshow(
        explanation.heat_map.numpy(), cmap="turbo", alpha=0.55, vmin=0, vmax=1, extent=(-0.5, side, side, -0.5)
    )
    figure.colorbar(heat_map, cax=figure.add_axes((0.93, 0.24, 0.015, 0.64))).ax.tick_params(labelsize=8)
    _draw_words(figure, explanation)
    removed = f"{explanation.similarity_without_top:.3f} without the top {TOP_FRACTION:.0%} of the patches"
    figure.text(0.5, 0.04, f"similarity {explanation.similarity:.3f}; {removed}", ha="center", fontsize=10)
    write_figure(figure, path)


def _draw_words(figure: Any, explanation: Explanation) -> None:
    """Draw the words in one centered line, each on a background as strong as its relevance."""
    from matplotlib.colors import to_rgba

    renderer = figure.canvas.get_renderer()
    width = figure.bbox.width
    size = min(14.0, 14.0 * 90 / max(1, sum(len(word.text) + 2 for word in explanation.words)))
    texts = [
        figure.text(0, 0.14, word.text, fontsize=size, va="center", parse_math=False,
                    bbox={"boxstyle": "round,pad=0.25", "fc": to_rgba(WORD_COLOR, 0.85 * word.relevance), "ec": "none"})
        for word in explanation.words
    ]  # fmt: skip
    gap = 0.6 * size * figure.dpi / 72
    widths = [text.get_window_extent(renderer).width + gap for text in texts]
    left = (width - sum(widths)) / 2
    for text, extent in zip(texts, widths, strict=True):
        text.set_x((left + gap / 2) / width)
        left += extent


def heat_layer(explanation: Explanation, side: int) -> Image.Image:
    """Return the heat map of an explanation as a layer to lay over the image.

    Args:
        explanation: an explanation.
        side: width and height of the layer in pixels.

    Returns:
        RGBA; irrelevant parts are transparent, so that they show the image.
    """
    from matplotlib import colormaps

    values = enlarge(explanation.heat_map, side).numpy()
    pixels = (colormaps["turbo"](values) * 255).astype(np.uint8)
    pixels[..., 3] = (255 * values).astype(np.uint8)
    return Image.fromarray(pixels)
