"""Reading images for training, a second and core: files, tar shards and a packed set, beside others' loaders.

python -m benchmarks.data [--data FOLDER --image-size 64] [--pictures 1000] [--rounds 7] [--json FILE]

Compared on the same pictures, each giving batches of (B, 3, S, S) uint8: miniclip's loader on JPEG files (as for
evaluation, and the fast way of training), on tar shards and on a packed set; torchvision's transforms in a Dataset with
PyTorch's DataLoader, over PIL and over its own decoder; and webdataset's loader with the same transforms. Without
--data the pictures are made up, 500 x 375 like Flickr30k's.
With one process and one thread each, the seconds are those of the processor, so other work on the machine counts less;
files are in the page cache. Rounds are interleaved, ratios are medians over the rounds. Before anything is timed, all
must give the pixels of PIL to 2 grey levels in the mean of each picture.
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
from miniclip.data import Captions, WebDataset, build_cache, open_data
from miniclip.data.preprocess import Preprocess
from miniclip.data.sources.cached import CachedImages
from miniclip.data.sources.workers import StreamedImages

BATCH = 128
PACKED_PASSES = 20  # over the packed set in a round: one is too short to be timed
FILES, PACKED = "miniclip, JPEG files", "miniclip, packed"
VERSIONS = ("torch", "torchvision", "pillow", "webdataset")


class Pictures(Dataset):
    """As torchvision's ImageFolder: a path, opened and transformed."""

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

    return lambda: DataLoader(Pictures(paths, load), BATCH)


def torchvision_tensors(paths, size):
    from torchvision.io import ImageReadMode, decode_image

    crop, _ = transforms(size)
    return lambda: DataLoader(Pictures(paths, lambda path: crop(decode_image(str(path), ImageReadMode.RGB))), BATCH)


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
    return lambda: (found.pixels for found in source.batches(rows(len(data))))


def packed_batches(data, preprocess):
    return lambda: (found.pixels for found in CachedImages(data, preprocess).batches(rows(len(data))))


def rows(count):
    return (list(range(start, min(start + BATCH, count))) for start in range(0, count, BATCH))


def make_pictures(folder, count, size=(500, 375)):
    """JPEGs, 500 x 375 by default: clouds of several sizes with edges in them, which compress about as photographs."""
    chance = random.Random(0)
    noise = torch.Generator().manual_seed(0)
    for i in range(count):
        picture = Image.new("RGB", size)
        for side, share in ((4, 1.0), (16, 0.5), (64, 0.3), (size[0] // 2, 0.15)):
            cells = torch.randint(0, 256, (side * 3 // 4, side, 3), generator=noise, dtype=torch.uint8)
            picture = Image.blend(picture, Image.fromarray(cells.numpy()).resize(size, Image.BICUBIC), share)
        for _ in range(5):
            box = [chance.randrange(size[0] * 4 // 5), chance.randrange(size[1] * 3 // 4)]
            picture.paste(tuple(chance.randrange(256) for _ in range(3)), (*box, box[0] + 60, box[1] + 60))
        picture.save(folder / f"{i:06d}.jpg", quality=90)
    paths = sorted(folder.glob("*.jpg"))
    return Captions(paths, [["a made-up picture"]] * count)


def write_tar(path, data):
    with tarfile.open(path, "w") as tar:
        for i in range(len(data)):
            for suffix, content in (("jpg", data.encoded(i)), ("txt", data.captions[i][0].encode())):
                about = tarfile.TarInfo(f"{i:06d}.{suffix}")
                about.size = len(content)
                tar.addfile(about, io.BytesIO(content))


def readers(data, size, folder):
    """Name to what makes an iterator over batches."""
    preprocess = Preprocess(preset("vit_b_32").replace_image(image_size=size, patch_size=size // 2))
    packed = build_cache(data, folder / "cache", preprocess)
    write_tar(folder / "set.tar", data)
    return {
        PACKED: packed_batches(packed, preprocess),
        FILES: streamed(data, preprocess),
        "miniclip, JPEG files, as in training": streamed(data, preprocess, reduced=True),
        "miniclip, tar shards": streamed(WebDataset(folder / "set.tar", split="all"), preprocess),
        "torchvision (PIL) + DataLoader": torchvision_pil(data.paths, size),
        "torchvision (tensors) + DataLoader": torchvision_tensors(data.paths, size),
        "webdataset + torchvision (PIL)": webdataset(folder / "set.tar", size),
    }


def check(makers):
    """Fail where a reader's pixels are not PIL's; returns the greatest mean difference of a picture, for each."""
    expected = torch.cat(list(makers["torchvision (PIL) + DataLoader"]()))
    differences = {}
    for name, make in makers.items():
        found = torch.cat(list(make()))
        if found.shape != expected.shape:
            raise SystemExit(f"{name} gives {tuple(found.shape)}, expected {tuple(expected.shape)}")
        difference = (found.int() - expected.int()).abs()
        differences[name] = float(difference.float().mean(dim=(1, 2, 3)).max()), int(difference.max())
        if differences[name][0] > 2:
            raise SystemExit(f"{name} differs from PIL by {differences[name][0]:.2f} grey levels in a picture's mean")
    return differences


def measure(make, passes):
    """Pictures a second of the processor."""
    count, start = 0, time.process_time()
    for _ in range(passes):
        for batch in make():
            count += len(batch)
    return count / (time.process_time() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="a set of JPEG files, as `miniclip train --data` takes them")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--pictures", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        (folder / "made up").mkdir()
        if options.data:
            data = open_data(options.data)
            data = Captions(data.paths[: options.pictures], data.captions[: options.pictures])
        else:
            data = make_pictures(folder / "made up", options.pictures)
        makers = readers(data, options.image_size, folder)
        differences = check(makers)
        rates = {name: [] for name in makers}
        for _ in range(options.rounds):
            for name, make in makers.items():
                rates[name].append(measure(make, PACKED_PASSES if name == PACKED else 1))
        report(options, data, rates, differences)


def report(options, data, rates, differences) -> None:
    """The table, and the same as JSON."""
    load = f", load {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""
    versions = ", ".join(f"{name} {version(name)}" for name in VERSIONS)
    with Image.open(data.paths[0]) as first:
        sizes = f"the first {first.size[0]} x {first.size[1]}"
    what = Path(options.data).name if options.data else "made-up JPEGs"
    where = f"{platform.machine()}, {os.cpu_count()} cores{load}; Python {platform.python_version()}, {versions}"
    print(where)
    print(f"{what}: {len(data):,} pictures ({sizes}) to {options.image_size} px; {options.rounds} rounds\n")
    print("| loader | pictures a second and core | times miniclip's files | difference from PIL: mean, greatest |")
    print("|" + " --- |" * 4)
    rows = {}
    for name, found in rates.items():
        ratio = statistics.median(a / b for a, b in zip(found, rates[FILES], strict=True))
        rows[name] = {"rate": statistics.median(found), "ratio": ratio, "rates": found, "difference": differences[name]}
        mean, most = differences[name]
        print(f"| {name} | {rows[name]['rate']:,.0f} | {ratio:.2f} | {mean:.2f}, {most} |")
    if options.json:
        about = {"machine": where, "set": what, "pictures": len(data), "image_size": options.image_size}
        options.json.write_text(json.dumps({**about, "loaders": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
