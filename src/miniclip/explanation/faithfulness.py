"""Faithfulness of heat maps: deletion and insertion curves, the pointing game, and a sanity check.

- Deletion and insertion (Petsiuk et al. 2018, arXiv 1806.07421): paint patches over, or uncover them, from the most to
  the least relevant. If the map is right, deletion lowers the similarity early and insertion raises it early.
- Pointing game (Zhang et al. 2018, arXiv 1608.00507): the most relevant patch lies on the object that the text names.
- Sanity check (Adebayo et al. 2018, arXiv 1810.03292): with random weights, the map must become another one.
A random map is the baseline of all three. Letters: B images, P patches, G patches per side, E embedding.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from miniclip.data.shapes.dataset import Shapes
from miniclip.data.shapes.drawing import draw_mask
from miniclip.data.splits import Split
from miniclip.explanation.patches import keep_patches, top_patches
from miniclip.explanation.relevance import Method, image_relevance
from miniclip.inference.images import normalised_pixels, read_pixels
from miniclip.inference.model import CLIPModel

STEPS = 10  # points of a curve after the first
BATCH = 32

Relevance = Callable[[CLIPModel, Tensor, Tensor], Tensor]  # model, pixels and text embeddings to (B, P)


class Faithfulness(NamedTuple):
    """Scores of one kind of heat map.

    Attributes:
        deletion: mean similarity while patches are removed, as a share of the complete image's; lower is better.
        insertion: the same while patches are uncovered; higher is better.
        deletion_curve: (STEPS + 1,) similarity after each step, averaged over the images.
        insertion_curve: the same.
    """

    deletion: float
    insertion: float
    deletion_curve: Tensor
    insertion_curve: Tensor


def relevance_of(method: Method | str) -> Relevance:
    """Return a function that computes maps; "random" draws them, as a baseline."""
    if method == "random":
        return lambda model, pixels, texts: torch.rand(
            len(pixels), model.config.image.patches, generator=torch.Generator().manual_seed(0)
        ).to(pixels.device)
    return lambda model, pixels, texts: image_relevance(model.image, pixels, texts, method)  # type: ignore[arg-type]


@torch.no_grad()
def faithfulness(model: CLIPModel, images: Sequence[Any], texts: Sequence[str], method: Method | str) -> Faithfulness:
    """Measure deletion and insertion over pairs of images and texts.

    Args:
        model: a CLIPModel.
        images: images, in any form that `model.encode_image` takes.
        texts: one text for each.
        method: "grad_eclip", "legrad" or "random".

    Raises:
        ValueError: the lists are empty, or their lengths differ.
    """
    require_pairs(images, texts)
    relevance = relevance_of(method)
    deletion: list[Tensor] = []
    insertion: list[Tensor] = []
    for start in range(0, len(images), BATCH):
        rows = range(start, min(start + BATCH, len(images)))
        pixels = _pixels(model, [images[row] for row in rows])
        embeddings = model.encode_text([texts[row] for row in rows])
        maps = relevance(model, pixels, embeddings)
        for keep, curves in ((False, deletion), (True, insertion)):
            curves.append(_curve(model, pixels, embeddings, maps, keep))
    return scores_of_curves(torch.cat(deletion), torch.cat(insertion))


def scores_of_curves(deletion: Tensor, insertion: Tensor) -> Faithfulness:
    """Return the scores of the curves (N, STEPS + 1) of N pairs."""
    removed, uncovered = (curves.mean(dim=0).cpu() for curves in (deletion, insertion))
    areas = [float(torch.trapezoid(curve) / STEPS / removed[0]) for curve in (removed, uncovered)]
    return Faithfulness(areas[0], areas[1], removed, uncovered)


def require_pairs(images: Sequence[Any], texts: Sequence[str]) -> None:
    """Raise ValueError unless there are as many images as texts, at least one."""
    if not len(images) or len(images) != len(texts):
        raise ValueError(f"{len(images)} images and {len(texts)} texts; expected equal numbers, at least 1")


@torch.no_grad()
def pointing_game(model: CLIPModel, method: Method | str, *, images: int = 100, split: Split = "test") -> float:
    """Return how often the most relevant patch lies on the named shape of `Shapes`, in percent.

    Each image has two shapes; the text names one of them by size, color and shape. A patch lies on a shape if at least
    a quarter of its pixels do.
    """
    from torchvision.transforms.functional import pil_to_tensor  # takes a second, which other measures do not need

    data, relevance, hits = Shapes(split, images), relevance_of(method), 0
    for index in range(images):
        scene = data.scene(index)
        named = scene.first if index % 2 == 0 else scene.second
        pixels = _pixels(model, [data[index][0]])
        text = model.encode_text(f"a {named.size} {named.color} {named.shape}")
        best = int(relevance(model, pixels, text)[0].argmax())
        config = model.config.image
        mask = pil_to_tensor(draw_mask(named, data.image_size))[None].float() / 255
        side = round(data.image_size * config.grid * config.patch_size / config.image_size)  # the patches cover it
        covered = F.adaptive_avg_pool2d(mask[..., :side, :side], config.grid).flatten()
        hits += bool(covered[best] >= 0.25)
    return 100 * hits / images


@torch.no_grad()
def sanity(model: CLIPModel, images: Sequence[Any], texts: Sequence[str], method: Method) -> float:
    """Return the rank correlation of the maps of a model and of the same model with random weights; near 0 is right."""
    randomised = copy.deepcopy(model)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        randomised.initialise()
    correlations = []
    for start in range(0, len(images), BATCH):
        rows = range(start, min(start + BATCH, len(images)))
        pixels, named = _pixels(model, [images[row] for row in rows]), [texts[row] for row in rows]
        maps = [image_relevance(each.image, pixels, each.encode_text(named), method) for each in (model, randomised)]
        correlations += [_rank_correlation(a, b) for a, b in zip(*maps, strict=True)]
    return float(torch.stack(correlations).mean())


def _pixels(model: CLIPModel, images: list[Any]) -> Tensor:
    """Normalized pixels (B, 3, S, S) in the dtype of the image tower."""
    pixels = torch.stack([read_pixels(image, model.preprocess) for image in images])
    return normalised_pixels(model, model.preprocess, pixels)


def _curve(model: CLIPModel, pixels: Tensor, texts: Tensor, maps: Tensor, keep: bool) -> Tensor:
    """Similarity (B, STEPS + 1) while the top patches are uncovered (keep) or removed."""
    steps = []
    for step in range(STEPS + 1):
        mask = top_patches(maps, step / STEPS)
        images = model.image(keep_patches(pixels, mask, model.config.image.patch_size, keep)).float()
        steps.append(F.cosine_similarity(images, texts, dim=1))
    return torch.stack(steps, dim=1)


def _rank_correlation(first: Tensor, second: Tensor) -> Tensor:
    """Spearman's correlation of two maps (P,)."""
    ranks = torch.stack([row.argsort().argsort().double() for row in (first, second)])
    return torch.corrcoef(ranks)[0, 1]
