"""Pickled weights: exact, without running code; files that run code, reach out of bounds or never end are refused."""

import io
import os
import pickle
import random
import struct
import sys
import tarfile
import time
import tracemalloc
import zipfile
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from miniclip.checkpoints.formats.pickles import Pickled, read_pickled
from miniclip.errors import CheckpointError

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit", "ignore:Detected pickle protocol")
KINDS = ["zip", "legacy", "archive"]


class Inner(nn.Module):
    """Tensors of several precisions, a transposed, an expanded and an empty one, and two views of one storage."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 4).to(dtype)
        self.scale = nn.Parameter(torch.randn(3).bfloat16())
        row = torch.arange(10.0)
        for name, value in {
            "transposed": torch.randn(2, 3).to(dtype).T,
            "expanded": torch.ones(1, dtype=dtype).expand(3, 5),
            "empty": torch.empty(0, 3),
            "first": row[:4],
            "last": row[4:],
            "flags": torch.tensor([True, False]),
            "step": torch.tensor(7),
        }.items():
            self.register_buffer(name, value)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x.to(self.linear.weight.dtype)).float() + self.step


class Outer(nn.Module):
    """Nested modules, one of them under two names, and attributes that are not weights."""

    heads: int

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.blocks = nn.Sequential(Inner(dtype), nn.ReLU())
        self.again = self.blocks[0].linear
        self.frozen = nn.Parameter(torch.randn(2, dtype=torch.float64), requires_grad=False)
        self.register_buffer("logit_scale", torch.tensor(4.6))
        self.heads, self.kind, self.sizes, self.names = 3, "gelu", [1, 2], {"a": 1}
        self.rates, self.switches, self.loose, self.place = [0.5], [True], [torch.ones(2)], torch.device("cpu")

    def forward(self, x: Tensor) -> Tensor:
        number = self.heads + self.sizes[0] + len(self.names) + self.rates[0] + len(self.switches) + len(self.loose)
        return self.blocks(x) + number + self.again.bias.float() + len(self.kind)


def save_archive(module: nn.Module, path: Path, *, scripted: bool = False) -> Path:
    (torch.jit.script(module) if scripted else torch.jit.trace(module, torch.randn(2, 3))).save(path)
    return path


def make(kind: str, path: Path, dtype: torch.dtype = torch.float32) -> Path:
    """Write the same model as one of the three kinds of files."""
    model = Outer(dtype)
    if kind == "archive":
        return save_archive(model, path)
    torch.save(model.state_dict(), path, _use_new_zipfile_serialization=kind == "zip")
    return path


def same(tensors: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Assert equal bits, precision, strides and sharing of memory."""
    assert list(tensors) == list(expected)
    for key, value in expected.items():
        assert type(tensors[key]) is Tensor
        assert not tensors[key].requires_grad
        assert (tensors[key].dtype, tensors[key].shape) == (value.dtype, value.shape), key
        assert tensors[key].stride() == value.stride(), key
        assert torch.equal(tensors[key], value), key
    filled = [key for key, value in expected.items() if value.numel()]
    for name in filled:
        for other in filled:
            shared = [
                t[name].untyped_storage().data_ptr() == t[other].untyped_storage().data_ptr()
                for t in (tensors, expected)
            ]
            assert shared[0] == shared[1], (name, other)


def refuses(path: Path, *words: str) -> str:
    """Assert that the file is refused in one line that names it; return the message."""
    with pytest.raises(CheckpointError) as caught:
        read_pickled(path)
    message = str(caught.value)
    assert message.isprintable()
    assert len(message) < 600
    for word in (str(path), *words):
        assert word in message
    return message


# Files of torch.save


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("kind", ["zip", "legacy"])
def test_reads_a_state_dict_exactly(tmp_path, kind, dtype):
    path = make(kind, tmp_path / "weights.pt", dtype)
    pickled = read_pickled(path)
    assert isinstance(pickled, Pickled)
    assert pickled.is_torchscript is False
    same(pickled.tensors, torch.load(path, weights_only=True))


def test_parameters_become_plain_tensors(tmp_path):
    torch.save({"w": nn.Parameter(torch.ones(2)), "b": torch.ones(1).requires_grad_()}, tmp_path / "w.bin")
    same(read_pickled(tmp_path / "w.bin").tensors, {"w": torch.ones(2), "b": torch.ones(1)})


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="reads the maps in /proc")
def test_maps_a_zip_and_never_writes_to_it(tmp_path):
    path = tmp_path / "weights.bin"
    torch.save({"w": torch.zeros(50_000)}, path)
    data = path.read_bytes()
    tensors = read_pickled(path).tensors
    assert str(path) in Path("/proc/self/maps").read_text()
    tensors["w"].add_(1.0)
    assert path.read_bytes() == data
    assert float(read_pickled(path).tensors["w"].sum()) == 0
    del tensors
    assert str(path) not in Path("/proc/self/maps").read_text()


WEIGHTS = {"a.weight": torch.arange(6.0).view(2, 3), "b": torch.tensor(1.5)}
ADAM = {
    "state": {0: {"step": torch.tensor(3.0), "exp_avg": torch.ones(2)}},
    "param_groups": [{"lr": 0.1, "params": [0]}],
}


@pytest.mark.parametrize(
    "saved",
    [
        {"epoch": 3, "name": "run", "state_dict": WEIGHTS, "optimizer": ADAM, "scaler": {"scale": 2.0}},
        {"model": WEIGHTS, "args": {"lr": 1e-3}},
        {"model_state_dict": WEIGHTS, "optimizer_state_dict": ADAM, "loss": 0.25},
        {"model": "ViT-B-32", "state_dict": OrderedDict(WEIGHTS)},
        {"model": {"width": 8}, "state_dict": WEIGHTS},
    ],
)
@pytest.mark.parametrize("kind", ["zip", "legacy"])
def test_finds_the_state_dict_of_training_scripts(tmp_path, saved, kind):
    torch.save(saved, tmp_path / "epoch_3.pt", _use_new_zipfile_serialization=kind == "zip")
    same(read_pickled(tmp_path / "epoch_3.pt").tensors, WEIGHTS)


@pytest.mark.parametrize(
    ("saved", "words"),
    [
        ({"a": torch.ones(1), "note": "hello"}, ("'note'", "is a str")),
        ({"state_dict": {"a": torch.ones(1), "steps": 3}}, ("'steps'", "is a int")),
        ({"model": {"a": torch.ones(1), "sub": {"b": torch.ones(1)}}}, ("'sub'", "is a dict")),
        ({"state_dict": {}, "epoch": 3}, ("'state_dict'", "is a dict")),
        ({"a\nb": None}, ("'a\\nb'", "is a NoneType")),
        ({"x" * 5000: 1.5}, ("'xxx", "is a float")),
        ({3: torch.ones(1)}, ("the key 3 is a int",)),
        ({}, ("an empty dict",)),
        ([torch.ones(1)], ("holds a list",)),
        (torch.ones(1), ("holds a Tensor",)),
        ({"a": torch.ones(2).to_sparse()}, ("'a'", "plain tensor")),
        ({"a": torch.ones(2, device="meta")}, ("'a'", "plain tensor")),
    ],
)
@pytest.mark.filterwarnings("ignore:.*[Ss]parse")
def test_names_the_problem_of_other_objects(tmp_path, saved, words):
    torch.save(saved, tmp_path / "w.pt")
    refuses(tmp_path / "w.pt", *words)


def test_reads_gpu_checkpoints_on_the_cpu(tmp_path):
    source, path = make("zip", tmp_path / "model.pt"), tmp_path / "cuda.pt"
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(path, "w") as new:
        for entry in old.infolist():
            new.writestr(entry.filename, old.read(entry).replace(text("cpu"), text("cuda:0")))
    assert path.read_bytes().count(b"cuda:0") == 1
    same(read_pickled(path).tensors, torch.load(source, weights_only=True))


# TorchScript archives


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("scripted", [False, True], ids=["traced", "scripted"])
def test_reads_an_archive_as_torch_does(tmp_path, scripted, dtype):
    path = save_archive(Outer(dtype), tmp_path / "model.pt", scripted=scripted)
    pickled = read_pickled(path)
    assert pickled.is_torchscript is True
    expected = torch.jit.load(path).state_dict()
    assert {"blocks.0.linear.weight", "again.weight", "blocks.0.transposed", "logit_scale"} <= expected.keys()
    same(pickled.tensors, expected)
    assert all(t.untyped_storage().data_ptr() % 64 == 0 for t in pickled.tensors.values())  # torch's own memory


@pytest.mark.peer
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("scripted", [False, True], ids=["traced", "scripted"])
def test_reads_archives_of_open_clip(tmp_path, scripted, dtype):
    open_clip = pytest.importorskip("open_clip.model")
    vision = open_clip.CLIPVisionCfg(layers=2, width=32, head_width=16, patch_size=8, image_size=16)
    text = open_clip.CLIPTextCfg(context_length=7, vocab_size=50, width=32, heads=2, layers=2)
    model = open_clip.CLIP(8, vision, text).eval()
    if scripted:
        saved = torch.jit.script(model.to(dtype))
    else:
        calls = {"encode_image": (torch.randn(1, 3, 16, 16),), "encode_text": (torch.ones(1, 7, dtype=torch.long),)}
        saved = torch.jit.trace_module(model, calls, check_trace=False).to(dtype)
    saved.save(tmp_path / "clip.pt")
    expected = torch.jit.load(tmp_path / "clip.pt").state_dict()
    tensors = read_pickled(tmp_path / "clip.pt").tensors
    if scripted:  # two integer attributes, which OpenAI stores as tensors
        assert int(tensors.pop("context_length")) == 7
        assert int(tensors.pop("vocab_size")) == 50
    assert {"visual.transformer.resblocks.0.attn.in_proj_weight", "attn_mask"} <= expected.keys()
    assert sorted(tensors) == sorted(expected)
    same({key: tensors[key] for key in expected}, expected)


class Released(nn.Module):
    """The outermost module of OpenAI's archives."""

    context_length: int
    heads: int

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("input_resolution", torch.tensor(224))
        self.context_length, self.heads, self.inner = 77, 8, nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) + self.context_length + self.heads


def test_reads_the_sizes_of_openais_archives(tmp_path):
    torch.jit.script(Released()).save(tmp_path / "model.pt")
    tensors = read_pickled(tmp_path / "model.pt").tensors
    assert set(tensors) == {"input_resolution", "context_length", "inner.weight", "inner.bias"}
    for key, value in {"input_resolution": 224, "context_length": 77}.items():
        assert (tensors[key].dtype, tensors[key].shape, int(tensors[key])) == (torch.int64, (), value)


def test_does_not_read_the_code_of_an_archive(tmp_path):
    path = make("archive", tmp_path / "model.pt")
    expected = torch.jit.load(path).state_dict()
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(tmp_path / "other.pt", "w") as new:
        for entry in old.infolist():
            other = "/code/" in entry.filename or entry.filename.endswith("constants.pkl")
            new.writestr(entry.filename, b"import os; os.abort()" if other else old.read(entry))
    with pytest.raises(RuntimeError):
        torch.jit.load(tmp_path / "other.pt")
    same(read_pickled(tmp_path / "other.pt").tensors, expected)


def test_holds_an_archive_in_memory_once(tmp_path):
    save_archive(
        nn.Sequential(*(nn.Linear(3, 800_000) if i % 2 == 0 else nn.Linear(800_000, 3) for i in range(2))),
        tmp_path / "m",
    )
    assert (tmp_path / "m").stat().st_size > 20e6
    tracemalloc.start()  # traces Python's memory, not torch's
    try:
        read_pickled(tmp_path / "m")
        assert tracemalloc.get_traced_memory()[1] < 6e6
    finally:
        tracemalloc.stop()


# Archives written by hand, with pickles that torch does not write


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def number(value: int) -> bytes:
    data = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(data)]) + data


def numbers(values: tuple[int, ...]) -> bytes:
    return b"(" + b"".join(number(value) for value in values) + b"t"


def named(name: str) -> bytes:
    module, _, attribute = name.rpartition(".")
    return f"c{module}\n{attribute}\n".encode()


def tensor(size=(4,), stride=(1,), offset=0, kind="FloatStorage", key="0", place="cpu") -> bytes:
    storage = b"(" + text("storage") + named(f"torch.{kind}") + text(key) + text(place) + number(4) + b"tQ"
    view = (
        storage + number(offset) + numbers(size) + numbers(stride) + b"\x89" + named("collections.OrderedDict") + b")R"
    )
    return named("torch._utils._rebuild_tensor_v2") + b"(" + view + b"tR"


def module(**attributes: bytes) -> bytes:
    state = b"".join(text(name) + value for name, value in attributes.items())
    return named("__torch__.M") + b")\x81}(" + state + b"ub"


def write_archive(path: Path, body: bytes, storage: bytes = struct.pack("<4f", 1, 2, 3, 4), **others: bytes) -> Path:
    entries = {"data.pkl": b"\x80\x02" + body + b".", "constants.pkl": b"N.", "byteorder": b"little", "data/0": storage}
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in {**entries, **others}.items():
            archive.writestr(f"model/{name}", data)
    return path


@pytest.fixture
def path(tmp_path) -> Path:
    return tmp_path / "model.pt"


def test_reads_archives_written_by_hand(path):
    body = module(
        weight=tensor((2, 2), (1, 2), place="cuda:0"),
        part=module(w=named("torch._utils._rebuild_parameter") + b"(" + tensor((2,), offset=2) + b"\x88NtR"),
        halves=tensor((8,), kind="HalfStorage"),
        single=b"]" + number(1) + b"a",
        pair=b"}" + text("k") + number(1) + b"s" + text("k") + b"\x86",
        deep=b"}(((tt" + tensor() + b"u",
    )
    tensors = read_pickled(write_archive(path, body)).tensors
    row = torch.tensor([1.0, 2, 3, 4])
    same(tensors, {"weight": row.view(2, 2).T, "halves": row.view(torch.float16), "part.w": row[2:]} | {})


@pytest.mark.parametrize(
    "hostile",
    [
        tensor((5,)),
        tensor((4,), offset=1),
        tensor((2, 2), (3, 1), offset=0, kind="DoubleStorage"),
        tensor((2,), (4,)),
        tensor((2,), (1 << 61,)),
        tensor((1 << 62, 4), (1 << 62, 1)),
        tensor((1 << 70,), (0,)),
        tensor((1 << 40, 1 << 40), (0, 0)),
        tensor((4,), (1,), offset=-1),
        tensor((2,), (-1,), offset=3),
        tensor((-4,)),
        tensor((), (), offset=4),
        tensor((0,), offset=5),
        tensor((0, -1), (1, 1)),
        tensor((4,), (1, 1)),
        tensor((2, 2), (1,)),
        tensor((1,) * 65, (1,) * 65),
        tensor((4,), key="1"),
        tensor((4,), key="../byteorder"),
        tensor((4,)).replace(text("storage"), text("module")),
        tensor((4,)).replace(named("torch.FloatStorage"), text("torch.FloatStorage")),
        tensor((4,)).replace(numbers((4,)), b"(G" + struct.pack(">d", 4.0) + b"t"),
        tensor((4,)).replace(numbers((4,)), b"(\x88t"),
        tensor((4,)).replace(numbers((4,)), number(4)),
        tensor((4,)).replace(named("torch.FloatStorage"), number(4)),
        tensor((1 << 40,)).replace(numbers((1,)), b"(" + text("x") + b"t"),
        tensor((4,), kind="ComplexFloatStorage"),
    ],
)
def test_refuses_a_tensor_outside_of_its_storage(path, hostile):
    assert len(read_pickled(write_archive(path, module(w=tensor()))).tensors) == 1
    refuses(write_archive(path, module(w=hostile)))


def test_bounds_are_those_of_the_entry(path):
    assert len(read_pickled(write_archive(path, module(w=tensor((4,), offset=0)))).tensors["w"]) == 4
    assert read_pickled(write_archive(path, module(w=tensor((2, 2), (0, 3))))).tensors["w"].tolist() == [[1, 4], [1, 4]]
    assert (
        read_pickled(write_archive(path, module(w=tensor((0, 9), offset=4, stride=(9, 1))))).tensors["w"].numel() == 0
    )
    refuses(write_archive(path, module(w=tensor()), storage=b"\0" * 15), "w of the shape (4,)", "15 bytes")


@pytest.mark.parametrize(
    ("body", "others", "word"),
    [
        (module(w=tensor()), {"byteorder": b"big"}, "big-endian"),
        (module(), {}, "without a tensor"),
        (module(part=module(part=number(3))), {}, "without a tensor"),
        (tensor(), {}, "describes no TorchScript module"),
        (b"}", {}, "describes no TorchScript module"),
        (b"", {}, "not a whole file"),
        (b"", {"data.pkl": b"\x80\x02" + module(w=tensor())}, "not a whole file"),
        (named("__torch__.M") + b")\x81" + number(1) + b"b", {}, "not a whole file"),
        (module(w=b"h\7"), {}, "not a whole file"),
    ],
)
def test_refuses_archives_without_a_model(path, body, others, word):
    refuses(write_archive(path, body, **others), word)


def doubled(depth: int, leaf: bytes) -> bytes:
    """Return nested modules that hold the next one twice: 2 ** depth paths."""
    body = leaf
    for _ in range(depth):
        body = module(a=body + b"q\1", b=b"h\1")
    return body


def test_refuses_pickles_that_would_never_end(path):
    tuples = b")" + b"q\1h\1\x86" * 100  # hashing it takes 2 ** 100 steps
    long = b"(" + b")" * 20_000 + b"tq\1"  # to be copied 20,000 times
    for body in (
        doubled(60, module(w=tensor())),
        doubled(60, module()),
        named("__torch__.M") + b")\x81q\1}" + text("a") + b"h\1sb",
        named("__torch__.M") + b")\x81q\1}" + text("") + b"h\1sb",
        named("__torch__.M") + b")\x81q\1}" + text("n" * 100_000) + b"h\1sb",
        module(a=b"}" + tuples + b"Ns"),
        module(a=long + (named("torch.device") + b"h\1R0") * 20_000),
        module(a=b"Nr\xff\xff\xff\x7f"),
        module(a=b"X\xff\xff\xff\x7f"),
        b"(" * 500_000,
    ):
        start = time.process_time()
        refuses(write_archive(path, body))
        assert time.process_time() - start < 30


# Pickles that run code


class Payload:
    """Calls a function when it is unpickled."""

    def __init__(self, function, *args) -> None:
        self.call = function, args

    def __reduce__(self):
        return self.call


def payloads(folder: Path) -> dict[str, tuple[Payload, str]]:
    """Return payloads that write the file `flag` in the folder, with the global that each refers to."""
    flag = folder / "flag"
    write = f"open({str(flag)!r}, 'w').close()"
    (folder / "hubconf.py").write_text(f"def entry():\n    {write}\n")
    return {
        "system": (Payload(os.system, f'"{sys.executable}" -c "{write}"'), "system"),
        "exec": (Payload(exec, write), "exec"),
        "eval": (Payload(eval, write), "eval"),
        "hub": (Payload(torch.hub._load_local, str(folder), "entry"), "torch.hub._load_local"),
        "nested": (Payload(pickle.loads, pickle.dumps(Payload(exec, write))), "loads"),
    }


def embed(form: str, payload: Payload, path: Path) -> None:
    """Write a file of weights of one form with the payload in its pickle."""
    plain = {"weight": torch.ones(2), "other": payload}
    if form in ("zip", "legacy"):
        torch.save(plain, path, _use_new_zipfile_serialization=form == "zip")
    elif form == "zip4":
        torch.save(plain, path, pickle_protocol=4)
    elif form.startswith("bare"):
        path.write_bytes(pickle.dumps(payload, int(form[-1])))
    elif form == "tar":
        with tarfile.open(path, "w") as tar:
            for name in ("storages", "tensors", "pickle"):
                data = pickle.dumps(payload)
                entry = tarfile.TarInfo(name)
                entry.size = len(data)
                tar.addfile(entry, io.BytesIO(data))
    else:
        inner = pickle.dumps(payload, 2)[2:-1]
        body = {
            "archive": inner,
            "archive attribute": module(w=tensor(), x=inner),
            "archive deep": module(w=tensor(), part=module(x=b"](" + inner + b"e")),
            "archive size": module(w=tensor().replace(numbers((4,)), inner)),
            "archive state": named("__torch__.M") + b")\x81" + inner + b"b",
        }[form]
        write_archive(path, body)


FORMS = ["zip", "zip4", "legacy", "bare0", "bare2", "bare4", "bare5", "tar"]
FORMS += ["archive", "archive attribute", "archive deep", "archive size", "archive state"]


@pytest.mark.parametrize("name", ["system", "exec", "eval", "hub", "nested"])
@pytest.mark.parametrize("form", FORMS)
def test_refuses_code_without_running_it(path, tmp_path, form, name):
    payload, global_name = payloads(tmp_path)[name]
    embed(form, payload, path)
    message = refuses(path, "safetensors", *([global_name] if form != "tar" else []))
    assert form == "tar" or "nothing was run" in message
    assert not (tmp_path / "flag").exists()


@pytest.mark.parametrize("name", ["system", "exec", "eval", "hub", "nested"])
def test_the_payloads_run_elsewhere(path, tmp_path, name):
    payload, _ = payloads(tmp_path)[name]
    runs = [lambda: pickle.loads(pickle.dumps(payload)), lambda: torch.load(path, weights_only=False)]
    for form, run in zip(["zip", "legacy"], runs, strict=True):
        embed(form, payload, path)
        run()
        assert (tmp_path / "flag").exists()
        (tmp_path / "flag").unlink()


@pytest.mark.parametrize(
    "trick",
    [
        named("collections.OrderedDict") + b"}" + text("x") + number(1) + b"sb",  # sets an attribute of a function
        named("collections.OrderedDict") + b"N}" + text("__code__") + number(1) + b"s\x86b",
        named("collections.OrderedDict") + b")\x81",
        named("torch.FloatStorage") + b")R",
        named("__torch__.M") + b")R",
        named("__torch__.M") + text("x") + b"b",
        module() + b")R",
        b"](" + b"}" + b"ub",
        b"}(" + number(1) + b"e",
        b")(" + number(1) + b"e",
        b"}(" + number(1) + b"u",
        text("__torch__") + text("M") + b"\x93",
        b"(i__torch__\nM\n",
        b"(" + named("__torch__.M") + b"o",
        b"Pid\n",
        b"\x82\1",
        b"\x96" + struct.pack("<Q", 1 << 40),
        b"\x8e" + struct.pack("<Q", 1 << 62),
        named("collections.OrderedDict") + numbers((1,) * 100) + b"R",
    ],
)
def test_refuses_all_other_operations(path, trick):
    before = len(vars(OrderedDict))
    refuses(write_archive(path, module(w=tensor(), x=trick)))
    refuses(write_archive(path, trick))
    assert len(vars(OrderedDict)) == before
    assert len(read_pickled(write_archive(path, module(w=tensor()))).tensors) == 1  # nothing was changed


def test_shortens_names_to_one_line(path):
    refuses(write_archive(path, named("evil.\x1b[2J\r" + "x" * 10_000) + b")R"), "refers to evil.", "xxx")


# Files that are not weights, or not whole


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (b"", "empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n", "git lfs pull"),
        (b"<!DOCTYPE html>\n<html><title>Sign in</title></html>", "a web page"),
        (b"\n  <HTML><body>Not found</body></HTML>", "a web page"),
        (b"Entry not found", "safetensors"),
        (b'{"error": "gated"}', ""),
        (b"\x1f\x8b\x08" + b"\0" * 50, ""),
        (b"PK\3\4", "not a whole file"),
        (b"PK\3\4" + b"\0" * 100, "not a whole file"),
        (b"\x80", ""),
        (b"\x80\x02", ""),
        (b"\x80\x02}.", ""),
        (b"\0" * 600, ""),
    ],
)
def test_refuses_other_files_under_the_name_of_weights(path, content, word):
    path.write_bytes(content)
    refuses(path, word)


def test_names_safetensors_under_another_name(path):
    save_file({"a": torch.ones(2)}, path)
    refuses(path, ".safetensors")


def test_refuses_paths_that_are_not_files(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"absent\.pt"):
        read_pickled(tmp_path / "absent.pt")
    with pytest.raises(FileNotFoundError, match="a directory; expected a regular file"):
        read_pickled(tmp_path)


def test_refuses_another_zip(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("photos/cat.jpg", b"x")
    refuses(path, "photos/data.pkl")


def rezipped(source: Path, target: Path, compression: int = zipfile.ZIP_STORED, twice: bool = False) -> Path:
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w", compression) as new:
        for entry in old.infolist():
            for _ in range(1 + (twice and entry.filename.endswith("data/0"))):
                new.writestr(entry.filename, old.read(entry))
    return target


@pytest.mark.parametrize("kind", ["zip", "archive"])
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_refuses_compressed_and_duplicate_entries(tmp_path, kind):
    source = make(kind, tmp_path / "source.pt")
    expected = read_pickled(source).tensors
    same(read_pickled(rezipped(source, tmp_path / "stored.pt")).tensors, expected)
    refuses(rezipped(source, tmp_path / "small.pt", zipfile.ZIP_DEFLATED), "compressed")
    refuses(rezipped(source, tmp_path / "twice.pt", twice=True), "same name")


@pytest.mark.parametrize("kind", ["zip", "archive"])
def test_refuses_entries_with_wrong_sizes(tmp_path, kind):
    path = make(kind, tmp_path / "model.pt")
    data = bytearray(path.read_bytes())
    start = data.rindex(b"model/data/0") - 46  # its header in the directory at the end
    assert data[start : start + 4] == b"PK\1\2"
    sizes = [(1 << 31, 1 << 31), (1 << 31, 4), (4, 1 << 31)]  # stored, uncompressed
    for stored, read in sizes:
        struct.pack_into("<II", data, start + 20, stored, read)
        path.write_bytes(data)
        refuses(path, "do not fit")
    if kind == "archive":  # torch.load uses the pickle instead
        struct.pack_into("<II", data, start + 20, 1000, 1000)
        path.write_bytes(data)
        refuses(path)


@pytest.mark.parametrize("kind", KINDS)
def test_refuses_truncated_files(tmp_path, kind):
    path = make(kind, tmp_path / "model.pt")
    data = path.read_bytes()
    for length in [*range(1, 64, 7), *range(64, len(data), len(data) // 60), len(data) - 1]:
        path.write_bytes(data[:length])
        refuses(path)


@pytest.mark.parametrize(("kind", "name"), [("zip", "data.pkl"), ("archive", "data.pkl"), ("archive", "data/0")])
def test_detects_a_changed_byte(tmp_path, kind, name):
    path = make(kind, tmp_path / "model.pt")
    data = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        content = archive.read(f"model/{name}")
    data[data.index(content) + len(content) // 2] ^= 1
    path.write_bytes(data)
    refuses(path, "again")


def test_reads_files_without_checksums(tmp_path):
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(WEIGHTS, tmp_path / "w.pt")
    finally:
        torch.serialization.set_crc32_options(before)
    same(read_pickled(tmp_path / "w.pt").tensors, WEIGHTS)


# Any damage at all


def check_only_refused(path: Path) -> bool:
    """Return whether the file was read; if so, assert that its tensors are inside their storages."""
    try:
        tensors = read_pickled(path).tensors
    except CheckpointError:
        return False
    for value in tensors.values():
        last = value.storage_offset() + sum((n - 1) * s for n, s in zip(value.shape, value.stride(), strict=True))
        assert value.numel() == 0 or (last + 1) * value.itemsize <= value.untyped_storage().nbytes()
    return True


def damaged(data: bytes, chance: random.Random) -> bytes:
    """Change, remove or insert some bytes."""
    result = bytearray(data)
    for _ in range(chance.choice([1, 1, 2, 5])):
        at, kind = chance.randrange(len(result)), chance.random()
        if kind < 0.7:
            result[at] = chance.choice([chance.randrange(256), result[at] ^ 1 << chance.randrange(8), 0, 255])
        elif kind < 0.85:
            del result[at : at + chance.randrange(1, 9)]
        else:
            result[at:at] = chance.randbytes(chance.randrange(1, 9))
    return bytes(result)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_damaged_files_are_read_or_refused(tmp_path, kind):
    path, chance = tmp_path / "model.pt", random.Random(0)
    model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1))
    if kind == "archive":
        save_archive(model, path)
    else:
        torch.save(model.state_dict(), path, _use_new_zipfile_serialization=kind == "zip")
    data = path.read_bytes()
    outcomes = []
    for _ in range(250):
        path.write_bytes(damaged(data, chance))
        outcomes.append(check_only_refused(path))
    assert len(set(outcomes)) == 2


@pytest.mark.parametrize("kind", ["zip", "archive"])
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_damaged_pickles_in_whole_files_are_read_or_refused(tmp_path, kind):
    source, path, chance = make(kind, tmp_path / "model.pt"), tmp_path / "damaged.pt", random.Random(1)
    with zipfile.ZipFile(source) as archive:
        entries = {
            entry.filename: archive.read(entry) for entry in archive.infolist() if "/code/" not in entry.filename
        }
    outcomes = []
    for _ in range(400):
        with zipfile.ZipFile(path, "w") as archive:
            for name, data in entries.items():
                archive.writestr(name, damaged(data, chance) if name == "model/data.pkl" else data)
        outcomes.append(check_only_refused(path))
    assert len(set(outcomes)) == 2
