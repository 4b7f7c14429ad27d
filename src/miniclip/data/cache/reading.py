"""StepMetrics a packed set: pictures at the model's size, uint8, in files that are mapped into memory.

    OUT/pack.json            the format, and how the pictures became pixels
    OUT/SPLIT/index.json     the shards and the other files with their checksums; what was left out
    OUT/SPLIT/00000.bin      (n, 3, S, S) uint8 and nothing else; 00001.bin, …
    OUT/SPLIT/captions.jsonl a line a picture: {"name": …, "captions": […]}
    OUT/SPLIT/tokens.bin     (M, T) int32: all captions as token ids, if a tokenizer was given

`packing.py` writes it. Letters: N pictures, n of a shard, S picture side, M captions, T tokens.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from torch import Tensor

from miniclip.data.dataset import checked_index
from miniclip.data.skipping import SkipLog
from miniclip.data.transforms import Preprocess
from miniclip.errors import DataError

if TYPE_CHECKING:
    from miniclip.tokenizer import TextTokenizer

FORMAT = "miniclip pack 1"
PACK, INDEX, CAPTIONS, TOKENS, JOURNAL = "pack.json", "index.json", "captions.jsonl", "tokens.bin", "progress.jsonl"
MEND = "pack the set again into the same folder: what is whole is kept"


class CachedDataset:
    """A split of a packed set.

    `data[i]` is `(picture, captions)`, as of any set, the picture at the size that it was packed for. `pixels` gives
    many pictures at once, which is what the loader uses.

    Args:
        path: the folder that `miniclip data pack` made.
        split: one of those that were packed.

    Attributes:
        captions: of every picture.
        names: what the pictures were called.
        skip_log: the pictures that could not be read when the set was packed.
        how: the picture side, the resizing, the crop and the interpolation that the pixels were made with.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: the split was not packed.
        DataError: a file is missing, damaged or cut short, or packing was not finished; the message names it.
    """

    def __init__(self, path: str | Path, split: str = "train") -> None:
        self.path, self.split = Path(path), split
        self.how: dict[str, Any] = read_pack(self.path)["pixels"]
        self.folder = _split_folder(self.path, split)
        self.index = read_index(self.folder / INDEX)
        size = self.how["size"]
        self.shape = (3, size, size)
        counts = [shard["pictures"] for shard in self.index["shards"]]
        self._ends = torch.tensor(counts, dtype=torch.int64).cumsum(0)
        self._starts = self._ends - torch.tensor(counts, dtype=torch.int64)
        self._maps: dict[int, Tensor] = {}
        for file, expected in self._files():
            require_bytes(file, expected["bytes"])
        self.names, self.captions = self._read_captions()
        self.skip_log = SkipLog("skip", 1.0)
        self.skip_log.reasons = {one["name"]: one["reason"] for one in self.index["skip_log"]}

    @staticmethod
    def is_packed(path: str | Path) -> bool:
        """Whether a folder is a packed set, whole or not."""
        return (Path(path) / PACK).is_file()

    def __len__(self) -> int:
        return len(self.captions)

    def __getitem__(self, index: int) -> tuple[Image.Image, list[str]]:
        """The picture, RGB, S x S, and its captions; negative indices count from the end.

        Raises:
            IndexError: the index is out of range.
        """
        index = checked_index(index, len(self))
        return self.image(index), list(self.captions[index])

    def image(self, index: int, at_least: int | None = None) -> Image.Image:
        """The picture alone; there is but one size of it."""
        (pixels,) = self.pixels([checked_index(index, len(self))])
        return Image.fromarray(pixels.permute(1, 2, 0).numpy())

    def name(self, index: int) -> str:
        """What the picture was called."""
        return self.names[checked_index(index, len(self))]

    def pixels(self, indices: Sequence[int] | Tensor) -> Tensor:
        """Pictures by their numbers, 0..N-1, in any order: (B, 3, S, S) uint8, a copy."""
        wanted = torch.as_tensor(indices, dtype=torch.int64)
        shards = torch.bucketize(wanted, self._ends, right=True)
        places = (wanted - self._starts[shards]).tolist() if len(wanted) else []
        pixels = torch.empty(len(wanted), *self.shape, dtype=torch.uint8)
        for row, (shard, place) in enumerate(zip(shards.tolist(), places, strict=True)):
            pixels[row] = self._map(shard)[place]
        return pixels

    def require(self, preprocess: Preprocess) -> None:
        """See that the pixels are those that a model takes.

        Raises:
            ValueError: it wants others.
        """
        wanted = preprocess.how()
        if wanted != self.how:
            differ = ", ".join(
                f"{key} {self.how.get(key)!r}, not {value!r}"
                for key, value in wanted.items()
                if self.how.get(key) != value
            )
            raise ValueError(
                f"{self.path} was packed for another model: its pixels have {differ}; pack the set for this one, or "
                "take the set that it was packed from"
            )

    def tokens(self, tokenizer: TextTokenizer, context_length: int, pad: bool) -> Tensor | None:
        """All captions as token ids, (M, T) int32, if they were packed with this tokenizer; else None."""
        kept = self.index["tokens"]
        how = (digest_of(tokenizer), context_length, pad)
        if kept is None or how != (kept["tokenizer"], kept["context_length"], kept["pad"]):
            return None
        return _mapped(self.folder / TOKENS, kept["shape"], torch.int32)

    def verify(self) -> None:
        """Read every file and compare its checksum.

        Raises:
            DataError: one differs; the message names it.
        """
        for file, expected in self._files():
            require_bytes(file, expected["bytes"])
            if digest(file) != expected["sha256"]:
                raise DataError(f"{file}: is not what was packed (its SHA-256 differs): {MEND}")

    def _files(self) -> list[tuple[Path, dict[str, Any]]]:
        """Every file of the split with its size and checksum."""
        rest = {CAPTIONS: self.index["captions"], TOKENS: self.index["tokens"]}
        shards = [(self.folder / shard["file"], shard) for shard in self.index["shards"]]
        return shards + [(self.folder / name, kept) for name, kept in rest.items() if kept is not None]

    def _read_captions(self) -> tuple[list[str], list[list[str]]]:
        file = self.folder / CAPTIONS
        if digest(file) != self.index["captions"]["sha256"]:  # some MB: quickly done, and captions are the labels
            raise DataError(f"{file}: is not what was packed (its SHA-256 differs): {MEND}")
        rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        return [row["name"] for row in rows], [row["captions"] for row in rows]

    def _map(self, shard: int) -> Tensor:
        """A shard's pictures, (n, 3, S, S); its pages are read when they are looked at."""
        if shard not in self._maps:
            about = self.index["shards"][shard]
            self._maps[shard] = _mapped(self.folder / about["file"], (about["pictures"], *self.shape), torch.uint8)
        return self._maps[shard]

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_maps": {}}  # another process maps the files for itself

    def __repr__(self) -> str:
        captions = sum(map(len, self.captions))
        size = self.how["size"]
        return f"CachedDataset({str(self.path)!r}, {self.split!r}: {len(self):,} pictures of {size} px, {captions:,} captions)"


def require_pixels(data: Any, model: Any) -> None:
    """See that a packed set, where it is one, has the pixels that a model takes.

    Raises:
        ValueError: it has others.
    """
    if isinstance(data, CachedDataset) and hasattr(model, "preprocess"):
        data.require(model.preprocess)


def read_pack(path: Path) -> dict[str, Any]:
    """What all splits share.

    Raises:
        FileNotFoundError: there is no such folder.
        DataError: it is no packed set.
    """
    if not path.is_dir():
        raise FileNotFoundError(f"{path}: there is no such folder; a packed set is one that `miniclip data pack` made")
    return _read(path / PACK, ("pixels",))


def read_index(file: Path) -> dict[str, Any]:
    """What a split holds.

    Raises:
        DataError: the file is missing or damaged.
    """
    return _read(file, ("shards", "captions", "tokens", "skip_log", "source"))


def _read(file: Path, keys: Sequence[str]) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"{file}: is missing; a packed set is a folder that `miniclip data pack` made") from None
    except ValueError as error:
        raise DataError(f"{file}: is not JSON ({error}): {MEND}") from None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        found = content.get("format") if isinstance(content, dict) else content
        raise DataError(f"{file}: found format {found!r}, expected {FORMAT!r}: another version wrote it; pack anew")
    if sealed(content) != content or any(key not in content for key in keys):
        raise DataError(f"{file}: is not what was written (its SHA-256 differs): {MEND}")
    return content


def sealed(content: dict[str, Any]) -> dict[str, Any]:
    """The content with a checksum of all the rest of it."""
    rest = {key: value for key, value in content.items() if key != "sha256"}
    return rest | {"sha256": hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()}


def _split_folder(path: Path, split: str) -> Path:
    """The folder of a split.

    Raises:
        ValueError: it was not packed; the message names those that were.
        DataError: its packing was not finished.
    """
    known = sorted(index.parent.name for index in path.glob(f"*/{INDEX}"))
    if split in known:
        return path / split
    if (path / split / JOURNAL).is_file():
        raise DataError(f"{path / split}: was not packed to its end: run `miniclip data pack` again, which goes on")
    raise ValueError(f"no split {split!r}: {path} has {', '.join(known) or 'none that is whole'}")


def require_bytes(file: Path, expected: int) -> None:
    """See that a file has the size that it was written with.

    Raises:
        DataError: it has not, or is missing.
    """
    if not file.is_file():
        raise DataError(f"{file}: is missing: {MEND}")
    found = file.stat().st_size
    if found != expected:
        raise DataError(f"{file}: is {found:,} bytes long, expected {expected:,}: {MEND}")


def digest(file: Path) -> str:
    """The SHA-256 of a file."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def digest_of(tokenizer: TextTokenizer) -> str:
    """What tells whether two tokenizers are the same: the SHA-256 of the file that they are saved as."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "tokenizer.json"
        tokenizer.save(file)
        return digest(file)


def _mapped(file: Path, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    size = torch.Size(shape).numel()
    flat = torch.from_file(str(file), shared=False, size=size, dtype=dtype) if size else torch.empty(0, dtype=dtype)
    return flat.view(*shape)
