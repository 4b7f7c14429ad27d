"""Weights out of `.bin`, `.pt` and `.pth` files, which are pickles, without running anything that is in them.

A pickle is a program for a small stack machine, and that machine may call any function it names. Two kinds are read:

- what torch.save wrote (open_clip's and transformers' `.bin`, the checkpoints of training scripts): by torch.load, with
  `weights_only=True`, mapped from the file where it is a zip;
- TorchScript archives (torch.jit.save, OpenAI's released CLIPs), which torch reads only by loading the code in them.
  Here a machine of its own reads the one pickle in them that describes the modules: `_interpret` calls none but the few
  functions of `_CALLS` and makes nothing but numbers, texts, containers and the descriptions below; `_flatten` names
  the tensors among them; only then does `_load` read their numbers, inside the bounds of what is stored.

The opcodes and their meaning: the pickletools module of Python's standard library.
"""

from __future__ import annotations

import pickle
import pickletools
import re
import sys
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final, NamedTuple

import torch
from torch import Tensor

from miniclip.errors import CheckpointError

WRAPPERS = ("state_dict", "model_state_dict", "model")  # where training scripts keep the weights, beside the rest
PREFIXES = ("module.", "_orig_mod.")  # what DistributedDataParallel and torch.compile put before every name
OPENAI_NUMBERS = ("input_resolution", "context_length", "vocab_size")  # at the top of OpenAI's archives
LONGEST_NAME, MOST_ATTRIBUTES = 1000, 200_000  # of modules that a hostile archive nests without end
MOST_ARGUMENTS, MOST_AXES = 8, 64  # of a call and of a tensor: torch has no more of them
CHUNK = 1 << 20  # bytes that are held a second time while a storage is read


class Pickled(NamedTuple):
    """What a file held.

    Attributes:
        tensors: a flat state dict, of plain tensors in the CPU's memory, without gradients.
        archive: whether it was a TorchScript archive.
    """

    tensors: dict[str, Tensor]
    archive: bool


def read_pickled(path: Path) -> Pickled:
    """Read the weights of a `.bin`, `.pt` or `.pth` file, running nothing that is in it.

    Args:
        path: a file of torch.save, in either of its formats, or of torch.jit.save. The weights may lie under
            "state_dict", "model_state_dict" or "model", and all names may begin with `module.` or `_orig_mod.`.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: it is no whole file of weights, or reading it would run code.
    """
    if path.is_dir():
        raise CheckpointError(f"{path}: a directory; expected a file of weights")
    with path.open("rb") as file:
        try:
            return _read(path, file)
        except CheckpointError as error:
            raise CheckpointError(f"{path}: {error}") from None
        except Exception as error:  # a damaged pickle or zip can fail in any way
            raise CheckpointError(
                f"{path}: not a whole file of weights ({_short(error).partition('. ')[0] or type(error).__name__}); "
                "it may have been cut short or damaged: copy or download it again"
            ) from None


def _read(path: Path, file: IO[bytes]) -> Pickled:
    head = file.read(512)
    _refuse_other_formats(head)
    if not head.startswith(b"PK\3\4"):
        file.seek(0)
        return Pickled(_strip(_unwrap(_torch_load(path, file, mapped=False))), archive=False)
    with zipfile.ZipFile(file) as archive:
        top = archive.infolist()[0].filename.partition("/")[0]
        _check_entries(archive, top, path.stat().st_size)
        if f"{top}/constants.pkl" in archive.namelist():
            return Pickled(_strip(_read_archive(archive, top)), archive=True)
        # torch looks at no checksum. Where the writer was told to leave them out, that of `version` is wrong as well.
        if _is_intact(archive, f"{top}/version") and not _is_intact(archive, f"{top}/data.pkl"):
            raise CheckpointError("its data.pkl is damaged: copy or download the file again")
        with archive.open(f"{top}/data.pkl") as description:
            return Pickled(_strip(_unwrap(_torch_load(path, description, mapped=True))), archive=False)


def _refuse_other_formats(head: bytes) -> None:
    """Say what a file is that is often found under the name of weights, by its first 512 bytes."""
    text = head.lstrip().lower()
    if not head:
        raise CheckpointError("the file is empty: copy or download it again")
    if head.startswith(b"version https://git-lfs"):
        raise CheckpointError("a pointer of Git LFS, not the weights themselves: fetch them with `git lfs pull`")
    if text.startswith((b"<!doctype", b"<html", b"<?xml")):
        raise CheckpointError("a web page, not weights: download the file itself")
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 1 << 32:  # the length of its header
        raise CheckpointError("safetensors under another name: rename the file to end in .safetensors")
    if head[257:262] == b"ustar":
        raise CheckpointError(
            "the tar format of the first versions of PyTorch, which cannot be read without running what is in it: "
            "ask its author for a safetensors file"
        )


def _check_entries(archive: zipfile.ZipFile, top: str, size: int) -> None:
    """Refuse a zip that says it holds more than it does.

    torch and torch.jit store everything as it is but code and what a user added. So no entry can grow as it is read,
    and where together they fit the file, neither can they all: a small file takes no large memory.
    """
    read = [e for e in archive.infolist() if not e.filename.startswith((f"{top}/code/", f"{top}/extra/"))]
    if f"{top}/data.pkl" not in archive.namelist():
        raise CheckpointError(f"a zip without {_short(top)}/data.pkl; expected what torch.save or torch.jit.save wrote")
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


def _torch_load(path: Path, description: IO[bytes], *, mapped: bool) -> object:
    """What torch.save saved; `description` is its pickle, read only to explain why torch refused it."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except pickle.UnpicklingError as error:
        named = re.search(r"GLOBAL (\S+) (?:was not an allowed|whose module)", str(error))
        name = named[1] if named else next(_unusual_globals(description), None)
        if name is not None:
            raise _refused(name) from None
        raise CheckpointError(
            "not weights that torch reads without running code; it is damaged, or another program's: copy or download "
            "it again, or ask its author for a safetensors file"
        ) from None


def _unusual_globals(stream: IO[bytes]) -> Iterator[str]:
    """The names in a pickle that plain tensors have no need for, in protocols too that torch does not read."""
    usual = r"collections\.OrderedDict|torch\.\w+|torch\.(_utils|storage)\.\w+|torch\.nn\.parameter\.Parameter"
    texts = ["?", "?"]
    while True:  # the older format is some pickles in a row
        try:
            for operation, argument, _ in pickletools.genops(stream):
                if isinstance(argument, str):
                    texts.append(argument)
                if operation.name in ("GLOBAL", "STACK_GLOBAL"):
                    name = ".".join(texts[-2:]) if operation.name == "STACK_GLOBAL" else texts[-1].replace(" ", ".")
                    if not re.fullmatch(usual, name):
                        yield name
        except Exception:  # not a pickle, or the end
            return


def _refused(name: str) -> CheckpointError:
    return CheckpointError(
        f"asks for {_short(name)}, which plain weights never need and which could run any code, so nothing of it was "
        "run: ask its author for a safetensors file"
    )


def _short(value: object) -> str:
    """A text of the file's or of torch's on one line, without control characters, and not too long."""
    text = " ".join("".join(c if c.isprintable() else " " for c in str(value)[:1000]).split())
    return text if len(text) <= 200 else f"{text[:200]} …"


def _unwrap(value: object) -> dict[str, Tensor]:
    """The state dict in what a script saved, detached from its parameters.

    >>> _unwrap({"epoch": 3, "state_dict": {"scale": torch.tensor(1.0)}})
    {'scale': tensor(1.)}
    """
    if isinstance(value, dict):
        inner = [value[key] for key in WRAPPERS if isinstance(value.get(key), dict)]
        value = next((i for i in inner if any(isinstance(v, Tensor) for v in i.values())), value)
    if not isinstance(value, dict):
        raise CheckpointError(f"it holds a {type(value).__name__}; expected a state dict: a dict of tensors")
    if not value:
        raise CheckpointError("it holds an empty dict; expected a state dict: a dict of tensors")
    for key, item in value.items():
        if not isinstance(key, str):
            raise CheckpointError(f"the key {_short(repr(key))} is a {type(key).__name__}; expected a state dict")
        if not isinstance(item, Tensor):
            raise CheckpointError(f"{_short(repr(key))} is a {type(item).__name__}; expected tensors only")
        if item.layout != torch.strided or item.is_quantized or item.device.type != "cpu":
            raise CheckpointError(f"{_short(repr(key))} is sparse, quantized or without data; expected a plain tensor")
    return {key: item.detach() for key, item in value.items()}


def _strip(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Take off what wrappers put before every name.

    >>> list(_strip({"module._orig_mod.a": torch.ones(1), "module._orig_mod.b.c": torch.ones(1)}))
    ['a', 'b.c']
    """
    while prefix := next((p for p in PREFIXES if tensors and all(key.startswith(p) for key in tensors)), ""):
        tensors = {key.removeprefix(prefix): tensor for key, tensor in tensors.items()}
    return tensors


# TorchScript archives. These four are all that their pickle can make, beside numbers, texts, lists, dicts and tuples.


class _Storage(NamedTuple):
    """The numbers of some tensors: the entry `data/{key}`, to be taken as `dtype`."""

    dtype: torch.dtype
    key: str


class _View(NamedTuple):
    """A tensor: where it lies in its storage, in elements. Not yet checked."""

    storage: _Storage
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]


class _Class(NamedTuple):
    """A class of the archive, of which nothing but the name is ever used."""

    name: str


@dataclass(eq=False)
class _Module:
    """A module: its attributes as they were saved, other modules among them."""

    state: Any = None


def _view(storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> _View:
    """Stand in for `torch._utils._rebuild_tensor_v2`."""
    plain = isinstance(storage, _Storage) and len(size) == len(stride) <= MOST_AXES
    if not plain or any(type(number) is not int for number in (offset, *size, *stride)):
        raise CheckpointError("a tensor in it is not described as tensors are: copy or download it again")
    return _View(storage, offset, tuple(size), tuple(stride))


def _first(value: Any, *_: Any) -> Any:
    """Stand in for what adds nothing but a type to a value: a parameter, a list of integers."""
    return value


_DTYPES: Final = {
    "torch.DoubleStorage": torch.float64,
    "torch.FloatStorage": torch.float32,
    "torch.HalfStorage": torch.float16,
    "torch.BFloat16Storage": torch.bfloat16,
    "torch.LongStorage": torch.int64,
    "torch.IntStorage": torch.int32,
    "torch.ShortStorage": torch.int16,
    "torch.CharStorage": torch.int8,
    "torch.ByteStorage": torch.uint8,
    "torch.BoolStorage": torch.bool,
}
_CALLS: Final[dict[str, Callable[..., Any]]] = {
    "torch._utils._rebuild_tensor_v2": _view,
    "torch._utils._rebuild_parameter": _first,
    "torch.jit._pickle.build_intlist": _first,
    "torch.jit._pickle.build_tensorlist": _first,
    "torch.jit._pickle.build_doublelist": _first,
    "torch.jit._pickle.build_boollist": _first,
    "torch.jit._pickle.restore_type_tag": _first,
    "collections.OrderedDict": lambda *_: {},  # the hooks of a tensor: always empty
    "torch.device": lambda *_: None,  # an attribute that is not read
}
_CONSTANTS: Final = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_LITERALS: Final = frozenset({"BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE"})


def _read_archive(archive: zipfile.ZipFile, top: str) -> dict[str, Tensor]:
    """The parameters and buffers of a TorchScript archive; its code is not even read."""
    order = f"{top}/byteorder"  # files before PyTorch 2.1 have none, and are little-endian
    if sys.byteorder != "little" or (order in archive.namelist() and archive.read(order) != b"little"):
        raise CheckpointError("a TorchScript archive of or on a big-endian machine, which is not supported")
    root = _interpret(archive.read(f"{top}/data.pkl"))
    if not isinstance(root, _Module):
        raise CheckpointError("its data.pkl describes no module of TorchScript: copy or download it again")
    views = _flatten(root)
    tensors = _load(archive, top, views)
    for name in OPENAI_NUMBERS:
        if type(number := root.state.get(name)) is int and abs(number) < 1 << 63:
            tensors[name] = torch.tensor(number)
    if not tensors:
        raise CheckpointError("a TorchScript archive without a single tensor; expected a model's weights")
    return tensors


def _interpret(data: bytes) -> Any:
    """Run the pickle of an archive on a machine that can do no harm.

    It knows the operations that TorchScript writes, and no other. None of them looks anything up by name but in the
    tables above, sets an attribute of what it did not make, or takes a size from the file to allocate by.
    """
    stack: list[Any] = []
    below: list[list[Any]] = []  # the stacks that a MARK set aside
    memo: dict[Any, Any] = {}
    for operation, argument, _ in pickletools.genops(data):
        name = operation.name
        if name in _LITERALS:
            stack.append(argument)
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        elif name in ("BINPUT", "LONG_BINPUT"):
            memo[argument] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(memo[argument])
        elif name == "MARK":
            below.append(stack)
            stack = []
        elif name in ("TUPLE", "APPENDS", "SETITEMS"):
            items, stack = stack, below.pop()
            _collect(name, stack, items)
        elif name not in ("PROTO", "STOP"):  # after which there is nothing
            _operate(name, argument, stack)
    return stack.pop()


def _collect(name: str, stack: list[Any], items: list[Any]) -> None:
    """Put what was on the stack since the mark into a tuple, a list or a dict."""
    if name == "TUPLE":
        stack.append(tuple(items))
    elif name == "APPENDS" and type(stack[-1]) is list:
        stack[-1].extend(items)
    elif name == "SETITEMS" and type(stack[-1]) is dict:
        # A tuple of tuples of … could take forever to hash. Other keys than these are no attributes' names.
        pairs = zip(items[::2], items[1::2], strict=True)
        stack[-1].update({key: value for key, value in pairs if type(key) in (str, int)})
    else:
        raise CheckpointError(f"{name} on a {type(stack[-1]).__name__} in its data.pkl: copy or download it again")


def _operate(name: str, argument: Any, stack: list[Any]) -> None:
    """One operation on the top of the stack."""
    if name in ("TUPLE1", "TUPLE2", "TUPLE3"):
        count = int(name[-1])
        stack[-count:] = [tuple(stack[-count:])]
    elif name == "EMPTY_LIST":
        stack.append([])
    elif name == "EMPTY_DICT":
        stack.append({})
    elif name in ("APPEND", "SETITEM"):
        count = 1 if name == "APPEND" else 2
        items = stack[-count:]
        del stack[-count:]
        _collect(name + "S", stack, items)
    elif name == "GLOBAL":
        stack.append(_known(argument.replace(" ", ".")))
    elif name == "BINPERSID":
        kind, dtype, key, _device, _length = stack.pop()  # the entry has its own length, which is the one to trust
        if kind != "storage" or not isinstance(dtype, torch.dtype) or type(key) is not str:
            raise CheckpointError("a storage in it is not described as storages are: copy or download it again")
        stack.append(_Storage(dtype, key))
    elif name in ("NEWOBJ", "REDUCE", "BUILD"):
        value, subject = stack.pop(), stack.pop()
        if name == "NEWOBJ" and isinstance(subject, _Class):
            stack.append(_Module())
        elif name == "BUILD" and isinstance(subject, _Module):
            stack.append(subject)
            subject.state = value
        elif name == "REDUCE" and subject in _CALLS.values() and len(value) <= MOST_ARGUMENTS:
            stack.append(subject(*value))
        else:
            raise _refused(f"{name} on a {getattr(subject, 'name', type(subject).__name__)}")
    else:
        raise CheckpointError(f"its data.pkl has the operation {name}, which TorchScript never writes; nothing was run")


def _known(name: str) -> Any:
    """What a name in the pickle stands for: never anything that is imported."""
    if name.startswith("__torch__."):
        return _Class(name)
    if name in _DTYPES:
        return _DTYPES[name]
    if name in _CALLS:
        return _CALLS[name]
    if re.fullmatch(r"torch\.\w+Storage", name):
        raise CheckpointError(f"a tensor in it is of a {_short(name)}, of which no CLIP is made")
    raise _refused(name)


def _flatten(root: _Module) -> dict[str, _View]:
    """The tensors of a module and of the modules in it, by dotted names.

    A tensor that is a plain attribute counts too: the archive's data does not tell it from a buffer. What lies in lists
    and dicts does not, as in a state dict.
    """
    views: dict[str, _View] = {}
    modules, seen = [("", root)], 0
    while modules:
        prefix, module = modules.pop()
        inner = []
        for name, value in module.state.items() if isinstance(module.state, dict) else ():
            seen += 1
            path = f"{prefix}{name}"
            if seen > MOST_ATTRIBUTES or len(path) > LONGEST_NAME:
                raise CheckpointError("its modules are nested without end: ask its author for a safetensors file")
            if isinstance(value, _View):
                views[path] = value
            elif isinstance(value, _Module):
                inner.append((f"{path}.", value))
        modules += reversed(inner)  # so that the first is the next
    return views


def _load(archive: zipfile.ZipFile, top: str, views: dict[str, _View]) -> dict[str, Tensor]:
    """Tensors over the numbers in the archive; those that shared a storage share it again.

    Each storage is read once, into memory of torch's own, which is aligned as kernels like it.
    """
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
    """The bytes of an entry, (bytes,) uint8; zipfile compares their checksum."""
    storage = torch.empty(archive.getinfo(name).file_size, dtype=torch.uint8)
    room, done = storage.numpy().data, 0
    with archive.open(name) as file:
        while chunk := file.read(CHUNK):
            room[done : done + len(chunk)] = chunk
            done += len(chunk)
    if done != storage.numel():  # the rest would be whatever the memory held before
        raise CheckpointError(f"{_short(name)} ends early: copy or download the file again")
    return storage


def _check_bounds(name: str, view: _View, nbytes: int) -> None:
    """Refuse a tensor that would reach outside of its storage, of which torch would read, or grow it."""
    last = view.offset + sum((n - 1) * step for n, step in zip(view.size, view.stride, strict=True))
    if 0 in view.size:
        last = view.offset - 1
    if min((view.offset, *view.size, *view.stride)) < 0 or (last + 1) * view.storage.dtype.itemsize > nbytes:
        raise CheckpointError(
            f"{_short(name)} of the shape {_short(view.size)} reaches outside of the {nbytes} bytes stored for it: "
            "copy or download the file again"
        )
