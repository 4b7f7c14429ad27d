"""Cached dataset: decoded images at the model's size, mapped into memory.

Letters: N images, B batch, S image side, M captions, T tokens.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from torch import Tensor

from miniclip.data.cache import format as files
from miniclip.data.dataset import checked_index
from miniclip.data.given import Concatenation
from miniclip.data.preprocess import Preprocess
from miniclip.data.skipping import SkipLog
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
        size = self.pixel_settings["size"]
        self.shape = (3, size, size)
        counts = torch.tensor([shard["images"] for shard in self.index["shards"]], dtype=torch.int64)
        self._ends = counts.cumsum(0)
        self._starts = self._ends - counts
        self._shards: dict[int, Tensor] = {}
        for file, expected in self._files():
            files.require_bytes(file, expected["bytes"])
        self.names, self.captions = self._read_captions()
        self.skip_log = SkipLog("skip", 1.0)
        self.skip_log.reasons = {image["name"]: image["reason"] for image in self.index["skipped"]}

    @staticmethod
    def is_cache(path: str | Path) -> bool:
        """Return whether a folder is a cache, complete or not."""
        return (Path(path) / files.HEADER).is_file()

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
        """Return images by their indices, 0..N-1 in any order: (B, 3, S, S) uint8, a copy."""
        indices = torch.as_tensor(indices, dtype=torch.int64)
        shards = torch.bucketize(indices, self._ends, right=True)
        offsets = (indices - self._starts[shards]).tolist() if len(indices) else []
        pixels = torch.empty(len(indices), *self.shape, dtype=torch.uint8)
        for row, (shard, offset) in enumerate(zip(shards.tolist(), offsets, strict=True)):
            pixels[row] = self._shard(shard)[offset]
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
        """Return all captions as token ids, (M, T) int32, or None if the cache has none of this tokenizer."""
        entry = self.index["tokens"]
        settings = (files.tokenizer_checksum(tokenizer), context_length, pad)
        if entry is None or settings != (entry["tokenizer"], entry["context_length"], entry["pad"]):
            return None
        return _mapped(self.folder / files.TOKENS, entry["shape"], torch.int32)

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
        files.require_checksum(file, self.index["captions"]["sha256"])  # a few MB, and captions are the labels
        rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        return [row["name"] for row in rows], [row["captions"] for row in rows]

    def _shard(self, number: int) -> Tensor:
        """Return the images of a shard, (n, 3, S, S); pages are read from disk on access."""
        if number not in self._shards:
            shard = self.index["shards"][number]
            self._shards[number] = _mapped(self.folder / shard["file"], (shard["images"], *self.shape), torch.uint8)
        return self._shards[number]

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_shards": {}}  # another process maps the files itself

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
    complete = sorted(index.parent.name for index in path.glob(f"*/{files.INDEX}"))
    if split in complete:
        return path / split
    if (path / split / files.JOURNAL).is_file():
        raise DataError(f"{path / split}: the cache is incomplete: run `miniclip data cache` again to resume it")
    raise ValueError(f"no split {split!r}: {path} has {', '.join(complete) or 'no complete split'}")


def _mapped(file: Path, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    size = torch.Size(shape).numel()
    flat = torch.from_file(str(file), shared=False, size=size, dtype=dtype) if size else torch.empty(0, dtype=dtype)
    return flat.view(*shape)
