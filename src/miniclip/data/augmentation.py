"""Augmentation for training: on whole batches, on any device. Letters: B batch, S image side."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


class Augment:
    """Random crop, rotation, mirroring and color, drawn for each image of a batch independently.

    It runs on batches of tensors, so decoded images can be cached and the model's device does the work. (torchvision's
    transforms draw one set of parameters for a whole batch.)

    Args:
        min_crop_area: smallest fraction of the image's area that a random crop keeps, in (0, 1]; 1 disables cropping.
        max_rotation_degrees: greatest rotation in either direction, in degrees.
        flip: mirror half of the images. Off by default, since captions mention left and right.
        color_jitter: greatest relative change of brightness, contrast and saturation, in [0, 1].

    Raises:
        ValueError: an option is out of its range.
    """

    def __init__(
        self,
        min_crop_area: float = 1.0,
        max_rotation_degrees: float = 0.0,
        flip: bool = False,
        color_jitter: float = 0.0,
    ) -> None:
        if not 0 < min_crop_area <= 1 or not 0 <= color_jitter <= 1 or not 0 <= max_rotation_degrees <= 180:
            raise ValueError(
                f"min_crop_area={min_crop_area}, max_rotation_degrees={max_rotation_degrees}, "
                f"color_jitter={color_jitter}: expected min_crop_area in (0, 1], max_rotation_degrees in 0..180, "
                "color_jitter in [0, 1]"
            )
        self.min_crop_area, self.max_rotation_degrees = min_crop_area, max_rotation_degrees
        self.flip, self.color_jitter = flip, color_jitter

    def __call__(self, pixels: Tensor, generator: torch.Generator) -> Tensor:
        """Augment a batch: `draw`, then `apply`.

        Args:
            pixels: (B, 3, S, S) uint8.
            generator: on the CPU; the same state gives the same result on any device.

        Returns:
            (B, 3, S, S) float32 in 0..1.
        """
        return self.apply(pixels, self.draw(len(pixels), generator))

    def draw(self, batch: int, generator: torch.Generator) -> Tensor:
        """Draw the parameters of a batch, (B, 9): an affine map (six numbers) and three color factors."""
        affine = self._affine(torch.rand(batch, 5, generator=generator, dtype=torch.float32))
        color = 1 + self.color_jitter * (2 * torch.rand(3, batch, generator=generator, dtype=torch.float32).T - 1)
        return torch.cat([affine, color], dim=1).float()  # not torch's default dtype

    def apply(self, pixels: Tensor, parameters: Tensor) -> Tensor:
        """Augment images (B, 3, S, S) uint8 by drawn parameters (B, 9); a slice of a batch takes its slice of them."""
        x, parameters = pixels.float() / 255, parameters.to(pixels.device)
        if self.min_crop_area < 1 or self.max_rotation_degrees or self.flip:
            grid = F.affine_grid(parameters[:, :6].view(-1, 2, 3), list(x.shape), align_corners=False)
            x = F.grid_sample(x, grid, mode="bilinear", padding_mode="border", align_corners=False)
        return _jitter_color(x, parameters[:, 6:]) if self.color_jitter else x

    def _affine(self, u: Tensor) -> Tensor:
        """Map uniform numbers (B, 5) to affine maps (B, 6) from output to input pixels, in coordinates of -1..1."""
        zoom = (self.min_crop_area + (1 - self.min_crop_area) * u[:, 0]).sqrt()  # area to side
        shift = (1 - zoom)[:, None] * (2 * u[:, 1:3] - 1)
        angle = math.radians(self.max_rotation_degrees) * (2 * u[:, 3] - 1)
        mirror = torch.where(u[:, 4] < 0.5, -1.0, 1.0) if self.flip else torch.ones(len(u))
        cos, sin = zoom * angle.cos(), zoom * angle.sin()
        return torch.stack([cos * mirror, -sin, shift[:, 0], sin * mirror, cos, shift[:, 1]], dim=1)


def _jitter_color(x: Tensor, factors: Tensor) -> Tensor:
    """Scale brightness, contrast about the image's mean, and saturation about its greys by factors (B, 3)."""
    brightness, contrast, saturation = factors[:, :, None, None, None].unbind(dim=1)
    grey = x.mean(dim=1, keepdim=True)  # (B, 1, S, S)
    mean = grey.mean(dim=(2, 3), keepdim=True)
    # all three at once, since each step is linear: fewer passes over the color channels
    offset = brightness * ((1 - contrast) * mean + contrast * (1 - saturation) * grey)
    return torch.addcmul(offset, x, brightness * contrast * saturation).clamp_(0, 1)
