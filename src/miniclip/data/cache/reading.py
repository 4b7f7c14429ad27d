"""Cached dataset: decoded images at the model's size, read from their places in the shards.

Files are read, not mapped into memory: a file that is cut short, or a broken disk, would kill a process that maps it.
Letters: N images, B batch, S image side, M captions, T tokens.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from miniclip.data.cache import format as files
from miniclip.data.dataset import checked_index
from miniclip.data.given import Concatenation
from miniclip.data.preprocess import Preprocess
from miniclip.data.skipping import SkipLog
from miniclip.data.splits import likely_split
from miniclip.data.subset import Subset
from miniclip.errors import DataError

if TYPE_CHECKING:
    from miniclip.tokenizer import TextTokenizer


class CachedDataset:
    """One split of a decoded cache.

    `data[i]` is `(image, captions)` as for any dataset; the image has the size that the cache was built for. `pixels`
    returns many images at once and is what the loader uses.

    Args:
        path: the folder that `miniclip data cache` made.
        split: the name of a cached split.

    Attributes:
        captions: the captions of every image.
        names: the names of the images.
        skip_log: the images that could not be read when the cache was built.
        pixel_settings: image size, resizing, crop rounding and interpolation of the pixels.

    Raises:
        FileNotFoundError: the folder does not exist.
        ValueError: the split is not in the cache.
        DataError: a file is missing, damaged or truncated, or the cache is incomplete; the message names the file.
    """

    def __init__(self, path: str | Path, split: str = "train") -> None:
        self.path, self.split = Path(path), split
        self.pixel_settings: dict[str, Any] = files.read_header(self.path)["pixels"]
        self.folder = _split_folder(self.path, split)
        self.index = files.read_index(self.folder / files.INDEX)
        if self.index["source"]["pixels"] != self.pixel_settings:
            raise DataError(
                f"{self.folder / files.INDEX}: has other preprocessing than {files.HEADER}: it belongs to another cache"
            )
        size = self.pixel_settings["size"]
        self.shape = (3, size, size)
        shards = self.index["shards"]
        counts = torch.tensor([shard["images"] for shard in shards], dtype=torch.int64)
        self._ends = counts.cumsum(0)
        self._starts = self._ends - counts
        for file, expected in self._files():
            files.require_bytes(file, expected["bytes"])
        checksums = bytes.fromhex("".join(shard["checksums"] for shard in shards))
        self._checksums = np.frombuffer(checksums, ">u4")
        self._verified = bytearray(len(self._checksums))  # 1 for each image whose checksum was compared
        self.names, self.captions = self._read_captions()
        self.skip_log = SkipLog("skip", 1.0)
        self.skip_log.reasons = {image["name"]: image["reason"] for image in self.index["skipped"]}

    @staticmethod
    def is_cache(path: str | Path) -> bool:
        """Return whether a folder is a cache, complete or not."""
        return (Path(path) / files.HEADER).is_file()

    @classmethod
    def open_all(cls, path: Path) -> list[CachedDataset]:
        """Open all splits of a cache that are complete, sorted by name."""
        return [cls(path, split) for split in complete_splits(path)]

    def __len__(self) -> int:
        return len(self.captions)

    def __getitem__(self, index: int) -> tuple[Image.Image, list[str]]:
        """Return the RGB image, S x S, and its captions; negative indices count from the end.

        Raises:
            IndexError: the index is out of range.
        """
        index = checked_index(index, len(self))
        return self.image(index), list(self.captions[index])

    def image(self, index: int, at_least: int | None = None) -> Image.Image:
        """Return the image without its captions; `at_least` has no effect, since there is only one size."""
        (pixels,) = self.pixels([checked_index(index, len(self))])
        return Image.fromarray(pixels.permute(1, 2, 0).numpy())

    def name(self, index: int) -> str:
        """Return the name of an image in the original dataset."""
        return self.names[checked_index(index, len(self))]

    def pixels(self, indices: Sequence[int] | Tensor) -> Tensor:
        """Return images by their indices, 0..N-1 in any order: (B, 3, S, S) uint8.

        The checksum of an image is compared when it is read for the first time.

        Raises:
            IndexError: an index is out of range.
            DataError: a shard is missing, cut short or damaged; the message names the file.
        """
        indices = torch.as_tensor(indices, dtype=torch.int64)
        if len(indices) and not 0 <= int(indices.min()) <= int(indices.max()) < len(self):
            raise IndexError(f"an index is out of range for {len(self)} images")
        pixels = torch.empty(len(indices), *self.shape, dtype=torch.uint8)
        shards = torch.bucketize(indices, self._ends, right=True).tolist()
        images: dict[int, list[tuple[int, int]]] = {}  # by shard: rows of the batch, and indices
        for row, (shard, index) in enumerate(zip(shards, indices.tolist(), strict=True)):
            images.setdefault(shard, []).append((row, index))
        for shard, pairs in images.items():
            self._read_images(shard, pairs, pixels.numpy())
        return pixels

    def require(self, preprocess: Preprocess) -> None:
        """Check that the pixels are those of a model's preprocessing.

        Raises:
            ValueError: they are not; the message names the settings that differ.
        """
        expected = preprocess.pixel_settings
        if expected != self.pixel_settings:
            differences = ", ".join(
                f"{key} {self.pixel_settings.get(key)!r}, not {value!r}"
                for key, value in expected.items()
                if self.pixel_settings.get(key) != value
            )
            raise ValueError(
                f"{self.path} was built for another model: its pixels have {differences}; build a cache for this "
                "model, or use the original dataset"
            )

    def tokens(self, tokenizer: TextTokenizer, context_length: int, pad: bool) -> Tensor | None:
        """Return all captions as token ids, (M, T) int32, or None if the cache has none of this tokenizer.

        Raises:
            DataError: the ids are missing or damaged.
        """
        entry = self.index["tokens"]
        settings = (files.tokenizer_checksum(tokenizer), context_length, pad)
        if entry is None or settings != (entry["tokenizer"], entry["context_length"], entry["pad"]):
            return None
        file = self.folder / files.TOKENS
        tokens = torch.frombuffer(files.read_bytes(file, entry), dtype=torch.int32).view(entry["shape"])
        lowest, highest = (int(bound) for bound in tokens.aminmax())
        if lowest < 0 or highest >= tokenizer.vocab_size:
            raise DataError(
                f"{file}: holds ids from {lowest} to {highest}, expected 0 to {tokenizer.vocab_size - 1}: {files.FIX}"
            )
        return tokens

    def verify(self) -> None:
        """Read every file and compare its checksum.

        Raises:
            DataError: a checksum differs; the message names the file.
        """
        for file, expected in self._files():
            files.require_bytes(file, expected["bytes"])
            files.require_checksum(file, expected["sha256"])

    def _files(self) -> list[tuple[Path, dict[str, Any]]]:
        """Return every file of the split with its size and checksum."""
        entries = [(shard["file"], shard) for shard in self.index["shards"]]
        entries += [(files.CAPTIONS, self.index["captions"]), (files.TOKENS, self.index["tokens"])]
        return [(self.folder / name, entry) for name, entry in entries if entry is not None]

    def _read_captions(self) -> tuple[list[str], list[list[str]]]:
        file = self.folder / files.CAPTIONS
        names, captions = files.read_captions(file, self.index["captions"]["sha256"])
        tokens = self.index["tokens"]
        if len(names) != len(self._checksums):
            raise DataError(f"{file}: lists {len(names):,} images, expected {len(self._checksums):,}: {files.FIX}")
        if tokens is not None and tokens["shape"][0] != sum(map(len, captions)):
            rows, count = tokens["shape"][0], sum(map(len, captions))
            raise DataError(f"{file}: has {count:,} captions, and {files.TOKENS} {rows:,} rows: {files.FIX}")
        return names, captions

    def _read_images(self, number: int, images: list[tuple[int, int]], pixels: np.ndarray[Any, Any]) -> None:
        """Read images of a shard into a batch, and check those that are read for the first time.

        Args:
            number: of the shard.
            images: rows of the batch, and indices of the images.
            pixels: the batch.
        """
        file = self.folder / self.index["shards"][number]["file"]
        start = int(self._starts[number])
        with files.opened(file) as shard:
            for row, index in images:
                image = pixels[row]
                shard.seek((index - start) * image.nbytes)
                if shard.readinto(image) != image.nbytes:
                    raise DataError(f"{file}: is cut short: {files.FIX}")
                if not self._verified[index]:
                    if zlib.crc32(image) != self._checksums[index]:
                        raise DataError(
                            f"{file}: image {self.names[index]!r} has changed since it was written: {files.FIX}"
                        )
                    self._verified[index] = 1

    def __repr__(self) -> str:
        counts = f"{len(self):,} images of {self.pixel_settings['size']} px, {sum(map(len, self.captions)):,} captions"
        return f"CachedDataset({str(self.path)!r}, {self.split!r}: {counts})"


def require_pixels(data: Any, model: Any) -> None:
    """Check that a cached dataset, or a part of one, has the pixels of a model's preprocessing; other data pass.

    Raises:
        ValueError: the pixels are of another preprocessing.
    """
    if hasattr(model, "preprocess"):
        require_cached(data, model.preprocess)


def require_cached(data: Any, preprocess: Preprocess) -> None:
    """Check that a cached dataset, or a part of one, has the pixels of a preprocessing; other data pass.

    Raises:
        ValueError: the pixels are of another preprocessing.
    """
    if isinstance(data, CachedDataset):
        data.require(preprocess)
    for part in [data.data] if isinstance(data, Subset) else data.parts if isinstance(data, Concatenation) else []:
        require_cached(part, preprocess)


def _split_folder(path: Path, split: str) -> Path:
    """Return the folder of a split.

    Raises:
        ValueError: the split is not in the cache; the message names the splits that are.
        DataError: the split is incomplete.
    """
    complete = complete_splits(path)
    if split in complete:
        return path / split
    if (path / split / files.JOURNAL).is_file():
        raise DataError(f"{path / split}: the cache is incomplete: run `miniclip data cache` again to resume it")
    hint = likely_split(split, complete)
    raise ValueError(f"no split {split!r}: {path} has {', '.join(complete) or 'no complete split'}{hint}")


def complete_splits(path: Path) -> list[str]:
    """Return the names of the splits that a cache has, sorted."""
    return sorted(index.parent.name for index in path.glob(f"*/{files.INDEX}"))
