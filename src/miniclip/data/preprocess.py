"""Preprocessing: an image to the normalised pixels that the vision tower takes. S is the model's image side."""

from __future__ import annotations

import math
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from miniclip.config import CLIPConfig
from miniclip.data.decoding.rgb import as_tensor, contiguous, to_rgb
from miniclip.data.image_types import ImageInput, as_image, is_uint8

MAX_RESIZED = 1 << 26  # pixels, 256 MiB: an extremely long image is cropped before it is resized


class Preprocess:
    """Resize, center crop and normalise an image, by a model's configuration.

    OpenAI's CLIP resizes the shorter side to S and crops the center S x S. SigLIP and CLIPA resize both sides to S.
    """

    def __init__(self, config: CLIPConfig) -> None:
        self.size, self.resize = config.image.image_size, config.resize
        self.crop_rounding, self.interpolation = config.crop_rounding, config.interpolation
        self.mean = torch.tensor(config.mean, dtype=torch.float32, device="cpu").view(3, 1, 1)  # not the defaults
        self.std = torch.tensor(config.std, dtype=torch.float32, device="cpu").view(3, 1, 1)

    def __call__(self, image: ImageInput) -> Tensor:
        """Convert an image of any type, size and mode to normalised pixels, (3, S, S) float32."""
        return self.normalise(self.pixels(image))

    def pixels(self, image: ImageInput) -> Tensor:
        """Convert an image of any type, size and mode to (3, S, S) uint8, a quarter of the memory of float32."""
        image, S = to_rgb(as_image(image)), self.size
        resized = self.resized_size(*image.size)
        left, top = (self.crop_start(side) for side in resized)
        resample = Image.Resampling[self.interpolation.upper()]
        if math.prod(resized) <= MAX_RESIZED:
            image = image.resize(resized, resample).crop((left, top, left + S, top + S))
        else:  # the same up to rounding, without the memory for what the crop removes
            x, y = image.width / resized[0], image.height / resized[1]
            box = (left * x, top * y, min((left + S) * x, image.width), min((top + S) * y, image.height))
            image = image.resize((S, S), resample, box=box)
        return contiguous(as_tensor(image))

    def resized_size(self, width: int, height: int) -> tuple[int, int]:
        """Return the width and height of an image after resizing and before the crop."""
        if self.resize == "squash":
            return self.size, self.size
        shortest = min(width, height)
        return width * self.size // shortest, height * self.size // shortest

    def crop_start(self, side: int) -> int:
        """Return where the center crop starts: rounded to even as in torchvision, or down as in transformers."""
        half = (side - self.size) / 2
        return round(half) if self.crop_rounding == "rounded" else math.floor(half)

    def normalise(self, pixels: Tensor) -> Tensor:
        """Convert (..., 3, S, S) uint8, or float in 0..1, to normalised float32."""
        mean, std = (side.to(pixels.device, non_blocking=True) for side in (self.mean, self.std))
        if is_uint8(pixels):
            return pixels.float().div_(255).sub_(mean).div_(std)
        return (pixels - mean) / std

    @property
    def pixel_settings(self) -> dict[str, Any]:
        """All settings that `pixels` depends on; models that agree in them can share a cache."""
        return {name: getattr(self, name) for name in ("size", "resize", "crop_rounding", "interpolation")}

    def __repr__(self) -> str:
        mean, std = (tuple(round(float(v), 4) for v in t.flatten()) for t in (self.mean, self.std))
        settings = ", ".join(f"{name}={value!r}" for name, value in self.pixel_settings.items())
        return f"Preprocess({settings}, mean={mean}, std={std})"
