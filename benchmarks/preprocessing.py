"""A JPEG file to normalised pixels of 224 px, one thread: against open_clip, transformers and torchvision.

python -m benchmarks preprocessing

Seconds are the processor's, and the files are in the page cache. All must be within 2 grey levels of Pillow's pixels,
which open_clip gives.
"""

import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from benchmarks.data import make_pictures
from benchmarks.harness import MINICLIP, Row, Scale, interleaved
from miniclip.config import preset
from miniclip.data.jpeg import read_pixels
from miniclip.data.preprocess import Preprocess

LEVELS = 2
REACH = {"open_clip": 2.5, "transformers": 1.8, "transformers, decode_image": 1.8}
CASES = (((500, 375), 60, REACH), ((1600, 1200), 12, {}))  # size, how many in a round, what to reach


def rows(scale: Scale) -> Iterator[Row]:
    torch.set_num_threads(1)
    config = preset("vit_b_16")
    readers = ways(config)
    for size, count, reach in CASES:
        with tempfile.TemporaryDirectory() as folder:
            paths = make_pictures(Path(folder), 4 if scale.small else count, size).paths
            calls = {name: over(paths, read) for name, read in readers.items()}
            found = {name: torch.stack(call()) for name, call in calls.items()}
            note = levels_off(found, torch.tensor(config.std).view(3, 1, 1))
            timed = {name: over(paths, read, keep=False) for name, read in readers.items()}
            values = interleaved(timed, scale.rounds, work=len(paths), clock=time.process_time)
        case = f"JPEG of {size[0]} x {size[1]} to 224 px, one thread"
        yield Row("preprocessing", case, "pictures/s", values, reach, note=note)


def ways(config: Any) -> dict[str, Callable[[Path], Tensor]]:
    """By name, a path to (3, 224, 224) float32."""
    import open_clip
    from torchvision.io import ImageReadMode, decode_image
    from torchvision.transforms import v2
    from transformers import CLIPImageProcessor, CLIPImageProcessorPil

    preprocess = Preprocess(config)
    transform = open_clip.image_transform(224, is_train=False)
    fast, pillow = CLIPImageProcessor(), CLIPImageProcessorPil()  # fast: torchvision's transforms on tensors
    resize = v2.Resize(224, v2.InterpolationMode.BICUBIC, antialias=True)
    scaled = v2.ToDtype(torch.float32, scale=True)
    composed = v2.Compose([resize, v2.CenterCrop(224), scaled, v2.Normalize(config.mean, config.std)])

    def picture(path: Path) -> Image.Image:
        with Image.open(path) as image:
            return image.convert("RGB")

    def tensor(path: Path) -> Tensor:
        return decode_image(str(path), ImageReadMode.RGB)

    return {
        MINICLIP: lambda path: preprocess.normalise(read_pixels(path, preprocess)),
        "open_clip": lambda path: transform(picture(path)),
        "transformers": lambda path: fast(picture(path), return_tensors="pt")["pixel_values"][0],
        "transformers, decode_image": lambda path: fast(tensor(path), return_tensors="pt")["pixel_values"][0],
        "transformers, Pillow": lambda path: pillow(picture(path), return_tensors="pt")["pixel_values"][0],
        "torchvision, decode_image": lambda path: composed(tensor(path)),
    }


def over(paths: list[Path], read: Callable[[Path], Tensor], keep: bool = True) -> Callable[[], list[Tensor]]:
    return lambda: [pixels for path in paths if (pixels := read(path)) is not None and keep]


def levels_off(found: dict[str, Tensor], std: Tensor) -> str:
    """How far each is from Pillow's pixels, in grey levels; fails where that is too far."""
    expected, said = found["open_clip"], []
    for name, pixels in found.items():
        levels = ((pixels - expected) * std * 255).abs()
        mean, most = float(levels.mean()), float(levels.max())
        if most > LEVELS + 0.01:
            raise SystemExit(f"{name} is {most:.2f} grey levels off Pillow")
        if name != "open_clip":
            said.append(f"{name} {mean:.3f} and {most:.0f}")
    return "grey levels off Pillow, in the mean and at most: " + ", ".join(said)
