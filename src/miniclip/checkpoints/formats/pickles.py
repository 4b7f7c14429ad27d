"""Weights from `.bin`, `.pt` and `.pth` files, which are pickles, without running code from them.

Files of torch.save are opened by `torch.load(weights_only=True)`, and mapped if they are zips. TorchScript archives
(torch.jit.save, OpenAI's releases), which torch.load refuses, are read by `torchscript.py`.
"""

from __future__ import annotations

import copy
import os
import pickle
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO, NamedTuple

import torch
from torch import Tensor

from miniclip.checkpoints.formats.messages import not_weights, refused_global
from miniclip.checkpoints.formats.pickle_scan import LEGACY_PICKLES, MAX_PICKLE, check_pickles, unusual_globals
from miniclip.checkpoints.formats.torchscript import read_archive
from miniclip.checkpoints.formats.training_files import find_state_dict, stand_ins
from miniclip.errors import CheckpointError
from miniclip.utils.files import open_regular
from miniclip.utils.formatting import one_line, short

MAX_GROWTH = 8  # bytes of the tensors for each byte of the file; tied weights are shared, and some buffers expanded


class Pickled(NamedTuple):
    """The content of a file.

    Attributes:
        tensors: a flat state dict of plain tensors on the CPU, without gradients.
        is_torchscript: whether the file is a TorchScript archive.
    """

    tensors: dict[str, Tensor]
    is_torchscript: bool


def read_pickled(path: Path) -> Pickled:
    """Read the weights of a `.bin`, `.pt` or `.pth` file.

    Args:
        path: a file of torch.save, in either of its formats, or of torch.jit.save. The weights may be under
            "state_dict", "model_state_dict" or "model", or in other nested dicts.

    Raises:
        FileNotFoundError: the file does not exist.
        CheckpointError: it is not a whole file of weights, or reading it would run code.
    """
    with open_regular(path) as file:
        try:
            tensors, is_torchscript = _read(path, file)
            _refuse_expanded(tensors, os.fstat(file.fileno()).st_size)
            return Pickled(tensors, is_torchscript)
        except CheckpointError as error:
            raise CheckpointError(f"{path}: {error}") from None
        except Exception as error:  # a damaged pickle or zip can raise anything
            reason = one_line(error).partition(". ")[0] or type(error).__name__
            raise CheckpointError(
                f"{path}: not a whole file of weights ({reason}); it may have been cut short or damaged: copy or "
                "download it again"
            ) from None


def _read(path: Path, file: IO[bytes]) -> tuple[dict[str, Tensor], bool]:
    head = file.read(512)
    _refuse_other_formats(head)
    if not head.startswith(b"PK\3\4"):
        file.seek(0)
        return _state_dict(_torch_load(path, file.read(MAX_PICKLE), LEGACY_PICKLES)), False
    with zipfile.ZipFile(file) as archive:
        top = archive.infolist()[0].filename.partition("/")[0]
        _check_entries(archive, top, path.stat().st_size)
        if f"{top}/constants.pkl" in archive.namelist():
            return read_archive(archive, top), True
        # torch.load ignores checksums. Some writers omit them all; then the one of `version` is wrong too.
        if _is_intact(archive, f"{top}/version") and not _is_intact(archive, f"{top}/data.pkl"):
            raise CheckpointError("its data.pkl is damaged: copy or download the file again")
        entry = copy.copy(archive.getinfo(f"{top}/data.pkl"))
        del entry.CRC  # some writers omit it, see above
        with archive.open(entry) as description:
            return _state_dict(_torch_load(path, description.read(MAX_PICKLE + 1), 1)), False


def _refuse_other_formats(head: bytes) -> None:
    """Raise `CheckpointError` for files whose first 512 bytes show another format."""
    if problem := not_weights(head):
        raise CheckpointError(f"{problem}; copy or download it again")
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 1 << 32:  # the length of the header
        raise CheckpointError("safetensors under another name: rename the file to end in .safetensors")
    if head[257:262] == b"ustar":
        raise CheckpointError(
            "the tar format of the first versions of PyTorch, which cannot be read without running code from it: "
            "ask its author for a safetensors file"
        )


def _check_entries(archive: zipfile.ZipFile, top: str, size: int) -> None:
    """Refuse a zip whose entries would grow beyond the size of the file.

    torch.save and torch.jit.save compress only code and the user's files. So a small file takes little memory.
    """
    read = [e for e in archive.infolist() if not e.filename.startswith((f"{top}/code/", f"{top}/extra/"))]
    if f"{top}/data.pkl" not in archive.namelist():
        raise CheckpointError(
            f"a zip without {one_line(top)}/data.pkl; expected a file of torch.save or torch.jit.save"
        )
    if len({entry.filename for entry in read}) < len(read):
        raise CheckpointError("two entries of the same name: the file is damaged: copy or download it again")
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in read):
        raise CheckpointError("its entries are compressed, as torch.save never does: save the weights with torch again")
    if any(e.file_size != e.compress_size for e in read) or sum(e.file_size for e in read) > size:
        raise CheckpointError(f"its entries do not fit the {size} bytes of the file: copy or download it again")


def _is_intact(archive: zipfile.ZipFile, name: str) -> bool:
    try:
        archive.read(name)
    except zipfile.BadZipFile:
        return False
    return True


def _torch_load(path: Path, pickled: bytes, count: int) -> object:
    """Load a file of torch.save.

    Args:
        path: the file.
        pickled: the beginning of the file with its pickles, or the one pickle of a zip, to inspect them.
        count: the number of pickles; one is that of a zip, which is mapped.
    """
    check_pickles(pickled, count)
    try:
        with torch.serialization.safe_globals(stand_ins()):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=count == 1)
    except pickle.UnpicklingError as error:
        named = re.search(r"GLOBAL (\S+) (?:was not an allowed|whose module)", str(error))
        name = named[1] if named else next(unusual_globals(pickled), None)
        if name is not None:
            raise refused_global(name) from None
        raise CheckpointError(
            "not weights that torch reads without running code; it is damaged, or another program's: copy or download "
            "it again, or ask its author for a safetensors file"
        ) from None


def _refuse_expanded(tensors: Mapping[str, Tensor], size: int) -> None:
    """Refuse tensors that are much larger than the file of `size` bytes: many elements share one place in it."""
    if sum(tensor.nbytes for tensor in tensors.values()) > MAX_GROWTH * size:
        largest = max(tensors, key=lambda name: tensors[name].nbytes)
        raise CheckpointError(
            f"{one_line(largest)} of the shape {tuple(tensors[largest].shape)} is much larger than the file: its "
            "elements share memory, and would take far more when they are used: save a contiguous copy of the tensors"
        )


def _state_dict(value: object) -> dict[str, Tensor]:
    """Return the state dict in the object that a script saved, detached from its parameters.

    >>> _state_dict({"epoch": 3, "state_dict": {"scale": torch.tensor(1.0)}})
    {'scale': tensor(1.)}
    """
    value = find_state_dict(value)
    if not isinstance(value, dict):
        raise CheckpointError(f"it holds a {type(value).__name__}; expected a state dict: a dict of tensors")
    if not value:
        raise CheckpointError("it holds an empty dict; expected a state dict: a dict of tensors")
    for key, item in value.items():
        if not isinstance(key, str):
            raise CheckpointError(f"the key {short(key)} is a {type(key).__name__}; expected a state dict")
        if not isinstance(item, Tensor):
            raise CheckpointError(f"{short(key)} is a {type(item).__name__}; expected tensors only")
        if item.layout != torch.strided or item.is_quantized or item.device.type != "cpu":
            raise CheckpointError(f"{short(key)} is sparse, quantized or without data; expected a plain tensor")
    return {key: item.detach() for key, item in value.items()}
