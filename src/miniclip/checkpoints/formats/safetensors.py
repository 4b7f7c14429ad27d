"""Safetensors files, read from the memory map and written in a stream: the weights are in memory once, not twice.

The format, https://github.com/huggingface/safetensors#format: 8 bytes that say how long the header is (little-endian);
the header in JSON, {name: {"dtype", "shape", "data_offsets": [start, stop]}}, with offsets from the header's end; the
tensors' bytes, without holes. Large models come as several such files, with an index that names each tensor's file.

The header is read here and not by the safetensors library, which does not tell where in the file a tensor is (`release`
must know), and whose messages do not tell which tensor is wrong.
"""

from __future__ import annotations

import json
import math
import mmap
import weakref
from collections import Counter
from collections.abc import Mapping, Sequence
from io import FileIO
from pathlib import Path, PureWindowsPath
from reprlib import repr as short
from typing import Any, NamedTuple, TypeGuard

import torch
from torch import Tensor

from miniclip.checkpoints.formats.splicing import spliced
from miniclip.errors import CheckpointError
from miniclip.utils.atomic import write_atomically

DTYPES = {
    "BOOL": torch.bool, "U8": torch.uint8, "U16": torch.uint16, "U32": torch.uint32, "U64": torch.uint64,
    "I8": torch.int8, "I16": torch.int16, "I32": torch.int32, "I64": torch.int64,
    "F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32, "F64": torch.float64,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E4M3FNUZ": torch.float8_e4m3fnuz,
    "F8_E5M2": torch.float8_e5m2, "F8_E5M2FNUZ": torch.float8_e5m2fnuz, "F8_E8M0": torch.float8_e8m0fnu,
}  # fmt: skip
NAMES = {dtype: name for name, dtype in DTYPES.items()}

INDEX = ".safetensors.index.json"
ALIGNMENT = 64  # bytes; torch's own memory starts at multiples of it
IN_PLACE = 1 << 20  # bytes; to move a tensor of this size costs more than it can bring
MAX_HEADER = 100_000_000  # bytes; the library's limit too

# What is often found under the name of weights, by how it begins.
IMPOSTORS = {
    b"version https://git-lfs": "a Git LFS pointer in place of the weights, which `git lfs pull` brings",
    b"<": "a page of HTML or XML in place of the weights",
    b"PK\x03\x04": "a zip file, such as torch.save writes",
}


class Place(NamedTuple):
    """Where a tensor is: `start` and `stop` are bytes of the file, which is open and mapped."""

    file: FileIO
    mapped: mmap.mmap
    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    stop: int


class TensorFile:
    """The tensors of a safetensors file, or of all the files of an index, over the memory map.

    The map is private: what is written into a tensor stays in this process. It lasts as long as this object or one of
    its tensors. Meanwhile the file may be removed or replaced by another, as `write_tensors` does, but not overwritten.

    Attributes:
        path: what was opened.
        metadata: the header's, or the index's.
        shapes: by key, in the header's order.
        dtypes: by key.
    """

    def __init__(self, path: Path, metadata: dict[str, str], places: Mapping[str, Place]) -> None:
        self.path = path
        self.metadata = metadata
        self.shapes = {key: place.shape for key, place in places.items()}
        self.dtypes = {key: place.dtype for key, place in places.items()}
        self._places = dict(places)
        self._shards: tuple[TensorFile, ...] = ()  # kept, since a file is closed with the object that opened it
        for file in {place.file for place in places.values()}:
            weakref.finalize(self, file.close)

    def take(self, key: str) -> Tensor:
        """A tensor over the mapped file, without a copy; it may start at any byte.

        Raises:
            KeyError: there is no such tensor.
        """
        _, mapped, dtype, shape, start, stop = self._places[key]
        if start == stop:  # frombuffer takes no empty ones
            return torch.empty(shape, dtype=dtype, device="cpu")
        count = (stop - start) // dtype.itemsize
        return torch.frombuffer(mapped, dtype=dtype, count=count, offset=start).view(shape)

    def copy_into(self, key: str, out: Tensor) -> None:
        """Read a tensor into memory that is there: past the map, whose pages need not be touched and given back then.

        Args:
            key: the tensor's.
            out: contiguous, on the CPU, of the tensor's type and number of elements.

        Raises:
            KeyError: there is no such tensor.
            CheckpointError: the file has become shorter since it was opened.
        """
        file, _, _, _, start, _ = self._places[key]
        left = out.detach().reshape(-1).view(torch.uint8).numpy().data
        file.seek(start)
        while left:
            count = file.readinto(left)
            if not count:
                raise CheckpointError(f"{self.path}: the file was cut short while it was read")
            left = left[count:]

    def take_joined(self, keys: Sequence[str]) -> Tensor | None:
        """Several tensors of one type, one after the other, without a copy: (elements of all,).

        None where they are small or of several files, or do not lie in the file as `splicing` needs it.

        Raises:
            KeyError: there is no such tensor.
        """
        places = [self._places[key] for key in keys]
        spans, dtype = [(place.start, place.stop) for place in places], places[0].dtype
        small = any(stop - start < IN_PLACE for start, stop in spans)
        if small or len({place.file for place in places}) > 1 or spans[0][0] % dtype.itemsize:
            return None
        found = spliced(places[0].file, spans)
        return found and torch.frombuffer(found[0], dtype=dtype, offset=found[1])

    def release(self, key: str) -> None:
        """Give a tensor's memory back to the system, as it should be when a copy was made.

        The tensor stays usable: it would be read from the file again, and what was written into it is lost. No other
        tensor is touched: the pages at its two ends, which may hold a neighbour's bytes, are kept. Where the system has
        no such advice, this does nothing.

        Raises:
            KeyError: there is no such tensor.
        """
        _, mapped, _, _, start, stop = self._places[key]
        first, last = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE, stop // mmap.PAGESIZE * mmap.PAGESIZE
        if first < last and hasattr(mmap, "MADV_DONTNEED"):
            mapped.madvise(mmap.MADV_DONTNEED, first, last - first)


def open_tensors(path: Path) -> TensorFile:
    """Map a safetensors file, or all the files that a `*.safetensors.index.json` names.

    Nothing is read but the headers. They are checked whole: what is opened can be taken.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: it is damaged, or something else, or a file that the index names is.
    """
    if path.name.endswith(INDEX):
        return _open_index(path)
    file = path.open("rb", buffering=0)
    try:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        header, begin = _read_header(mapped)
        metadata = _strings(header.pop("__metadata__", {}))
        places = {key: _place(file, mapped, begin, key, value) for key, value in header.items()}
        _check_layout(places, begin, len(mapped))
    except CheckpointError as error:
        file.close()
        raise CheckpointError(f"{path}: {error}") from None
    except (ValueError, RecursionError) as error:
        file.close()
        raise CheckpointError(
            f"{path}: not a whole safetensors file ({error}); it may have been cut short: copy or download it again"
        ) from None
    return TensorFile(path, metadata, places)


def _read_header(mapped: mmap.mmap) -> tuple[dict[str, Any], int]:
    """The header, and the byte at which the tensors begin. Raises ValueError or RecursionError."""
    length = int.from_bytes(mapped[:8], "little")
    if length > MAX_HEADER:  # as any text is, read as a number
        raise ValueError(_impostor(mapped[:64]) or f"its header would have {length} bytes")
    if 8 + length > len(mapped):
        raise ValueError(f"it has {len(mapped)} bytes, and {8 + length} for the header alone")
    return _parse(mapped[8 : 8 + length]), 8 + length


def _impostor(start: bytes) -> str | None:
    """What a file is that begins so, where that is known."""
    text = start.removeprefix(b"\xef\xbb\xbf").lstrip()
    return next((what for opening, what in IMPOSTORS.items() if text.startswith(opening)), None)


def _parse(text: bytes) -> dict[str, Any]:
    """A JSON object. Raises ValueError, or RecursionError for one that is nested thousands deep."""
    try:
        value = json.loads(text.decode("utf-8"), object_pairs_hook=_unique)
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"no JSON: {error}") from None
    if not isinstance(value, dict):
        raise ValueError(f"a JSON {type(value).__name__}, expected an object")  # noqa: TRY004
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object whose keys are there once each; json would let the last one win."""
    found = dict(pairs)
    if len(found) < len(pairs):
        twice, _ = Counter(key for key, _ in pairs).most_common(1)[0]
        raise ValueError(f"the key {twice!r} is there twice")
    return found


def _strings(value: Any) -> dict[str, str]:
    """The metadata, checked. Raises ValueError."""
    if not isinstance(value, dict) or not all(isinstance(text, str) for text in value.values()):
        raise ValueError("its __metadata__ is no object of strings")
    return value


def _place(file: FileIO, mapped: mmap.mmap, begin: int, key: str, entry: Any) -> Place:
    """Where a tensor is, by its entry in the header. Raises ValueError, or CheckpointError for an unknown dtype."""
    fields = entry if isinstance(entry, dict) else {}
    name, shape, span = fields.get("dtype"), fields.get("shape"), fields.get("data_offsets")
    if not isinstance(name, str) or not _sizes(shape) or not _sizes(span) or len(span) != 2:
        raise ValueError(f"{key!r} is {short(entry)}, expected a dtype, a shape and two data_offsets")
    if name not in DTYPES:  # no damage: the file may be of a newer kind
        raise CheckpointError(f"{key!r} has the unknown dtype {name!r}; expected one of {', '.join(DTYPES)}")
    itemsize, (start, stop) = DTYPES[name].itemsize, span
    if math.prod(max(size, 1) for size in shape) * itemsize >= 2**63:  # even if empty, torch's strides would overflow
        raise ValueError(f"{key!r} has the shape {short(shape)}")
    nbytes = math.prod(shape) * itemsize
    if stop - start != nbytes:
        raise ValueError(f"{key!r} has the data_offsets {span}, expected {nbytes} bytes for {short(shape)} of {name}")
    return Place(file, mapped, DTYPES[name], tuple(shape), begin + start, begin + stop)


def _sizes(value: Any) -> TypeGuard[list[int]]:
    """Whether a value is a list of sizes, no longer than the shapes that torch's kernels take."""
    return isinstance(value, list) and len(value) <= 64 and all(type(n) is int and 0 <= n < 2**63 for n in value)


def _check_layout(places: Mapping[str, Place], begin: int, size: int) -> None:
    """Raise ValueError unless every byte behind the header belongs to one tensor."""
    end = begin
    for key, place in sorted(places.items(), key=lambda item: (item[1].start, item[1].stop)):
        if place.start != end:
            problem = "overlaps the one before it" if place.start < end else "leaves a hole before it"
            raise ValueError(f"{key!r} starts at byte {place.start}, expected {end}: it {problem}")
        end = place.stop
    if end != size:
        raise ValueError(f"it has {size} bytes, expected {end}")


def _open_index(path: Path) -> TensorFile:
    """All the files that an index names, as one."""
    with path.open("rb") as file:
        text = file.read(MAX_HEADER + 1)
    try:
        index = _parse(text) if len(text) <= MAX_HEADER else {}
        weight_map, metadata = index.get("weight_map"), index.get("metadata", {})
        if not isinstance(weight_map, dict) or not isinstance(metadata, dict):
            raise ValueError("no weight_map in it")  # noqa: TRY004
    except (ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{path}: not an index of safetensors files ({_impostor(text) or error}); copy or download it again"
        ) from None
    shards = {name: _open_shard(path, name) for name in sorted(_shard_names(path, weight_map))}
    for name, shard in shards.items():
        for key in shard.shapes:
            if weight_map.get(key) != name:
                place = repr(weight_map[key]) if key in weight_map else "nowhere"
                raise CheckpointError(f"{path}: {key!r} is in {name!r}, expected {place}; download the files again")
    for key, name in weight_map.items():
        if key not in shards[name].shapes:
            raise CheckpointError(f"{path}: {key!r} is not in {name!r}, where it should be; download the files again")
    texts = {key: value if isinstance(value, str) else json.dumps(value) for key, value in metadata.items()}
    whole = TensorFile(path, texts, {key: shards[name]._places[key] for key, name in weight_map.items()})
    whole._shards = tuple(shards.values())
    return whole


def _shard_names(path: Path, weight_map: Mapping[str, Any]) -> set[str]:
    """The files that an index names, each of them beside it: a hostile one could name any file of the disk."""
    for name in weight_map.values():
        plain = isinstance(name, str) and name.isprintable() and name == PureWindowsPath(name).name
        if not plain or not name.endswith(".safetensors"):
            raise CheckpointError(f"{path}: found {short(name)}, expected the name of a .safetensors file beside it")
    return set(weight_map.values())


def _open_shard(path: Path, name: str) -> TensorFile:
    """A file beside the index at `path`; one that is missing makes the whole damaged."""
    try:
        return open_tensors(path.with_name(name))
    except OSError as error:
        raise CheckpointError(
            f"{path}: {name} is named in it, but cannot be read ({error.strerror}); download it too"
        ) from None


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read a safetensors file into memory of torch's own; nothing stays mapped.

    Returns:
        The tensors, and the file's metadata.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: it is no whole safetensors file.
    """
    file = open_tensors(path)
    found = {}
    for key in file.shapes:
        found[key] = file.take(key).clone()
        file.release(key)
    return found, file.metadata


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write a safetensors file, atomically, one tensor after the other.

    Every tensor of a multiple of 64 bytes starts at such a byte of the file, so that a mapped model can use it in place
    and give the bits of the model that was saved.

    Args:
        path: the file.
        tensors: of any device and strides; never is more than one of them copied at a time. Those that share memory
            are written each.
        metadata: text by name.

    Raises:
        ValueError: a tensor is of a dtype or a layout that the format has not, or is on the device "meta".
        TypeError: the metadata is not text.
    """
    spans, header = _header(tensors, dict(metadata or {}))

    def write(temporary: Path) -> None:
        with temporary.open("wb") as file:
            file.write(header)
            for key in spans:
                file.write(_bytes(tensors[key]))

    write_atomically(path, write)


def _header(tensors: Mapping[str, Tensor], metadata: dict[str, str]) -> tuple[dict[str, tuple[int, int]], bytes]:
    """Where each tensor's bytes go, in the file's order, and the header with its length before it."""
    _check_writable(tensors, metadata)
    spans, end = {}, 0
    for key in sorted(tensors, key=lambda key: -_alignment(tensors[key].nbytes)):
        spans[key] = (end, end + tensors[key].nbytes)
        end = spans[key][1]
    header: dict[str, Any] = {"__metadata__": metadata} if metadata else {}
    for key, tensor in tensors.items():
        header[key] = {"dtype": NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": spans[key]}
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % ALIGNMENT)
    return spans, len(text).to_bytes(8, "little") + text


def _check_writable(tensors: Mapping[str, Tensor], metadata: dict[str, str]) -> None:
    """Raise TypeError or ValueError where the format has no place for something."""
    if not all(isinstance(text, str) for text in [*metadata, *metadata.values()]):
        raise TypeError(f"the metadata of a safetensors file is text by name, not {metadata}")
    for key, tensor in tensors.items():
        if tensor.dtype not in NAMES or tensor.layout != torch.strided or tensor.is_meta:
            kind = f"{tensor.dtype}, {tensor.layout}, on {tensor.device}"
            raise ValueError(f"{key!r} is of a kind that safetensors files have not ({kind})")
        if key == "__metadata__":
            raise ValueError(f"no tensor of a safetensors file can have the name {key}")


def _alignment(nbytes: int) -> int:
    """The largest power of two that divides a size, up to 64.

    In falling order of it, every tensor starts at a multiple of its own: those before it are multiples of it too.
    """
    return min(nbytes & -nbytes or ALIGNMENT, ALIGNMENT)


def _bytes(tensor: Tensor) -> memoryview:
    """A tensor's bytes, row by row; a copy only where it is on another device or otherwise strided."""
    return tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data
