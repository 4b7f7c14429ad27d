"""Speed of reading images for training, per core: files, tar shards and a cache, compared with other loaders.

python -m benchmarks.data [--data FOLDER --image-size 64] [--images 1000] [--rounds 7] [--only TEXT] [--json FILE]

All readers return batches of (B, 3, S, S) uint8 of the same images: miniclip's loader on JPEG files (the exact path and
the fast path of training), on tar shards and on a cache; torchvision's transforms with PyTorch's DataLoader, on PIL
images and on tensors; webdataset's loader with the same transforms. Without --data the images are synthetic JPEGs of
500 x 375, the size of Flickr30k's.

Each reader has one process and one thread, and the files are in the page cache. Processor time is measured, so other
work on the machine counts less. Rounds are interleaved; ratios are medians over the rounds. Before the timing, all
readers must agree with PIL within 2 grey levels in the mean of each image.
"""

import argparse
import io
import json
import os
import platform
import random
import statistics
import tarfile
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from miniclip.config import preset
from miniclip.data import CachedDataset, Captions, WebDataset, build_cache, open_data
from miniclip.data.preprocess import Preprocess
from miniclip.data.sources.cached import CachedImages
from miniclip.data.sources.workers import StreamedImages

BATCH = 128
CACHE_PASSES = 20  # per round: one pass over a cache is too short to time
FILES, CACHE = "miniclip, JPEG files", "miniclip, cache"
FIRST = "miniclip, cache, opened and read for the first time"  # which compares the checksums
VERSIONS = ("torch", "torchvision", "pillow", "webdataset")


class ImageFiles(Dataset):
    """Image files, opened and transformed, like torchvision's ImageFolder."""

    def __init__(self, paths, load):
        self.paths, self.load = paths, load

    def __len__(self):
        return len(self.paths)

    def __getitem__(self, index):
        return self.load(self.paths[index])


def transforms(size):
    from torchvision.transforms import v2

    resize = v2.Resize(size, v2.InterpolationMode.BICUBIC, antialias=True)
    return v2.Compose([resize, v2.CenterCrop(size)]), v2.PILToTensor()


def torchvision_pil(paths, size):
    crop, to_tensor = transforms(size)

    def load(path):
        with Image.open(path) as image:
            return to_tensor(crop(image.convert("RGB")))

    return lambda: DataLoader(ImageFiles(paths, load), BATCH)


def torchvision_tensors(paths, size):
    from torchvision.io import ImageReadMode, decode_image

    crop, _ = transforms(size)
    return lambda: DataLoader(ImageFiles(paths, lambda path: crop(decode_image(str(path), ImageReadMode.RGB))), BATCH)


def webdataset(tar, size):
    import webdataset as wds

    crop, to_tensor = transforms(size)

    def make():
        data = wds.WebDataset(str(tar), shardshuffle=False, empty_check=False).decode("pil").to_tuple("jpg")
        data = data.map_tuple(lambda image: to_tensor(crop(image)))
        return (batch for (batch,) in wds.WebLoader(data, batch_size=BATCH, num_workers=0))

    return make


def streamed(data, preprocess, reduced=False):
    source = StreamedImages(data, preprocess, 0, reduced=reduced)
    return lambda: (batch.pixels for batch in source.batches(index_batches(len(data))))


def cached(data, preprocess):
    source = CachedImages(data, preprocess)
    return lambda: (batch.pixels for batch in source.batches(index_batches(len(data))))


def opened_again(path, preprocess):
    return lambda: cached(CachedDataset(path), preprocess)()


def index_batches(count):
    return (list(range(start, min(start + BATCH, count))) for start in range(0, count, BATCH))


def make_images(folder, count, size=(500, 375)):
    """Make JPEGs of clouds with edges, which compress about as well as photographs."""
    rng = random.Random(0)
    noise = torch.Generator().manual_seed(0)
    for i in range(count):
        image = Image.new("RGB", size)
        for side, weight in ((4, 1.0), (16, 0.5), (64, 0.3), (size[0] // 2, 0.15)):
            cells = torch.randint(0, 256, (side * 3 // 4, side, 3), generator=noise, dtype=torch.uint8)
            image = Image.blend(image, Image.fromarray(cells.numpy()).resize(size, Image.BICUBIC), weight)
        for _ in range(5):
            box = [rng.randrange(size[0] * 4 // 5), rng.randrange(size[1] * 3 // 4)]
            image.paste(tuple(rng.randrange(256) for _ in range(3)), (*box, box[0] + 60, box[1] + 60))
        image.save(folder / f"{i:06d}.jpg", quality=90)
    paths = sorted(folder.glob("*.jpg"))
    return Captions(paths, [["a synthetic image"]] * count)


def write_tar(path, data):
    with tarfile.open(path, "w") as tar:
        for i in range(len(data)):
            for suffix, content in (("jpg", data.encoded(i)), ("txt", data.captions[i][0].encode())):
                member = tarfile.TarInfo(f"{i:06d}.{suffix}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))


def readers(data, size, folder):
    """Return functions that return an iterator over batches, by name."""
    preprocess = Preprocess(preset("vit_b_32").replace_image(image_size=size, patch_size=size // 2))
    cache = build_cache(data, folder / "cache", preprocess)
    write_tar(folder / "images.tar", data)
    return {
        CACHE: cached(cache, preprocess),
        FIRST: opened_again(cache.path, preprocess),
        FILES: streamed(data, preprocess),
        "miniclip, JPEG files, as in training": streamed(data, preprocess, reduced=True),
        "miniclip, tar shards": streamed(WebDataset(folder / "images.tar", split="all"), preprocess),
        "torchvision (PIL) + DataLoader": torchvision_pil(data.paths, size),
        "torchvision (tensors) + DataLoader": torchvision_tensors(data.paths, size),
        "webdataset + torchvision (PIL)": webdataset(folder / "images.tar", size),
    }


def check(makers):
    """Return each reader's difference from PIL: the worst image's mean, and the greatest. Exit if it is too large."""
    expected = torch.cat(list(makers["torchvision (PIL) + DataLoader"]()))
    differences = {}
    for name, make in makers.items():
        pixels = torch.cat(list(make()))
        if pixels.shape != expected.shape:
            raise SystemExit(f"{name} returns {tuple(pixels.shape)}, expected {tuple(expected.shape)}")
        difference = (pixels.int() - expected.int()).abs()
        differences[name] = float(difference.float().mean(dim=(1, 2, 3)).max()), int(difference.max())
        if differences[name][0] > 2:
            raise SystemExit(f"{name} differs from PIL by {differences[name][0]:.2f} grey levels in an image's mean")
    return differences


def measure(make, passes):
    """Return images per second of processor time."""
    count, start = 0, time.process_time()
    for _ in range(passes):
        for batch in make():
            count += len(batch)
    return count / (time.process_time() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="a dataset of JPEG files, as `miniclip train --data` takes it")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument(
        "--only", default="", help="time only miniclip's files and the readers with this text in their name"
    )
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        (folder / "synthetic").mkdir()
        if options.data:
            data = open_data(options.data)
            data = Captions(data.paths[: options.images], data.captions[: options.images])
        else:
            data = make_images(folder / "synthetic", options.images)
        makers = readers(data, options.image_size, folder)
        differences = check(makers)
        makers = {name: make for name, make in makers.items() if options.only in name or name == FILES}
        rates = {name: [] for name in makers}
        for _ in range(options.rounds):
            for name, make in makers.items():
                rates[name].append(measure(make, CACHE_PASSES if name in (CACHE, FIRST) else 1))
        report(options, data, rates, differences)


def report(options, data, rates, differences) -> None:
    """Print the results as a table, and write them as JSON."""
    load = f", load {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""
    versions = ", ".join(f"{name} {version(name)}" for name in VERSIONS)
    with Image.open(data.paths[0]) as first:
        sizes = f"the first {first.size[0]} x {first.size[1]}"
    dataset = Path(options.data).name if options.data else "synthetic JPEGs"
    machine = f"{platform.machine()}, {os.cpu_count()} cores{load}; Python {platform.python_version()}, {versions}"
    print(machine)
    print(f"{dataset}: {len(data):,} images ({sizes}) to {options.image_size} px; {options.rounds} rounds\n")
    print("| loader | images per second and core | times miniclip's files | difference from PIL: mean, greatest |")
    print("|" + " --- |" * 4)
    rows = {}
    for name, values in rates.items():
        ratio = statistics.median(a / b for a, b in zip(values, rates[FILES], strict=True))
        rows[name] = {
            "rate": statistics.median(values),
            "ratio": ratio,
            "rates": values,
            "difference": differences[name],
        }
        mean, greatest = differences[name]
        print(f"| {name} | {rows[name]['rate']:,.0f} | {ratio:.2f} | {mean:.2f}, {greatest} |")
    if options.json:
        about = {"machine": machine, "dataset": dataset, "images": len(data), "image_size": options.image_size}
        options.json.write_text(json.dumps({**about, "loaders": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
