"""Pictures to pixels: resize, crop, normalise; and the augmentation of training, on whole batches, on any device.

Letters: B batch, S the model's picture side.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from miniclip.config import CLIPConfig
from miniclip.data.decoding import as_tensor, decode_image, to_rgb

RESIZED = 1 << 26  # pixels, 256 MiB: what would be larger once resized is cut first
FAST = {"AVX2", "AVX512"}  # instructions for which torch has code to resize bytes: as Pillow does, 6 times as fast


class Preprocess:
    """A picture to what the image tower takes, normalised, by the model's configuration.

    OpenAI's CLIP brings the short side to S and cuts the centre S x S; SigLIP and CLIPA squash both sides to S.
    """

    def __init__(self, config: CLIPConfig) -> None:
        self.size = config.image.image_size
        self.interpolation = config.interpolation
        self.resize, self.crop_rounding = config.resize, config.crop_rounding
        # on the CPU even where a model is being built on the meta device
        self.mean = torch.tensor(config.mean, device="cpu").view(3, 1, 1)
        self.std = torch.tensor(config.std, device="cpu").view(3, 1, 1)

    def __call__(self, picture: Image.Image) -> Tensor:
        """A picture of any size and mode to normalised pixels, float32 (3, S, S)."""
        return self.normalise(self.pixels(picture))

    def pixels(self, picture: Image.Image) -> Tensor:
        """A picture of any size and mode to uint8 (3, S, S): what a loader keeps, a quarter of the floats' memory."""
        from torchvision.transforms.v2 import functional as tv  # a second to import: only where it is used

        picture = to_rgb(picture)
        if self.resize == "shortest" and self._strip(*picture.size):
            picture = self._middle(picture)
        elif picture.size != (self.size, self.size):
            sides = [self.size] if self.resize == "shortest" else [self.size, self.size]
            picture = tv.resize(picture, sides, tv.InterpolationMode(self.interpolation))
            left, top = (self._corner(side) for side in picture.size)
            picture = picture.crop((left, top, left + self.size, top + self.size))
        return _planes(as_tensor(picture))

    def read(self, source: str | Path | bytes, name: str | None = None, at_least: int | None = None) -> Tensor:
        """A picture file to uint8 (3, S, S), the fast way.

        That is `pixels(open_image(…))`; of a plain JPEG to a grey level, here and there, since torch resizes it: like
        Pillow in integers, whose weights it rounds more. Tests hold the two within 2 levels.

        Args:
            source: the path of a file, or the bytes of one.
            name: what errors call it; by default its path.
            at_least: as in `open_image`; None: decoded whole.

        Raises:
            DataError: it cannot be read as a picture.
        """
        found = decode_image(source, name, at_least)
        if isinstance(found, Image.Image):
            return self.pixels(found)
        height, width = found.shape[1:]
        if (height, width) == (self.size, self.size):
            return _planes(found)
        if not self._fast(height, width):
            return self.pixels(Image.fromarray(found.permute(1, 2, 0).numpy()))
        short = min(height, width)
        sides = [s * self.size // short if self.resize == "shortest" else self.size for s in (height, width)]
        channels_last = found.permute(1, 2, 0)[None].permute(
            0, 3, 1, 2
        )  # in its strides too, which the fast code needs
        resized = F.interpolate(channels_last, sides, mode=self.interpolation, antialias=True)[0]
        top, left = (self._corner(side) for side in sides)
        return _planes(resized[:, top : top + self.size, left : left + self.size])

    def _fast(self, height: int, width: int) -> bool:
        """Whether torch resizes such a picture as Pillow does, and faster.

        Of a tall one Pillow (13 and later) reduces the height first, which torch never does; and both round in between.
        """
        if self.resize == "squash":
            alike = height <= width
        else:
            alike = height <= 2 * width and not self._strip(height, width)
        return alike and torch.backends.cpu.get_cpu_capability() in FAST

    def _strip(self, height: int, width: int) -> bool:
        return self.size**2 * max(height, width) > RESIZED * min(height, width)

    def _middle(self, picture: Image.Image) -> Image.Image:
        """The same of a strip: 30,000 x 1 pixels would be 6 GB before they were cut, so the middle alone is resized.

        Not to the last level: Pillow may take its two passes, along and across, in the other order then.
        """
        short = min(picture.size)
        resized = [side * self.size // short for side in picture.size]
        start = [self._corner(side) * own / side for side, own in zip(resized, picture.size, strict=True)]
        end = [a + self.size * own / side for a, side, own in zip(start, resized, picture.size, strict=True)]
        box = (start[0], start[1], min(end[0], picture.width), min(end[1], picture.height))
        return picture.resize((self.size, self.size), Image.Resampling[self.interpolation.upper()], box=box)

    def how(self) -> dict[str, Any]:
        """All that `pixels` depends on: two models that agree in it take the same uint8 pictures."""
        names = ("size", "resize", "crop_rounding", "interpolation")
        return {name: getattr(self, name) for name in names}

    def _corner(self, side: int) -> int:
        """Where the centre begins: half a pixel is rounded to even as torchvision does, or floored as transformers."""
        half = (side - self.size) / 2
        return round(half) if self.crop_rounding == "rounded" else math.floor(half)

    def normalise(self, pixels: Tensor) -> Tensor:
        """(…, 3, S, S) uint8, or float in 0..1, to normalised float32."""
        if pixels.dtype == torch.uint8:
            pixels = pixels.float().div_(255)  # in place from here on: fresh memory costs more than the arithmetic
            return pixels.sub_(self.mean.to(pixels.device)).div_(self.std.to(pixels.device))
        return (pixels - self.mean.to(pixels.device)) / self.std.to(pixels.device)

    def __repr__(self) -> str:
        mean, std = (tuple(round(float(v), 4) for v in t.flatten()) for t in (self.mean, self.std))
        return (
            f"Preprocess(size={self.size}, resize={self.resize!r}, crop_rounding={self.crop_rounding!r}, "
            f"interpolation={self.interpolation!r}, mean={mean}, std={std})"
        )


class Augment:
    """Random zoom and shift, rotation, mirroring and colour, for each picture of a batch by itself.

    On tensors and not picture by picture in the loader, so that it runs where the model does and decoded pictures can
    be kept. (torchvision's transforms draw one set of parameters for a whole batch.)

    Args:
        min_crop_area: the least share of the picture's area that a random crop keeps, in (0, 1]; 1 crops nothing.
        max_rotation_degrees: greatest angle, in degrees, either way.
        flip: mirror half of the pictures. Off by default: captions speak of left and right.
        color_jitter: greatest relative change of brightness, contrast and saturation, in [0, 1].
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
                f"min_crop_area={min_crop_area}, max_rotation_degrees={max_rotation_degrees}, color_jitter={color_jitter}: "
                "expected min_crop_area in (0, 1], max_rotation_degrees in 0..180, color_jitter in [0, 1]"
            )
        self.min_crop_area, self.max_rotation_degrees = min_crop_area, max_rotation_degrees
        self.flip, self.color_jitter = flip, color_jitter

    def __call__(self, pixels: Tensor, generator: torch.Generator) -> Tensor:
        """Augment a batch: `draw`, then `apply`.

        Args:
            pixels: (B, 3, S, S) uint8.
            generator: on the CPU; the same state gives the same pictures on any device.

        Returns:
            (B, 3, S, S) float32 in 0..1.
        """
        return self.apply(pixels, self.draw(len(pixels), generator))

    def draw(self, batch: int, generator: torch.Generator) -> Tensor:
        """What happens to each picture of a batch, (B, 9): an affine map (six numbers) and three factors of colour."""
        affine = self._affine(torch.rand(batch, 5, generator=generator))
        color = 1 + self.color_jitter * (2 * torch.rand(3, batch, generator=generator).T - 1)
        return torch.cat([affine, color], dim=1)

    def apply(self, pixels: Tensor, drawn: Tensor) -> Tensor:
        """Augment pictures (B, 3, S, S) uint8 as drawn (B, 9); a part of a batch takes its part of the rows."""
        x, drawn = pixels.float() / 255, drawn.to(pixels.device)
        if self.min_crop_area < 1 or self.max_rotation_degrees or self.flip:
            grid = F.affine_grid(drawn[:, :6].view(-1, 2, 3), list(x.shape), align_corners=False)
            x = F.grid_sample(x, grid, mode="bilinear", padding_mode="border", align_corners=False)
        return _recolor(x, drawn[:, 6:]) if self.color_jitter else x

    def _affine(self, u: Tensor) -> Tensor:
        """Where in the picture, whose sides are -1..1, each output pixel looks: numbers in 0..1 (B, 5) to (B, 6)."""
        zoom = (self.min_crop_area + (1 - self.min_crop_area) * u[:, 0]).sqrt()  # area to side
        shift = (1 - zoom)[:, None] * (2 * u[:, 1:3] - 1)
        angle = math.radians(self.max_rotation_degrees) * (2 * u[:, 3] - 1)
        mirror = torch.where(u[:, 4] < 0.5, -1.0, 1.0) if self.flip else torch.ones(len(u))
        cos, sin = zoom * angle.cos(), zoom * angle.sin()
        return torch.stack([cos * mirror, -sin, shift[:, 0], sin * mirror, cos, shift[:, 1]], dim=1)


def _planes(pixels: Tensor) -> Tensor:
    """(3, S, S) uint8, contiguous: three times as fast to work on as (S, S, 3) turned.

    By NumPy, which stays in this thread: torch would start others below each of a pool's, and they would all wait.
    """
    return torch.from_numpy(np.ascontiguousarray(pixels.numpy()))


def _recolor(x: Tensor, factors: Tensor) -> Tensor:
    """Brightness, contrast about the picture's mean, and saturation about its greys, each times its factor (B, 3)."""
    brightness, contrast, saturation = factors[:, :, None, None, None].unbind(dim=1)
    x = x * brightness
    mean = x.mean(dim=(1, 2, 3), keepdim=True)
    x = mean + (x - mean) * contrast
    grey = x.mean(dim=1, keepdim=True)
    return (grey + (x - grey) * saturation).clamp(0, 1)
