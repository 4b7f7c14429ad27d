"""Safetensors files, opened and written by the safetensors library, and the index of files that are sharded.

The library maps the file, so a tensor that the model uses as stored costs no copy. A converted tensor stays in memory
twice, because the pages of a mapped file are freed only with the whole map. `SafetensorsWeights.take` therefore opens
the file again after every 32nd part of it. Measured with a ViT-L/14 of 428M parameters and safetensors 0.8: in
transformers' layout, whose queries, keys and values are concatenated, opening peaks at 1.01 times the weights instead
of 1.23; converted to bfloat16 at 1.09 instead of 3.01.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PureWindowsPath
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from miniclip.checkpoints.formats.messages import not_weights
from miniclip.errors import CheckpointError
from miniclip.utils.atomic import write_atomically
from miniclip.utils.files import open_regular, parse_json
from miniclip.utils.formatting import one_line, short

INDEX = re.compile(r"\.(safetensors|bin)\.index(?:\.\w+)?\.json$")  # `fp16` before `json` is a variant of transformers
MAX_INDEX = 32 << 20  # bytes; the index of 1,000 tensors has 100 KiB
AGAIN = "download the files again"
MAPS = 32  # per file and conversion: each holds that part of the file in memory at most


class _MappedFile:
    """A safetensors file: tensors over one lasting map, and over short-lived ones.

    The maps are private: changes to a tensor stay in this process. A map lasts as long as one of its tensors.
    Meanwhile the file may be removed or replaced by another, as `write_tensors` does, but not overwritten.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._version = _version(path)
        with _library_errors(path), safe_open(path, framework="pt") as file:
            self.metadata: dict[str, str] = file.metadata() or {}
            self.tensors: dict[str, Tensor] = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        self._map_size = sum(tensor.nbytes for tensor in self.tensors.values()) // MAPS
        self._file: Any = None
        self._taken = 0  # bytes

    def take(self, key: str) -> Tensor:
        """Return a tensor over a short-lived map."""
        if self._file is None:
            with _library_errors(self.path):
                self._file = safe_open(self.path, framework="pt")
            if _version(self.path) != self._version:
                raise CheckpointError(f"{self.path}: the file was replaced while it was read: load it again")
            self._taken = 0
        tensor: Tensor = self._file.get_tensor(key)
        self._taken += tensor.nbytes
        if self._taken >= self._map_size:
            self._file = None
        return tensor


class SafetensorsWeights:
    """Tensors of a safetensors file, or of all the files of an index.

    Attributes:
        path: the file or the index.
        metadata: of the file or the index.
        shapes: by name.
        dtypes: by name.
    """

    def __init__(self, path: Path, metadata: dict[str, str], files: Mapping[str, tuple[_MappedFile, str]]) -> None:
        self.path = path
        self.metadata = metadata
        self._files = dict(files)  # by name: the file, and the tensor's name in it
        tensors = {name: file.tensors[key] for name, (file, key) in files.items()}
        self.shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        self.dtypes = {name: tensor.dtype for name, tensor in tensors.items()}

    def get(self, key: str) -> Tensor:
        """Return a tensor over the mapped file, without a copy.

        Raises:
            KeyError: the tensor does not exist.
        """
        file, name = self._files[key]
        return file.tensors[name]

    def take(self, key: str) -> Tensor:
        """Return a tensor that the caller copies; its memory is freed after the caller drops it.

        Raises:
            KeyError: the tensor does not exist.
            CheckpointError: the file has been replaced since it was opened.
        """
        file, name = self._files[key]
        return file.take(name)


def open_tensors(path: Path) -> SafetensorsWeights:
    """Map a safetensors file, or all the files that a `*.safetensors.index.json` names.

    Raises:
        FileNotFoundError: the file does not exist.
        CheckpointError: the file, or one that the index names, is damaged or not a safetensors file.
    """
    if INDEX.search(path.name):
        return _open_index(path)
    with open_regular(path) as opened:
        head = opened.read(64)
    if problem := not_weights(head) or ("a zip file, as torch.save writes" if head.startswith(b"PK\3\4") else None):
        raise CheckpointError(f"{path}: not a whole safetensors file ({problem}); copy or download it again")
    file = _MappedFile(path)
    return SafetensorsWeights(path, file.metadata, {key: (file, key) for key in file.tensors})


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read a safetensors file into memory of torch's own; nothing stays mapped.

    Returns:
        The tensors, and the file's metadata.

    Raises:
        FileNotFoundError: the file does not exist.
        CheckpointError: it is not a whole safetensors file.
    """
    weights = open_tensors(path)
    return {key: weights.take(key).clone() for key in weights.shapes}, weights.metadata


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write a safetensors file, atomically.

    Args:
        path: the file.
        tensors: of any device and strides. Tensors that are not contiguous or share memory are copied first.
        metadata: text by name.

    Raises:
        ValueError: the format has no place for a tensor; the message names it.
        TypeError: the metadata is not text.
        OSError: the file cannot be written, for example because the disk is full.
    """
    write_atomically(path, tensors_writer(path, tensors, metadata))


def tensors_writer(
    path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> Callable[[Path], None]:
    """Return the function that writes a safetensors file under a temporary name; as `write_tensors`."""
    written: dict[str, Tensor] = {}
    storages = set[int]()
    for key, tensor in tensors.items():
        if tensor.layout != torch.strided or tensor.is_meta or tensor.is_complex() or key == "__metadata__":
            kind = f"{tensor.dtype}, {tensor.layout}, on {tensor.device}"
            raise ValueError(f"{key!r} cannot be written to a safetensors file ({kind}): expected a plain tensor")
        plain = tensor.detach().cpu().contiguous()
        if (storage := plain.untyped_storage().data_ptr()) in storages and plain.numel():
            plain = plain.clone()  # the library refuses tensors that overlap
        storages.add(storage)
        written[key] = plain

    def write(temporary: Path) -> None:
        temporary.touch()
        mode = temporary.stat().st_mode
        try:
            save_file(written, temporary, dict(metadata or {}) or None)
        except SafetensorError as error:
            if (number := re.search(r"os error (\d+)", str(error))) is None:
                raise
            raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from None
        _sort_metadata(temporary)
        temporary.chmod(mode)  # the library ignores the umask: only the owner could read the file

    return write


def _sort_metadata(file: Path) -> None:
    """Order the metadata by name, in place: equal content has equal bytes, and the library's order is random."""
    with file.open("r+b") as stream:
        size = int.from_bytes(stream.read(8), "little")
        header = json.loads(stream.read(size))
        if len(header.get("__metadata__", {})) < 2:
            return
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        if len(text) <= size:
            stream.seek(8)
            stream.write(text.ljust(size))


@contextmanager
def _library_errors(path: Path) -> Iterator[None]:
    """Raise what the library reports about a file's content as a `CheckpointError` that names the file."""
    try:
        yield
    except (SafetensorError, ValueError, TypeError, RuntimeError, OverflowError) as error:
        reason = one_line(error).removeprefix("Error while deserializing header: ")
        if "unknown variant" in reason or "Dtype not understood" in reason:
            raise CheckpointError(
                f"{path}: a tensor has a data type that this version of safetensors does not have ({reason}): "
                "upgrade safetensors, or save the weights in another precision"
            ) from None
        raise CheckpointError(
            f"{path}: not a whole safetensors file ({reason}); it may have been cut short: copy or download it again"
        ) from None


def _version(path: Path) -> tuple[int, ...]:
    """Return numbers that change when a file is replaced."""
    status = path.stat()
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def _open_index(path: Path) -> SafetensorsWeights:
    """Open all the files that an index names, as one."""
    weight_map, metadata = read_index(path)
    shards = {name: _open_shard(path, name) for name in shard_names(path, weight_map, ".safetensors")}
    check_shards(path, weight_map, {name: shard.shapes for name, shard in shards.items()})
    return SafetensorsWeights(path, metadata, {key: shards[name]._files[key] for key, name in weight_map.items()})


def check_shards(path: Path, weight_map: Mapping[str, str], shards: Mapping[str, Collection[str]]) -> None:
    """Raise `CheckpointError` unless each file of an index has the tensors that the index names, and no others."""
    for name, keys in shards.items():
        for key in keys:
            if weight_map.get(key) != name:
                expected = short(weight_map[key]) if key in weight_map else "nowhere"
                raise CheckpointError(
                    f"{path}: {short(key)} is in {name!r}, expected {expected}; download the files again"
                )
    for key, name in weight_map.items():
        if key not in shards[name]:
            raise CheckpointError(f"{path}: {short(key)} is not in {name!r}, where it should be; {AGAIN}")


def read_index(path: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the file names by tensor, not yet checked, and the metadata of an index."""
    with open_regular(path) as file:
        text = file.read(MAX_INDEX + 1)
    try:
        if len(text) > MAX_INDEX:
            raise ValueError(f"longer than {MAX_INDEX >> 20} MiB")
        index = parse_json(text)
        weight_map = index["weight_map"]
        metadata = index.get("metadata", {})
        if not isinstance(weight_map, dict) or not isinstance(metadata, dict):
            raise TypeError("no weight_map in it")
        texts = {key: value if isinstance(value, str) else json.dumps(value) for key, value in metadata.items()}
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        problem = not_weights(text[:64]) or ("no weight_map in it" if isinstance(error, KeyError) else one_line(error))
        kind = "pickles" if ".bin." in path.name else "safetensors files"
        raise CheckpointError(f"{path}: not an index of {kind} ({problem}); copy or download it again") from None
    return weight_map, texts


def shard_names(path: Path, weight_map: Mapping[str, Any], ending: str) -> list[str]:
    """Return the files that an index names, each of them beside it: a hostile index could name any file of the disk."""
    for name in weight_map.values():
        plain = isinstance(name, str) and name.isprintable() and name == PureWindowsPath(name).name
        if not plain or not name.endswith(ending):
            raise CheckpointError(f"{path}: found {short(name)}, expected the name of a {ending} file beside it")
    return sorted(set(weight_map.values()))


def _open_shard(path: Path, name: str) -> SafetensorsWeights:
    """Open a file beside the index at `path`."""
    try:
        return open_tensors(path.with_name(name))
    except OSError as error:
        reason = one_line(str(error).removeprefix(f"{path.with_name(name)}: "))
        raise CheckpointError(
            f"{path}: {name} is named in it, but cannot be read ({reason}); download it too"
        ) from None
