"""Speed of preprocessing a JPEG file to 224 px in one thread, against open_clip, transformers and torchvision.

python -m benchmarks preprocessing

It measures processor time, with the files in the page cache. All results must be within 2 grey levels of Pillow's,
which open_clip uses.
"""

import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from benchmarks.data import make_images
from benchmarks.harness import MINICLIP, Row, Scale, interleaved
from miniclip.config import preset
from miniclip.data.decoding.jpeg import read_pixels
from miniclip.data.preprocess import Preprocess

MAX_LEVELS = 2
TARGETS = {"open_clip": 2.5, "transformers": 1.8, "transformers, decode_image": 1.8}
CASES = (((500, 375), 60, TARGETS), ((1600, 1200), 12, {}))  # size, images in a round, targets


def rows(scale: Scale) -> Iterator[Row]:
    torch.set_num_threads(1)
    config = preset("vit_b_16")
    readers = preprocessors(config)
    for size, count, targets in CASES:
        with tempfile.TemporaryDirectory() as folder:
            paths = make_images(Path(folder), 4 if scale.small else count, size).paths
            pixels = {name: torch.stack([read(path) for path in paths]) for name, read in readers.items()}
            note = differences(pixels, torch.tensor(config.std).view(3, 1, 1))
            calls = {name: reading(paths, read) for name, read in readers.items()}
            values = interleaved(calls, scale.rounds, work=len(paths), clock=time.process_time)
        case = f"JPEG of {size[0]} x {size[1]} to 224 px, one thread"
        yield Row("preprocessing", case, "images/s", values, targets, note=note)


def preprocessors(config: Any) -> dict[str, Callable[[Path], Tensor]]:
    """Return functions from a path to (3, 224, 224) float32, by name."""
    import open_clip
    from torchvision.io import ImageReadMode, decode_image
    from torchvision.transforms import v2
    from transformers import CLIPImageProcessor, CLIPImageProcessorPil

    preprocess = Preprocess(config)
    transform = open_clip.image_transform(224, is_train=False)
    fast, pillow = CLIPImageProcessor(), CLIPImageProcessorPil()  # fast: torchvision's transforms on tensors
    resize = v2.Resize(224, v2.InterpolationMode.BICUBIC, antialias=True)
    to_float = v2.ToDtype(torch.float32, scale=True)
    composed = v2.Compose([resize, v2.CenterCrop(224), to_float, v2.Normalize(config.mean, config.std)])

    def image(path: Path) -> Image.Image:
        with Image.open(path) as opened:
            return opened.convert("RGB")

    def tensor(path: Path) -> Tensor:
        return decode_image(str(path), ImageReadMode.RGB)

    return {
        MINICLIP: lambda path: preprocess.normalise(read_pixels(path, preprocess)),
        "open_clip": lambda path: transform(image(path)),
        "transformers": lambda path: fast(image(path), return_tensors="pt")["pixel_values"][0],
        "transformers, decode_image": lambda path: fast(tensor(path), return_tensors="pt")["pixel_values"][0],
        "transformers, Pillow": lambda path: pillow(image(path), return_tensors="pt")["pixel_values"][0],
        "torchvision, decode_image": lambda path: composed(tensor(path)),
    }


def reading(paths: list[Path], read: Callable[[Path], Tensor]) -> Callable[[], None]:
    """Return a call that reads all images, and keeps none."""

    def call() -> None:
        for path in paths:
            read(path)

    return call


def differences(pixels: dict[str, Tensor], std: Tensor) -> str:
    """Return the differences from Pillow's pixels in grey levels; exit if one is too large."""
    expected, lines = pixels["open_clip"], []
    for name, values in pixels.items():
        levels = ((values - expected) * std * 255).abs()
        mean, greatest = float(levels.mean()), float(levels.max())
        if greatest > MAX_LEVELS + 0.01:
            raise SystemExit(f"{name} differs from Pillow by {greatest:.2f} grey levels")
        if name != "open_clip":
            lines.append(f"{name} {mean:.3f} and {greatest:.0f}")
    return "mean and greatest difference from Pillow in grey levels: " + ", ".join(lines)
