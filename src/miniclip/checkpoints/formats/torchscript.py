"""Weights from TorchScript archives (torch.jit.save, OpenAI's releases), without loading the code in them.

torch reads these archives only with their code: torch 2.14 raises "Cannot use `weights_only=True` with TorchScript
archives". Here Python's own unpickler reads the one pickle that describes the modules, with an allow-list of operations
and names. `_flatten` names the tensors in it, and `_load` reads them inside the bounds of the stored bytes.
"""

from __future__ import annotations

import io
import pickle
import re
import sys
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor

from miniclip.checkpoints.formats.messages import refused_global
from miniclip.errors import CheckpointError
from miniclip.utils.formatting import one_line

OPENAI_NUMBERS = ("input_resolution", "context_length", "vocab_size")  # integer attributes of OpenAI's models
MAX_NAME, MAX_ATTRIBUTES = 1000, 200_000  # against modules that are nested without end
MAX_ARGUMENTS, MAX_DIMS = 8, 64  # limits for one call and one tensor
CHUNK = 1 << 20  # bytes
AGAIN: Final = "copy or download it again"


class _Storage(NamedTuple):
    """Stored elements of one or more tensors: the entry `data/{key}`."""

    dtype: torch.dtype
    key: str


class _View(NamedTuple):
    """A tensor: its position in its storage, in elements. Not yet checked."""

    storage: _Storage
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]


class _Class(str):
    """The name of a class of the archive."""


@dataclass(eq=False)
class _Module:
    """A module: its saved attributes, submodules among them."""

    state: Any = None


def _view(storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> _View:
    """Replace `torch._utils._rebuild_tensor_v2`."""
    plain = isinstance(storage, _Storage) and len(size) == len(stride) <= MAX_DIMS
    if not plain or any(type(number) is not int for number in (offset, *size, *stride)):
        raise CheckpointError(f"a tensor in it is not described as tensors are: {AGAIN}")
    return _View(storage, offset, tuple(size), tuple(stride))


def _first(value: Any, *_: Any) -> Any:
    """Replace functions that only give a value its type: a parameter, a list of integers."""
    return value


KINDS: Final = ("Double", "Float", "Half", "BFloat16", "Long", "Int", "Short", "Char", "Byte", "Bool")
NAMES: Final = {"Char": "int8", "Byte": "uint8"}  # torch.double and the others have the names of the kinds
DTYPES: Final = {f"torch.{kind}Storage": getattr(torch, NAMES.get(kind, kind.lower())) for kind in KINDS}
CALLS: Final[dict[str, Callable[..., Any]]] = {
    "torch._utils._rebuild_tensor_v2": _view,
    "torch._utils._rebuild_parameter": _first,
    **{f"torch.jit._pickle.build_{kind}list": _first for kind in ("int", "tensor", "double", "bool")},
    "torch.jit._pickle.restore_type_tag": _first,
    "collections.OrderedDict": lambda *_: {},  # hooks of a tensor: always empty
    "torch.device": lambda *_: None,
}


class _Operations(dict[int, Any]):
    """The unpickler's methods by operation: only those that TorchScript writes."""

    def __missing__(self, code: int) -> Any:
        raise CheckpointError(
            f"its data.pkl has the operation {code:#x}, which TorchScript never writes; nothing was run"
        )


class _Unpickler(pickle._Unpickler):
    """Python's unpickler with an allow-list: it imports nothing and makes only containers and the classes above."""

    stack: list[Any]
    pop_mark: Callable[[], list[Any]]
    dispatch = _Operations(
        {
            code[0]: pickle._Unpickler.dispatch[code[0]]
            for code in (
                *(pickle.PROTO, pickle.STOP, pickle.MARK, pickle.GLOBAL, pickle.BINPERSID),
                *(pickle.BININT, pickle.BININT1, pickle.BININT2, pickle.LONG1, pickle.BINFLOAT, pickle.BINUNICODE),
                *(pickle.NONE, pickle.NEWTRUE, pickle.NEWFALSE, pickle.EMPTY_LIST, pickle.EMPTY_DICT),
                *(pickle.EMPTY_TUPLE, pickle.TUPLE, pickle.TUPLE1, pickle.TUPLE2, pickle.TUPLE3),
                *(pickle.BINPUT, pickle.LONG_BINPUT, pickle.BINGET, pickle.LONG_BINGET, pickle.APPEND, pickle.APPENDS),
            )
        }
    )

    def find_class(self, module: str, name: str) -> Any:
        """Return the replacement of a global; nothing is imported."""
        full = f"{module}.{name}"
        if module.startswith("__torch__"):
            return _Class(full)
        if full in DTYPES:
            return DTYPES[full]
        if full in CALLS:
            return CALLS[full]
        if re.fullmatch(r"torch\.\w+Storage", full):
            raise CheckpointError(f"a tensor in it is a {one_line(full)}, which miniclip does not support")
        raise refused_global(full)

    def persistent_load(self, pid: Any) -> _Storage:
        """Return a storage; its length is that of the entry, not the one in the pickle."""
        kind, dtype, key, _device, _length = pid
        if kind != "storage" or not isinstance(dtype, torch.dtype) or type(key) is not str:
            raise CheckpointError(f"a storage in it is not described as storages are: {AGAIN}")
        return _Storage(dtype, key)

    def load_newobj(self) -> None:
        _arguments, cls = self.stack.pop(), self.stack.pop()
        if not isinstance(cls, _Class):
            raise refused_global(f"an object of a {type(cls).__name__}")
        self.stack.append(_Module())

    def load_build(self) -> None:
        state, module = self.stack.pop(), self.stack[-1]
        if not isinstance(module, _Module):
            raise refused_global(f"attributes of a {type(module).__name__}")
        module.state = state

    def load_reduce(self) -> None:
        arguments, function = self.stack.pop(), self.stack.pop()
        if function not in CALLS.values() or len(arguments) > MAX_ARGUMENTS:
            raise refused_global(f"a call of a {type(function).__name__}")
        self.stack.append(function(*arguments))

    def load_setitem(self) -> None:
        self._set_items([self.stack.pop(-2), self.stack.pop()])

    def load_setitems(self) -> None:
        self._set_items(self.pop_mark())

    def _set_items(self, items: list[Any]) -> None:
        if type(self.stack[-1]) is not dict:
            raise CheckpointError(f"an item of a {type(self.stack[-1]).__name__} in its data.pkl: {AGAIN}")
        pairs = zip(items[::2], items[1::2], strict=True)
        # hashing nested tuples could take forever, and attributes have no other keys
        self.stack[-1].update({key: value for key, value in pairs if type(key) in (str, int)})

    dispatch |= {
        pickle.NEWOBJ[0]: load_newobj,
        pickle.BUILD[0]: load_build,
        pickle.REDUCE[0]: load_reduce,
        pickle.SETITEM[0]: load_setitem,
        pickle.SETITEMS[0]: load_setitems,
    }


def read_archive(archive: zipfile.ZipFile, top: str) -> dict[str, Tensor]:
    """Return the parameters and buffers of a TorchScript archive, whose entries are in the folder `top`."""
    order = f"{top}/byteorder"  # files before PyTorch 2.1 have none and are little-endian
    if sys.byteorder != "little" or (order in archive.namelist() and archive.read(order) != b"little"):
        raise CheckpointError("a TorchScript archive of or on a big-endian machine, which is not supported")
    root = _Unpickler(io.BytesIO(archive.read(f"{top}/data.pkl"))).load()
    if not isinstance(root, _Module):
        raise CheckpointError(f"its data.pkl describes no TorchScript module: {AGAIN}")
    tensors = _load(archive, top, _flatten(root))
    for name in OPENAI_NUMBERS:
        if type(number := root.state.get(name)) is int and abs(number) < 1 << 63:
            tensors[name] = torch.tensor(number)
    if not tensors:
        raise CheckpointError("a TorchScript archive without a tensor; expected a model's weights")
    return tensors


def _flatten(root: _Module) -> dict[str, _View]:
    """Return the tensors of a module and its submodules by dotted names, those in lists and dicts left out."""
    views: dict[str, _View] = {}
    modules, count = [("", root)], 0
    while modules:
        prefix, module = modules.pop()
        inner = []
        for name, value in module.state.items() if isinstance(module.state, dict) else ():
            count += 1
            path = f"{prefix}{name}"
            if count > MAX_ATTRIBUTES or len(path) > MAX_NAME:
                raise CheckpointError("its modules are nested without end: ask its author for a safetensors file")
            if isinstance(value, _View):
                views[path] = value
            elif isinstance(value, _Module):
                inner.append((f"{path}.", value))
        modules += reversed(inner)  # the first one is popped first
    return views


def _load(archive: zipfile.ZipFile, top: str, views: dict[str, _View]) -> dict[str, Tensor]:
    """Read each storage once, into memory of torch's own; tensors that shared a storage share it again."""
    storages: dict[str, Tensor] = {}
    tensors = {}
    for name, view in views.items():
        key = view.storage.key
        if key not in storages:
            storages[key] = _read_storage(archive, f"{top}/data/{key}")
        _check_bounds(name, view, storages[key].numel())
        empty = torch.empty(0, dtype=view.storage.dtype)
        tensors[name] = empty.set_(storages[key].untyped_storage(), view.offset, view.size, view.stride)
    return tensors


def _read_storage(archive: zipfile.ZipFile, name: str) -> Tensor:
    """Return the bytes of an entry, (bytes,) uint8; zipfile verifies their checksum."""
    storage = torch.empty(archive.getinfo(name).file_size, dtype=torch.uint8)
    memory, done = storage.numpy().data, 0
    with archive.open(name) as file:
        while chunk := file.read(CHUNK):
            memory[done : done + len(chunk)] = chunk
            done += len(chunk)
    if done != storage.numel():
        raise CheckpointError(f"{one_line(name)} ends early: {AGAIN}")
    return storage


def _check_bounds(name: str, view: _View, nbytes: int) -> None:
    """Refuse a tensor that reaches outside of its storage."""
    last = view.offset + sum((n - 1) * step for n, step in zip(view.size, view.stride, strict=True))
    if 0 in view.size:
        last = view.offset - 1
    if min((view.offset, *view.size, *view.stride)) < 0 or (last + 1) * view.storage.dtype.itemsize > nbytes:
        raise CheckpointError(
            f"{one_line(name)} of the shape {one_line(view.size)} reaches outside of the {nbytes} bytes stored for it: "
            f"{AGAIN}"
        )
