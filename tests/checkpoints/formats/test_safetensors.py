"""Safetensors files: exact, in memory once, atomically written, and refused in one line if damaged."""

import functools
import json
import math
import os
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from miniclip.checkpoints.formats import safetensors as module
from miniclip.checkpoints.formats.safetensors import open_tensors, read_tensors, write_tensors
from miniclip.errors import CheckpointError

linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
DTYPES = {
    "BOOL": torch.bool, "U8": torch.uint8, "I8": torch.int8, "I16": torch.int16, "I32": torch.int32,
    "I64": torch.int64, "F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32, "F64": torch.float64,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
}  # fmt: skip


def bits(tensor):
    """Return the bytes, to compare NaN and dtypes without arithmetic."""
    return tensor.detach().contiguous().view(-1).view(torch.uint8)


def assert_equal(tensors, expected):
    assert tensors.keys() == expected.keys()
    for key, value in expected.items():
        assert (tensors[key].dtype, tensors[key].shape) == (value.dtype, value.shape), key
        assert torch.equal(bits(tensors[key]), bits(value)), key


def random(dtype, *shape):
    """Return random bits, NaN and the infinities among them."""
    top = 2 if dtype == torch.bool else 256
    return torch.randint(top, (math.prod(shape) * dtype.itemsize,), dtype=torch.uint8).view(dtype).view(shape)


def raw(path, header, data=b""):
    """Write a file with this header, unchecked."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


def entry(dtype="F32", shape=(2,), start=0, stop=8):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [start, stop]}


def shown(value):
    """Return a parameter's text for a test's name."""
    return ascii(value)[:60]


def refused(path, *words):
    with pytest.raises(CheckpointError) as caught:
        open_tensors(path)
    message = str(caught.value)
    assert "\n" not in message
    assert all(str(word) in message for word in (path, *words)), message


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("tensors")


# Writing


def test_writes_tensors_of_all_strides_and_shared_memory(tmp_path):
    base = torch.arange(12.0).view(3, 4)
    values = {
        "transposed": base.T, "every second": base[::2, 1:], "expanded": torch.ones(1).expand(5),
        "same": base, "again": base, "part": base[1:], "parameter": torch.nn.Parameter(base.clone()),
        "channels": random(torch.float32, 2, 3, 4, 4).to(memory_format=torch.channels_last),
        "scalar": torch.tensor(3.5, dtype=torch.float64), "empty": torch.empty(0, 2), "also empty": torch.empty(0),
    }  # fmt: skip
    write_tensors(tmp_path / "t.safetensors", values, {"format": "pt"})
    assert_equal(load_file(tmp_path / "t.safetensors"), values)
    tensors, metadata = read_tensors(tmp_path / "t.safetensors")
    assert_equal(tensors, values)
    assert metadata == {"format": "pt"}


def test_metadata_are_ordered_so_that_equal_content_has_equal_bytes(tmp_path):
    values = {"weight": torch.arange(6.0).view(2, 3), "bias": torch.ones(2)}
    metadata = {name: f'"{name}" – ü\n\\' for name in "hgfedcba"}
    write_tensors(tmp_path / "t.safetensors", values, metadata)
    content = (tmp_path / "t.safetensors").read_bytes()
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    assert list(header["__metadata__"]) == sorted(metadata)
    tensors, read = read_tensors(tmp_path / "t.safetensors")
    assert_equal(tensors, values)
    assert read == metadata


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (torch.zeros(2, dtype=torch.complex128), "complex128"),
        (torch.eye(2).to_sparse(), "sparse_coo"),
        (torch.empty(2, device="meta"), "meta"),
    ],
)
def test_refuses_tensors_that_cannot_be_written(tmp_path, value, words):
    with pytest.raises(ValueError, match=words) as caught:
        write_tensors(tmp_path / "t.safetensors", {"fine": torch.zeros(2), "strange": value})
    assert "'strange'" in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_refuses_names_and_metadata_that_cannot_be_written(tmp_path):
    with pytest.raises(ValueError, match="__metadata__"):
        write_tensors(tmp_path / "t.safetensors", {"__metadata__": torch.zeros(2)})
    with pytest.raises(TypeError):
        write_tensors(tmp_path / "t.safetensors", {}, {"step": 12})
    with pytest.raises(ValueError, match="surrogates"):
        write_tensors(tmp_path / "t.safetensors", {"\ud800": torch.zeros(2)})
    assert list(tmp_path.iterdir()) == []


def test_failed_write_keeps_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "t.safetensors"
    write_tensors(path, {"old": torch.ones(3)})

    def fail(tensors, temporary, metadata):
        temporary.write_bytes(b"half of a file")
        raise OSError("disk full")

    monkeypatch.setattr(module, "save_file", fail)
    with pytest.raises(OSError, match="disk full"):
        write_tensors(path, {"a": torch.zeros(2), "b": torch.zeros(2)})
    assert [each.name for each in tmp_path.iterdir()] == [path.name]
    assert torch.equal(load_file(path)["old"], torch.ones(3))


# Mapping


@pytest.fixture
def written(tmp_path):
    """Return a file of several pages, and its tensors."""
    values = {"a": random(torch.uint8, 3), "w": random(torch.float32, 5000), "d": random(torch.float64, 2, 700)}
    write_tensors(tmp_path / "t.safetensors", values)
    return tmp_path / "t.safetensors", values


def test_get_returns_the_mapped_memory_without_a_copy(written):
    path, values = written
    weights = open_tensors(path)
    assert_equal({key: weights.get(key) for key in values}, values)
    assert weights.shapes == {key: tuple(value.shape) for key, value in values.items()}
    assert weights.dtypes == {key: value.dtype for key, value in values.items()}
    assert weights.get("w").data_ptr() == weights.get("w").data_ptr()
    for read in (weights.get, weights.take):
        with pytest.raises(KeyError, match="absent"):
            read("absent")


def test_reads_tensors_at_odd_bytes(tmp_path):
    """Older versions of the library wrote headers of any length."""
    text = json.dumps({"byte": entry("U8", (3,), 0, 3), "w": entry("F32", (2,), 3, 11)}).encode()
    path = raw(tmp_path / "t.safetensors", text + b" " * (len(text) % 2), b"\1\2\3\0\0\x80?\0\0\0@")
    weights = open_tensors(path)
    assert weights.get("w").tolist() == weights.take("w").tolist() == [1.0, 2.0]


def test_tensors_outlive_the_file(written):
    path, values = written
    tensor = open_tensors(path).get("w")
    path.unlink()
    assert torch.equal(bits(tensor), bits(values["w"]))


def test_changes_stay_in_the_process(written):
    path, values = written
    before = path.read_bytes()
    weights, other = open_tensors(path), open_tensors(path)
    parameter = torch.nn.Parameter(weights.get("d").nan_to_num_(0.0))
    with torch.no_grad():
        parameter.fill_(1.0)
    parameter.sum().backward()
    with torch.no_grad():
        parameter -= 0.5 * parameter.grad
    assert torch.equal(weights.get("d"), torch.full((2, 700), 0.5, dtype=torch.float64))
    assert path.read_bytes() == before
    assert_equal({key: other.get(key) for key in values}, values)


@linux
def test_nothing_stays_mapped_after_reading(written):
    path, values = written
    tensors, _ = read_tensors(path)
    assert str(path) not in Path("/proc/self/maps").read_text()
    assert_equal(tensors, values)
    weights = open_tensors(path)
    assert str(path) in Path("/proc/self/maps").read_text()
    del weights
    assert str(path) not in Path("/proc/self/maps").read_text()


def test_detects_a_file_that_is_replaced_while_it_is_read(written, one_line):
    path, values = written
    weights = open_tensors(path)
    write_tensors(path, {key: torch.zeros_like(value) for key, value in values.items()})
    assert torch.equal(bits(weights.get("w")), bits(values["w"]))
    with pytest.raises(CheckpointError, match="the file was replaced while it was read: load it again") as caught:
        weights.take("w")
    one_line(caught, path)


# Refusals


HALF = {"dtype": "F32", "shape": [2]}


@pytest.mark.parametrize(
    "header",
    [
        b"",
        b'{"w": ',
        b"\xff\xfe{",
        b"[]",
        b"7",
        b"[" * 100_000,
        b'{"w": ' + b"1" * 5000 + b"}",
        {"__metadata__": {"step": 12}},
        {"__metadata__": ["a"]},
        {"w": 1},
        {"w": HALF},
        {"w": {**HALF, "data_offsets": [0, 8, 8]}},
        {"w": {**HALF, "data_offsets": {"0": 8}}},
        {"w": entry(dtype=None)},
        {"w": entry(shape=[-2])},
        {"w": entry(shape=[-2, -1])},
        {"w": entry(shape=[2.0])},
        {"w": entry(shape=[True, 2])},
        {"w": entry(shape=["2"])},
        {"w": entry(start=-8, stop=0)},
        {"w": entry(stop=8.0)},
        {"w": entry(shape=[2**64])},
        {"w": entry(shape=[2**62, 4])},  # 2**64 elements, which wrap to none
        {"w": entry(shape=[2**61], stop=0)},  # 2**63 bytes
        {"w": entry(shape=[0, 2**62, 2**62], stop=0)},  # empty, but torch cannot stride it
        {"w": entry(stop=4)},
        {"w": entry(shape=[2, 0])},
        {"w": entry(start=8, stop=0)},
        {"w": entry(start=2**63 - 9, stop=2**63 - 1)},
        {"w": entry(), "v": entry()},
        {"w": entry(), "v": entry(start=4, stop=12)},
        {"w": entry(start=4, stop=12)},
        {"w": entry(), "v": entry(start=12, stop=20)},
        {"w": entry(), "v": entry("U8", (0,), 4, 4)},
        {"w": entry("F32", (1,), 0, 4)},
        {},
        {"w": entry("F32", (4,), 0, 16)},
    ],
    ids=shown,
)
def test_refuses_invalid_headers(tmp_path, header):
    path = raw(tmp_path / "t.safetensors", header, b"\0" * 8)
    refused(path, "not a whole safetensors file")


def test_names_an_unknown_dtype(tmp_path):
    path = raw(tmp_path / "t.safetensors", {"w": entry("F31")}, b"\0" * 8)
    refused(path, "F31", "upgrade safetensors")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "the file is empty"),
        (b"\2\0\0", "header too small"),
        (b"\2\0\0\0\0\0\0\0{", "invalid header length"),
        ((2**60).to_bytes(8, "little") + b"{}", "header too large"),
        ((2**64 - 1).to_bytes(8, "little") + b"{}", "header too large"),
        ((100_000_001).to_bytes(8, "little") + b"{}", "header too large"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n", "git lfs pull"),
        (b"<!DOCTYPE html>\n<html>Entry not found</html>", "HTML"),
        (b"\xef\xbb\xbf\r\n <html>", "HTML"),
        (b"PK\x03\x04\0\0\x08\x08\0\0", "torch.save"),
    ],
    ids=shown,
)
def test_refuses_other_files(tmp_path, content, words):
    (tmp_path / "t.safetensors").write_bytes(content)
    refused(tmp_path / "t.safetensors", words)


def test_refuses_a_pickle(tmp_path):
    torch.save({"w": torch.zeros(2)}, tmp_path / "t.safetensors")
    refused(tmp_path / "t.safetensors", "torch.save")


def test_does_not_read_a_header_of_gigabytes(tmp_path):
    with (tmp_path / "t.safetensors").open("wb") as file:
        file.write((2**31).to_bytes(8, "little"))
        file.truncate(2**31 + 8)
    refused(tmp_path / "t.safetensors", "header too large")


def test_refuses_missing_paths(tmp_path):
    for name in ("absent.safetensors", "absent.safetensors.index.json"):
        with pytest.raises(FileNotFoundError, match=name):
            open_tensors(tmp_path / name)


@pytest.mark.parametrize("keep", [*range(0, 200, 7), -1])
def test_refuses_truncated_files(tmp_path, keep):
    path = tmp_path / "t.safetensors"
    write_tensors(path, {"w": torch.ones(30), "b": torch.ones(3)}, {"format": "pt"})
    path.write_bytes(path.read_bytes()[:keep])
    refused(path, "not a whole safetensors file")


def opens(path):
    """Return the file's tensors, or None if it was refused in one line; anything else is a failure."""
    try:
        file = open_tensors(path)
    except CheckpointError as error:
        message = str(error)
    else:
        message = None
    if message is not None:
        assert "\n" not in message
        assert str(path) in message
        return None
    tensors = {key: file.take(key).clone() for key in file.shapes}
    assert {key: (tuple(value.shape), value.dtype) for key, value in tensors.items()} == {
        key: (file.shapes[key], file.dtypes[key]) for key in file.shapes
    }
    return tensors


@functools.cache
def whole():
    text = json.dumps({"__metadata__": {"a": "b"}, "w": entry(), "v": entry("U8", (3, 1), 8, 11)}).encode()
    return len(text).to_bytes(8, "little") + text + bytes(range(11))


@settings(max_examples=150)
@given(st.data())
def test_changed_bytes_are_read_or_refused(folder, data):
    start = data.draw(st.integers(0, len(whole())))
    stop = data.draw(st.integers(start, min(start + 4, len(whole()))))
    piece = data.draw(st.binary(max_size=4) | st.sampled_from([b"9" * 30, b"{", b"]", b'"', b"\0", b"-", b"1e9"]))
    path = folder / "bytes.safetensors"
    path.write_bytes(whole()[:start] + piece + whole()[stop:])
    opens(path)


JUNK = [None, True, -1, 0, 1, 3, 8, 2**20, 2**63, 2**64, 10**30, 1.5, float("inf"), "", "F32", "x\ny", [], {}]
junk = st.sampled_from(JUNK) | st.lists(st.sampled_from(JUNK), max_size=3)


@settings(max_examples=150)
@given(
    st.lists(st.tuples(st.sampled_from(list(DTYPES)), st.lists(st.integers(0, 4), max_size=3)), max_size=4),
    st.lists(
        st.tuples(st.integers(0, 3), st.sampled_from(["dtype", "shape", "data_offsets", "x", ""]), junk), max_size=2
    ),
    st.sampled_from([0, 0, 0, -1, 1]),
)
@example([("F32", [2]), ("U8", [3])], [], 0)
def test_changed_headers_are_read_or_refused(folder, kinds, changes, more):
    header, end = {}, 0
    for i, (dtype, shape) in enumerate(kinds):
        start, end = end, end + math.prod(shape) * DTYPES[dtype].itemsize
        header[f"key {i}"] = entry(dtype, shape, start, end)
    for i, field, value in changes:
        if not field:
            header[f"key {i}"] = value
        elif isinstance(header.get(f"key {i}"), dict):
            header[f"key {i}"][field] = value
    path = raw(folder / "header.safetensors", header, b"\1" * max(0, end + more))
    tensors = opens(path)
    if not changes and not more:
        assert tensors is not None


# Sharded


@pytest.fixture
def sharded(tmp_path):
    """Write two files and their index."""
    shards = {
        "model-1-of-2.safetensors": {"a": random(torch.float32, 64), "b": random(torch.bfloat16, 3, 5)},
        "model-2-of-2.safetensors": {"c": random(torch.float64, 2, 2), "e": torch.empty(0, 4)},
    }
    for name, values in shards.items():
        save_file(values, tmp_path / name, {"format": "pt"})
    weight_map = {key: name for name, values in shards.items() for key in values}
    path = tmp_path / "model.safetensors.index.json"
    path.write_text(json.dumps({"metadata": {"total_size": 318, "by": "me", "tied": True}, "weight_map": weight_map}))
    return path, {key: value for values in shards.values() for key, value in values.items()}


def remap(path, **changes):
    index = json.loads(path.read_text())
    index["weight_map"] = {key: name for key, name in {**index["weight_map"], **changes}.items() if name is not None}
    path.write_text(json.dumps(index))


def test_opens_shards_as_one(sharded):
    path, values = sharded
    file = open_tensors(path)
    assert file.path == path
    assert file.metadata == {"total_size": "318", "by": "me", "tied": "true"}
    assert file.shapes == {key: tuple(value.shape) for key, value in values.items()}
    assert file.dtypes == {key: value.dtype for key, value in values.items()}
    assert_equal({key: file.get(key) for key in values}, values)
    assert_equal(read_tensors(path)[0], values)
    assert_equal({key: file.take(key) for key in values}, values)


def test_opens_shards_that_are_links(sharded, tmp_path):
    """The Hub's cache consists of links to files in another directory."""
    path, values = sharded
    linked = tmp_path / "snapshot"
    linked.mkdir()
    for file in [*tmp_path.glob("*.safetensors"), path]:
        (linked / file.name).symlink_to(file)
    assert_equal(read_tensors(linked / path.name)[0], values)


@pytest.mark.parametrize(
    "name",
    [
        "../model-2-of-2.safetensors", "/etc/model-2-of-2.safetensors", "sub/model.safetensors", "..\\m.safetensors",
        "C:m.safetensors", "C:\\m.safetensors", "..", ".", "", "model.bin", "a\0.safetensors", "a\n.safetensors",
        "\ud800.safetensors", 7, ["model-2-of-2.safetensors"], {"a": 1}, "model.safetensors.index.json",
    ],
)  # fmt: skip
def test_refuses_shard_names_outside_of_the_directory(sharded, name):
    path, _ = sharded
    (path.parent.parent / "model-2-of-2.safetensors").write_bytes(
        (path.parent / "model-2-of-2.safetensors").read_bytes()
    )
    remap(path, c=name, e=name)
    refused(path, "expected the name of a .safetensors file beside it")
    (path.parent.parent / "model-2-of-2.safetensors").unlink()


def test_refuses_shards_that_do_not_fit_the_index(sharded):
    path, _ = sharded
    text = path.read_text()
    remap(path, missing="model-1-of-2.safetensors")
    refused(path, "'missing' is not in 'model-1-of-2.safetensors'")
    path.write_text(text)
    remap(path, c="model-1-of-2.safetensors")
    refused(path, "'c' is in 'model-2-of-2.safetensors', expected 'model-1-of-2.safetensors'")
    path.write_text(text)
    remap(path, c=None)
    refused(path, "'c' is in 'model-2-of-2.safetensors', expected nowhere")
    path.write_text(text)
    save_file({"c": torch.zeros(1), "a": torch.zeros(1)}, path.parent / "model-2-of-2.safetensors")
    remap(path, e=None)
    refused(path, "'a' is in 'model-2-of-2.safetensors', expected 'model-1-of-2.safetensors'")


def test_refuses_missing_or_damaged_shards(sharded):
    path, _ = sharded
    shard = path.parent / "model-2-of-2.safetensors"
    data = shard.read_bytes()
    shard.unlink()
    refused(path, shard.name, "no such file")
    shard.mkdir()
    refused(path, shard.name)
    shard.rmdir()
    shard.write_bytes(data)
    remap(path, long="x" * 300 + ".safetensors")
    refused(path, "too long")
    remap(path, long=None)
    shard.write_bytes(data[:-1])
    with pytest.raises(CheckpointError, match="not a whole safetensors file") as caught:
        open_tensors(path)
    assert str(shard) in str(caught.value)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "empty"),
        (b"{", "not an index"),
        (b"[]", "not an index"),
        (b"[" * 100_000, "not an index"),
        (b"{}", "no weight_map"),
        (b'{"weight_map": []}', "no weight_map"),
        (b'{"weight_map": {}, "metadata": 1}', "not an index"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        (b"<!doctype html>", "HTML"),
    ],
    ids=shown,
)
def test_refuses_invalid_indexes(tmp_path, content, words):
    path = tmp_path / "model.safetensors.index.json"
    path.write_bytes(content)
    refused(path, words, "not an index of safetensors files")


# Memory: the peak over the memory before, in units of the weights, each measured in a process of its own


def status(field):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def mapped(path):
    """Bytes of a file that are mapped and in memory."""
    total, is_file = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if "-" in line.split()[0]:  # a mapping begins
            is_file = line.endswith(str(path))
        elif is_file and line.startswith("Rss:"):
            total += int(line.split()[1]) * 1024
    return total


def touch(path):
    file = open_tensors(path)
    return file, [file.get(key).sum() for key in file.shapes]


def convert(path, mapped=False):
    file = open_tensors(path)
    read = file.get if mapped else file.take
    return {key: read(key).to(torch.bfloat16) for key in file.shapes}


def train(path):
    file = open_tensors(path)
    return file, [file.get(key).add_(1.0) for key in file.shapes]


def write(path, tensors):
    write_tensors(path.with_name("written.safetensors"), tensors)


def print_cost(path, name, work, prepare=lambda path: path, scale=1):
    if os.fork():  # a fork has a peak of its own
        assert os.wait()[1] == 0
        return
    given = prepare(path)
    work(*[path] * (work is write), prepare(path.with_name("small.safetensors")))  # load what the first call loads
    size = path.stat().st_size * scale
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts here
    before = {field: status(field) for field in ("VmRSS", "RssAnon")}
    kept = work(*[path] * (work is write), given)  # noqa: F841 - in memory while it is measured
    after = {"peak": status("VmHWM") - before["VmRSS"], "anonymous": status("RssAnon") - before["RssAnon"]}
    after["mapped"] = mapped(path)
    print(json.dumps({name: {key: value / size for key, value in after.items()}}), flush=True)
    os._exit(0)


def print_costs(folder):
    path = folder / "big.safetensors"
    torch.set_num_threads(1)
    print_cost(path, "touched", touch)
    print_cost(path, "converted", convert, scale=0.5)
    print_cost(path, "converted and kept", functools.partial(convert, mapped=True), scale=0.5)
    print_cost(path, "read", read_tensors)
    print_cost(path, "trained", train)
    print_cost(path, "written", write, prepare=lambda path: read_tensors(path)[0])
    print_cost(
        path,
        "transposed and written",
        write,
        prepare=lambda path: {key: value.T for key, value in read_tensors(path)[0].items()},
    )


@pytest.fixture(scope="module")
def costs(rank_starter, tmp_path_factory):
    folder = tmp_path_factory.mktemp("costs")
    weight, bias = torch.ones(512, 1024), torch.ones(7, 1)
    weights = {f"{i}.weight": weight for i in range(64)}  # 128 MiB, and one tensor is a 64th of them
    write_tensors(folder / "big.safetensors", weights | {f"{i}.bias": bias for i in range(64)})
    write_tensors(folder / "small.safetensors", {"weight": weight, "bias": bias})
    try:
        ((_, output, _),) = rank_starter.run(1, print_costs, folder)
    finally:
        for file in folder.iterdir():  # pytest keeps them for three runs
            file.unlink()
    return functools.reduce(dict.__or__, map(json.loads, output.splitlines()))


@linux
def test_mapping_holds_the_file_once(costs):
    assert 0.95 < costs["touched"]["mapped"] < 1.05
    assert costs["touched"]["peak"] < 1.05
    assert costs["touched"]["anonymous"] < 0.02


@linux
def test_converting_holds_the_result_once(costs):
    assert 0.95 < costs["converted"]["peak"] < 1.15
    assert costs["converted and kept"]["peak"] > 2.5  # the file stays mapped


@linux
def test_reading_holds_the_weights_once(costs):
    assert 0.95 < costs["read"]["peak"] < 1.1
    assert 0.95 < costs["read"]["anonymous"] < 1.05


@linux
def test_training_in_place_holds_the_weights_once(costs):
    assert 0.95 < costs["trained"]["peak"] < 1.05
    assert 0.95 < costs["trained"]["anonymous"] < 1.05


@linux
def test_writing_copies_only_tensors_that_are_not_contiguous(costs):
    assert costs["written"]["peak"] < 0.02
    assert 0.9 < costs["transposed and written"]["peak"] < 1.1
