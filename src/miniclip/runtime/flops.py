"""What a step costs, counted, and what share of the machine's peak it makes use of, measured.

Counted are the multiplications and additions of the towers' matrix products, two for each pair of numbers, forward once
and backward twice as much: three times forward, or once for a tower that is not trained. That is what the model needs,
not what is spent on it: what is computed twice to save memory counts once (as in PaLM's model FLOPs utilisation,
Chowdhery et al. 2022, appendix B, https://arxiv.org/abs/2204.02311). Norms, activations, the loss and AdamW are left
out. Captions count as far as the batch reaches, to its longest one; pictures by the patches that are kept; the last
block as far as the pooled token needs it.

The peak is measured: the best of some products of square matrices in the run's precision, all threads at work. No other
figure holds for every machine, and in practice no product is faster.
Letters: B batch, T tokens of a tower, P patches, D width, M width of the MLP, E embedding.
"""

from __future__ import annotations

import functools
import time

import torch

from miniclip.config import CLIPConfig, ImageConfig, TextConfig
from miniclip.fast.matmul import matmul
from miniclip.fast.towers import FastTextTransformer, FastVisionTransformer
from miniclip.inference.model import CLIPModel
from miniclip.models.text import TextTransformer
from miniclip.models.vision import VisionTransformer
from miniclip.runtime.precision import Precision

SIDE = {"cpu": 1024, "cuda": 8192}  # of the matrices: large enough for the peak, small enough for the memory
SECONDS = 0.1  # that the measurement goes on, and three products at least
FORWARD_AND_BACKWARD = 3

IMAGE_TOWERS = (VisionTransformer, FastVisionTransformer)
TEXT_TOWERS = (TextTransformer, FastTextTransformer)


def image_flops(config: CLIPConfig, patch_dropout: float = 0.0) -> int:
    """FLOPs of embedding one picture, forward."""
    image, E = config.image, config.embed_dim
    D, P = image.width, image.patches
    T = int(image.class_token) + max(1, round(P * (1 - patch_dropout)))
    pooled = _asked(image, T) if image.pooling == "attention" else 0
    projected = 0 if image.projection == "none" else 2 * D * E
    blocks = _blocks(image, T, one=image.pooling == "class")
    return 2 * P * 3 * image.patch_size**2 * D + blocks + pooled + projected


def text_flops(config: CLIPConfig, tokens: int) -> int:
    """FLOPs of embedding one caption in a batch of so many tokens a row, forward."""
    projected = 0 if config.text.projection == "none" else 2 * config.text.width * config.embed_dim
    return _blocks(config.text, tokens, one=True) + projected


def _blocks(tower: ImageConfig | TextConfig, T: int, one: bool) -> int:
    """Of a tower's blocks: queries, keys, values and the output 4 D^2 a token, the MLP 2 D M, attention 2 T D.

    Of the last block one token alone, where that is all that the pooling takes.
    """
    D, M = tower.width, tower.mlp_width
    whole = tower.layers - 1 if one else tower.layers
    return whole * 2 * T * (4 * D * D + 2 * D * M + 2 * T * D) + (_asked(tower, T) if one else 0)


def _asked(tower: ImageConfig | TextConfig, T: int) -> int:
    """Of a block that one token asks: keys and values of all, then the rest for the one."""
    D, M = tower.width, tower.mlp_width
    return 4 * T * D * D + 4 * T * D + 4 * D * D + 4 * D * M


def pair_flops(model: CLIPModel, tokens: int, patch_dropout: float = 0.0) -> int | None:
    """FLOPs of a training step for each of its pairs.

    Args:
        model: a tower is trained where any weight of it is.
        tokens: T of the batch's captions.
        patch_dropout: the share of the patches that is left out.

    Returns:
        FLOPs; None for a model with towers of its own, which nobody has counted.
    """
    if type(model.image) not in IMAGE_TOWERS or type(model.text) not in TEXT_TOWERS:
        return None
    image, text = (
        FORWARD_AND_BACKWARD if any(p.requires_grad for p in tower.parameters()) else 1
        for tower in (model.image, model.text)
    )
    return image * image_flops(model.config, patch_dropout) + text * text_flops(model.config, tokens)


@functools.cache
def peak_flops(device: torch.device, precision: Precision) -> float:
    """FLOPs a second of the best product of square matrices in a precision, on one device, measured once a process."""
    dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
    side = SIDE.get(device.type, 2048)
    a, b = (torch.full((side, side), 0.5, dtype=dtype, device=device) for _ in range(2))
    best, spent, products = float("inf"), 0.0, 0
    while spent < SECONDS or products < 3:
        _wait(device)
        start = time.perf_counter()
        matmul(a, b)
        _wait(device)
        seconds = time.perf_counter() - start
        best, spent, products = min(best, seconds), spent + seconds, products + 1
    return 2 * side**3 / best


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
