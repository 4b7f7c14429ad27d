"""Smaller images in the first part of a run (CLIPA, Li et al. 2023, https://arxiv.org/abs/2305.07017).

The position embeddings stay those of the whole grid. For a smaller image they are interpolated in each forward pass, as
in FlexiViT (Beyer et al. 2023, https://arxiv.org/abs/2212.08013), and their gradient flows through the interpolation.
So nothing is exchanged between the two parts: weights, moments and averages keep their shapes, each state is that of
a whole model, and evaluations use whole images.

Letters: B batch, S image side, P patches, D width.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from miniclip.checkpoints.operations import interpolated
from miniclip.config import ImageConfig
from miniclip.models.vision import VisionTransformer
from miniclip.train.config import TrainConfig


def require_image_size(tower: nn.Module, config: TrainConfig) -> None:
    """Raise ValueError if the setting `first_image_size` does not fit an image tower."""
    first = config.first_image_size
    if first is None:
        return
    if not isinstance(tower, VisionTransformer):
        found = type(tower).__name__
        raise ValueError(f"first_image_size: the image tower is {found}; expected a VisionTransformer: leave it out")  # noqa: TRY004
    size, patch = tower.config.image_size, tower.config.patch_size
    if first % patch or first >= size:
        raise ValueError(
            f"first_image_size is {first}; expected a multiple of the model's patch size {patch}, below its image size "
            f"{size}"
        )


def image_size_of_step(step: int, total: int, config: TrainConfig) -> int | None:
    """Return the side of the images of a step, in pixels; None: the model's."""
    return config.first_image_size if step < round(config.first_fraction * total) else None


def resized_images(pixels: Tensor, size: int) -> Tensor:
    """Resize images (B, 3, S', S') to (B, 3, S, S), bilinearly with antialiasing; unchanged if they have the size."""
    if pixels.shape[-1] == size:
        return pixels
    return F.interpolate(pixels, (size, size), mode="bilinear", antialias=True, align_corners=False)


@contextmanager
def images_of_step(tower: nn.Module, step: int, total: int, config: TrainConfig) -> Iterator[dict[str, int]]:
    """Context in which the forward pass of an image tower takes the images of a step.

    A hook interpolates the positions, since FSDP gathers them only at the start of the forward pass.

    Yields:
        The image size for the step's record; nothing if it is the model's.
    """
    size = image_size_of_step(step, total, config)
    if size is None or not isinstance(tower, VisionTransformer):
        yield {}
        return
    whole = tower.config

    def resize(module: nn.Module, inputs: Any) -> None:
        vars(module)["positions"] = _resized(module._parameters["positions"], whole, size)  # hides the parameter

    hook = tower.register_forward_pre_hook(resize)
    tower.config = dataclasses.replace(whole, image_size=size)
    try:
        yield {"image_size": size}
    finally:
        hook.remove()
        tower.config = whole
        vars(tower).pop("positions", None)


def _resized(positions: Tensor | None, config: ImageConfig, size: int) -> Tensor:
    """Positions of the patches of an image of S pixels, after that of the class token: (1 + P, D)."""
    assert positions is not None
    first, grid = positions[: int(config.class_token)], positions[int(config.class_token) :]
    return torch.cat([first, interpolated(grid, config.grid, size // config.patch_size)])
