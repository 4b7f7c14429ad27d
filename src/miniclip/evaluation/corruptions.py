"""Corruptions of images at five severities, after ImageNet-C (Hendrycks and Dietterich 2019, arXiv 1903.12261).

They work on the pixels that the model takes, after resizing and cropping. Sizes of blurs are given for 224 px and
scaled to the model's. The strengths are this library's: compare with its own figures only. Letters: S image side.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from io import BytesIO
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from miniclip.data.preprocess import Preprocess
from miniclip.inference.images import read_pixels

SEVERITIES = (1, 2, 3, 4, 5)
REFERENCE_SIZE = 224

Corruption = Callable[[Tensor, int, torch.Generator], Tensor]  # (3, S, S) float in 0..1 and severity - 1 to the same


def _transforms() -> Any:
    """Return torchvision's transforms. Their import takes a second, and commands without corruptions need none."""
    from torchvision.transforms.v2 import functional

    return functional


def gaussian_noise(x: Tensor, level: int, generator: torch.Generator) -> Tensor:
    """Add normal noise."""
    return x + (0.04, 0.08, 0.12, 0.18, 0.26)[level] * torch.randn(x.shape, generator=generator)


def shot_noise(x: Tensor, level: int, generator: torch.Generator) -> Tensor:
    """Draw each value from a Poisson distribution, as in dim light."""
    photons = (250, 100, 50, 25, 12)[level]
    return torch.poisson(x * photons, generator=generator) / photons


def impulse_noise(x: Tensor, level: int, generator: torch.Generator) -> Tensor:
    """Set some values to 0 or 1 (salt and pepper)."""
    noise = torch.rand(x.shape, generator=generator)
    share = (0.01, 0.03, 0.06, 0.1, 0.17)[level]
    return torch.where(noise < share / 2, 0.0, torch.where(noise > 1 - share / 2, 1.0, x))


def gaussian_blur(x: Tensor, level: int, generator: torch.Generator) -> Tensor:
    """Blur with a normal kernel."""
    sigma = max(0.5, _scaled((2, 3, 4, 6, 8)[level], x))
    side = 2 * math.ceil(3 * sigma) + 1
    return _transforms().gaussian_blur(x, [side] * 2, [sigma, sigma])  # type: ignore[no-any-return]


def defocus_blur(x: Tensor, level: int, generator: torch.Generator) -> Tensor:
    """Blur with a disc, as a lens that is out of focus."""
    radius = max(0.6, _scaled((3, 4, 6, 8, 10)[level], x))
    steps = torch.arange(-math.ceil(radius), math.ceil(radius) + 1)
    disc = (radius + 0.5 - torch.hypot(steps[:, None].float(), steps[None].float())).clamp(0, 1)
    return _filter(x, disc)


def motion_blur(x: Tensor, level: int, generator: torch.Generator) -> Tensor:
    """Blur along a line in a random direction."""
    length = max(1.5, _scaled((6, 10, 14, 18, 24)[level], x))
    angle = math.pi * float(torch.rand((), generator=generator))
    steps = torch.arange(-math.ceil(length / 2), math.ceil(length / 2) + 1).float()
    along = steps[None] * math.cos(angle) + steps[:, None] * math.sin(angle)
    across = steps[:, None] * math.cos(angle) - steps[None] * math.sin(angle)
    return _filter(x, (1 - across.abs()).clamp(0, 1) * (along.abs() <= length / 2))


def zoom_blur(x: Tensor, level: int, generator: torch.Generator) -> Tensor:
    """Average the image over zoom factors."""
    S, largest = x.shape[-1], (1.06, 1.11, 1.16, 1.21, 1.31)[level]
    zoomed = [
        _transforms().center_crop(_transforms().resize(x, [round(S * factor)] * 2, antialias=True), [S, S])
        for factor in torch.linspace(1, largest, 9).tolist()
    ]
    return torch.stack(zoomed).mean(dim=0)


def brightness(x: Tensor, level: int, generator: torch.Generator) -> Tensor:
    """Brighten."""
    return _transforms().adjust_brightness(x, (1.2, 1.4, 1.6, 1.9, 2.3)[level])  # type: ignore[no-any-return]


def contrast(x: Tensor, level: int, generator: torch.Generator) -> Tensor:
    """Reduce the contrast."""
    return _transforms().adjust_contrast(x, (0.6, 0.45, 0.3, 0.2, 0.1)[level])  # type: ignore[no-any-return]


def saturation(x: Tensor, level: int, generator: torch.Generator) -> Tensor:
    """Reduce the saturation, up to a grey image."""
    return _transforms().adjust_saturation(x, (0.6, 0.4, 0.25, 0.1, 0.0)[level])  # type: ignore[no-any-return]


def pixelate(x: Tensor, level: int, generator: torch.Generator) -> Tensor:
    """Average squares of pixels."""
    S = x.shape[-1]
    small = max(1, round(S * (0.5, 0.4, 0.3, 0.2, 0.15)[level]))
    return F.interpolate(F.interpolate(x[None], size=(small, small), mode="area"), size=(S, S))[0]


def jpeg(x: Tensor, level: int, generator: torch.Generator) -> Tensor:
    """Compress as JPEG."""
    file = BytesIO()
    _transforms().to_pil_image(x).save(file, "JPEG", quality=(40, 25, 15, 10, 7)[level])
    return _transforms().pil_to_tensor(Image.open(file)).float() / 255  # type: ignore[no-any-return]


CORRUPTIONS: dict[str, Corruption] = {
    function.__name__: function
    for function in (
        gaussian_noise,
        shot_noise,
        impulse_noise,
        gaussian_blur,
        defocus_blur,
        motion_blur,
        zoom_blur,
        brightness,
        contrast,
        saturation,
        pixelate,
        jpeg,
    )
}


class CorruptedImages(Sequence[Any]):
    """Images with a corruption, each as (3, S, S) uint8; the same index always gives the same pixels.

    Args:
        images: N images, in any form that `encode_image` takes.
        preprocess: the model's preprocessing.
        corruption: a name of `CORRUPTIONS`.
        severity: 1 to 5.

    Raises:
        ValueError: the corruption or the severity does not exist.
    """

    def __init__(self, images: Sequence[Any], preprocess: Preprocess, corruption: str, severity: int) -> None:
        if corruption not in CORRUPTIONS:
            raise ValueError(f"corruption {corruption!r}: expected one of {', '.join(CORRUPTIONS)}")
        if severity not in SEVERITIES:
            raise ValueError(f"severity {severity}: expected 1 to 5")
        self.images, self.preprocess, self.corruption, self.severity = images, preprocess, corruption, severity

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: Any) -> Any:
        """Return a corrupted image, or a list of them for a slice."""
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        x = read_pixels(self.images[index], self.preprocess).float() / 255
        generator = torch.Generator().manual_seed(index)
        x = CORRUPTIONS[self.corruption](x, self.severity - 1, generator)
        return (255 * x.clamp(0, 1)).round().to(torch.uint8)


def _scaled(pixels: float, x: Tensor) -> float:
    return pixels * x.shape[-1] / REFERENCE_SIZE


def _filter(x: Tensor, kernel: Tensor) -> Tensor:
    """Convolve each channel with a kernel of odd side, scaled to sum 1, with replicated borders."""
    pad = kernel.shape[-1] // 2
    padded = F.pad(x[None], (pad, pad, pad, pad), mode="replicate")
    return F.conv2d(padded, (kernel / kernel.sum()).expand(3, 1, -1, -1), groups=3)[0]
