"""FLOPs of a training step, counted, and the peak FLOPs per second of the machine, measured.

The count has the multiplications and additions of the towers' matrix products. A trained tower counts three times its
forward pass (backward costs twice as much), one with LoRA twice (its weights have no gradient), a frozen one once. If
only some layers of a tower train, nothing is counted. Recomputation that saves memory is not counted, as in
PaLM's model FLOPs utilisation (Chowdhery et al. 2022, appendix B, https://arxiv.org/abs/2204.02311), nor are norms,
activations, the loss and AdamW. Captions have the length of the batch's longest one. Images have the patches that
dropout keeps. The last block counts as far as the pooled token needs it.

The peak is the fastest of some products of square matrices in the run's precision, with all threads.
Letters: B batch, T tokens of a tower, P patches, D width, M width of the MLP, E embedding.
"""

from __future__ import annotations

import functools
import time
from typing import Any

import torch
from torch import nn

from miniclip.config import CLIPConfig, ImageConfig, TextConfig
from miniclip.fast.matmul import matmul
from miniclip.fast.towers import FastTextTransformer, FastVisionTransformer
from miniclip.finetuning.lora import is_lora
from miniclip.inference.model import CLIPModel
from miniclip.models.stem import kernel_size, layer_sizes
from miniclip.models.text import TextTransformer
from miniclip.models.vision import VisionTransformer
from miniclip.runtime.precision import Precision

SIDE = {"cpu": 1024, "cuda": 8192}  # side of the matrices: large enough for the peak, small enough to fit
SECONDS = 0.1  # length of the measurement, which has at least three products
FORWARD_AND_BACKWARD, WITH_ADAPTERS = 3, 2

IMAGE_TOWERS = (VisionTransformer, FastVisionTransformer)
TEXT_TOWERS = (TextTransformer, FastTextTransformer)


def image_flops(config: CLIPConfig, patch_dropout: float = 0.0) -> int:
    """Return the FLOPs of the forward pass of one image."""
    image: Any = config.image  # another tower than a vision transformer raises at its first setting
    E = config.embed_dim
    D, P = image.width, image.patches
    T = int(image.class_token) + max(1, round(P * (1 - patch_dropout)))
    pooled = _single_query(image, T) if image.pooling == "attention" else 0
    projected = 0 if image.projection == "none" else 2 * D * E
    blocks = _blocks(image, T, single_query=image.pooling == "class")
    return _patch_embedding(image) + blocks + pooled + projected


def _patch_embedding(image: ImageConfig) -> int:
    """FLOPs of the patches, or of the convolutional stem."""
    P, D = image.patches, image.width
    if image.stem == "patch":
        return 2 * P * 3 * image.patch_size**2 * D
    total, channels, side = 2 * P * D * D, 3, image.image_size
    for out_channels, stride in layer_sizes(image):
        side //= stride
        total += 2 * side**2 * kernel_size(stride) ** 2 * channels * out_channels
        total += image.stem_residual_layers * 2 * side**2 * kernel_size(1) ** 2 * out_channels**2
        channels = out_channels
    return total


def text_flops(config: CLIPConfig, tokens: int) -> int:
    """Return the FLOPs of the forward pass of one caption in a batch with rows of T tokens."""
    projected = 0 if config.text.projection == "none" else 2 * config.text.width * config.embed_dim
    return _blocks(config.text, tokens, single_query=True) + projected


def _blocks(tower: ImageConfig | TextConfig, T: int, single_query: bool) -> int:
    """FLOPs of a tower's blocks; per token 4 D^2 products in the projections, 2 D M in the MLP, 2 T D in attention.

    With `single_query`, the last block computes only the token that is pooled.
    """
    D, M = tower.width, tower.mlp_width
    full = tower.layers - 1 if single_query else tower.layers
    return full * 2 * T * (4 * D * D + 2 * D * M + 2 * T * D) + (_single_query(tower, T) if single_query else 0)


def _single_query(tower: ImageConfig | TextConfig, T: int) -> int:
    """FLOPs of a block with one query: keys and values of all tokens, the rest of one token."""
    D, M = tower.width, tower.mlp_width
    return 4 * T * D * D + 4 * T * D + 4 * D * D + 4 * D * M


def pair_flops(
    model: CLIPModel, tokens: int, patch_dropout: float = 0.0, image_size: int | None = None, captions: int = 1
) -> int | None:
    """Return the FLOPs of a training step per image, with its captions.

    Args:
        model: the model in training.
        tokens: T of the batch's captions.
        patch_dropout: fraction of the patches that is left out.
        image_size: side of the images in pixels; None: the model's.
        captions: captions of each image.

    Returns:
        FLOPs; None for a model with custom towers, or towers that train in part.
    """
    if type(model.image) not in IMAGE_TOWERS or type(model.text) not in TEXT_TOWERS:
        return None
    image, text = _forward_passes(model.image), _forward_passes(model.text)
    if image is None or text is None:
        return None
    config = _resized(model.config, image_size or model.config.image.image_size)
    return image * image_flops(config, patch_dropout) + captions * text * text_flops(model.config, tokens)


@functools.cache  # the checks of a new configuration take longer than the count, and a run counts at every logged step
def _resized(config: CLIPConfig, image_size: int) -> CLIPConfig:
    return config.replace_image(image_size=image_size)


def _forward_passes(tower: VisionTransformer | TextTransformer) -> int | None:
    """Return how many forward passes a step of a tower costs; None if only some matrices of its blocks train."""
    matrices = {layer.weight.requires_grad for layer in tower.blocks.modules() if isinstance(layer, nn.Linear)}
    if matrices != {False}:
        return FORWARD_AND_BACKWARD if matrices == {True} else None
    trained = {is_lora(name) for name, parameter in tower.named_parameters() if parameter.requires_grad}
    return {frozenset(): 1, frozenset({True}): WITH_ADAPTERS}.get(frozenset(trained))


@functools.cache
def peak_flops(device: torch.device, precision: Precision) -> float:
    """Measure the FLOPs per second of square matrix products on one device, once per process."""
    dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
    side = SIDE.get(device.type, 2048)
    a, b = (torch.full((side, side), 0.5, dtype=dtype, device=device) for _ in range(2))
    best, elapsed, products = float("inf"), 0.0, 0
    while elapsed < SECONDS or products < 3:
        _synchronize(device)
        start = time.perf_counter()
        matmul(a, b)
        _synchronize(device)
        seconds = time.perf_counter() - start
        best, elapsed, products = min(best, seconds), elapsed + seconds, products + 1
    return 2 * side**3 / best


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
