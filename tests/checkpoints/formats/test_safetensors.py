"""Safetensors files: as the library reads and writes them, in memory once, and refused in one line when damaged."""

import functools
import itertools
import json
import math
import mmap
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from miniclip.checkpoints.formats import safetensors as tensors
from miniclip.checkpoints.formats.safetensors import DTYPES, NAMES, open_tensors, read_tensors, write_tensors
from miniclip.errors import CheckpointError

linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
PAGE = mmap.PAGESIZE
KNOWN_TO_ALL = ["BOOL", "U8", "I8", "I16", "I32", "I64", "F16", "BF16", "F32", "F64", "F8_E4M3", "F8_E5M2"]


def bits(tensor):
    """The bytes, in which NaN equals itself and dtypes without arithmetic can be compared."""
    return tensor.detach().contiguous().view(-1).view(torch.uint8)


def assert_equal(found, expected):
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert (found[key].dtype, found[key].shape) == (value.dtype, value.shape), key
        assert torch.equal(bits(found[key]), bits(value)), key


def random(dtype, *shape):
    """Any bits at all, so NaN and the infinities too."""
    top = 2 if dtype == torch.bool else 256
    return torch.randint(top, (math.prod(shape) * dtype.itemsize,), dtype=torch.uint8).view(dtype).view(shape)


def raw(path, header, data=b""):
    """A file with this header, as it is."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


def entry(dtype="F32", shape=(2,), start=0, stop=8):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [start, stop]}


def shown(value):
    """A parameter in a test's name."""
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


# What is written


@st.composite
def dictionaries(draw):
    """Tensors by key, of the dtypes that every version of the library reads, some of them not contiguous."""
    torch.manual_seed(draw(st.integers(0, 99)))
    found = {}
    for key in draw(st.lists(st.text(st.characters(codec="utf-8"), max_size=5), unique=True, max_size=6)):
        dtype = DTYPES[draw(st.sampled_from(KNOWN_TO_ALL))]
        tensor = random(dtype, *draw(st.lists(st.sampled_from([0, 1, 2, 3, 8, 33]), max_size=3)))
        found[key] = tensor.transpose(0, -1) if tensor.ndim and draw(st.booleans()) else tensor
    return found


@given(dictionaries(), st.dictionaries(st.text(st.characters(codec="utf-8")), st.text(st.characters(codec="utf-8"))))
def test_written_here_read_by_the_library(folder, values, metadata):
    write_tensors(folder / "ours.safetensors", values, metadata)
    assert_equal(load_file(folder / "ours.safetensors"), values)
    with safe_open(folder / "ours.safetensors", framework="pt") as file:
        assert (file.metadata() or {}) == metadata
    file = open_tensors(folder / "ours.safetensors")
    assert file.metadata == metadata
    assert list(file.shapes) == list(values)  # in the order given
    assert_equal({key: file.take(key) for key in file.shapes}, values)


@given(dictionaries(), st.dictionaries(st.text(st.characters(codec="utf-8")), st.text(st.characters(codec="utf-8"))))
def test_written_by_the_library_read_here(folder, values, metadata):
    save_file(
        {key: value.contiguous() for key, value in values.items()}, folder / "theirs.safetensors", metadata or None
    )
    file = open_tensors(folder / "theirs.safetensors")
    assert file.path == folder / "theirs.safetensors"
    assert file.metadata == metadata
    assert file.shapes == {key: tuple(value.shape) for key, value in values.items()}
    assert file.dtypes == {key: value.dtype for key, value in values.items()}
    assert_equal({key: file.take(key) for key in file.shapes}, values)
    assert_equal(read_tensors(folder / "theirs.safetensors")[0], values)


@pytest.mark.parametrize("name", DTYPES)
def test_every_dtype_round_trips(tmp_path, name):
    values = {"vector": random(DTYPES[name], 5), "scalar": random(DTYPES[name]), "empty": random(DTYPES[name], 2, 0)}
    write_tensors(tmp_path / "t.safetensors", values)
    assert f'"dtype":"{name}"'.encode() in (tmp_path / "t.safetensors").read_bytes()
    assert_equal(read_tensors(tmp_path / "t.safetensors")[0], values)


def test_tensors_that_need_work_before_they_are_bytes(tmp_path):
    base = torch.arange(12.0).view(3, 4)
    values = {
        "turned": base.T, "every second": base[::2, 1:], "expanded": torch.ones(1).expand(5),
        "same": base, "again": base, "parameter": torch.nn.Parameter(base.clone()),
        "channels": random(torch.float32, 2, 3, 4, 4).to(memory_format=torch.channels_last),
    }  # fmt: skip
    write_tensors(tmp_path / "t.safetensors", values)
    assert_equal(load_file(tmp_path / "t.safetensors"), values)


@given(
    st.lists(st.tuples(st.sampled_from(["F32", "U8", "F64"]), st.sampled_from([0, 1, 3, 8, 16, 64, 100])), max_size=9)
)
@example([("U8", 3), ("F64", 8), ("F32", 1), ("F32", 16), ("U8", 64), ("F64", 3)])
def test_every_tensor_starts_where_it_is_aligned(folder, kinds):
    values = {f"{i}": random(DTYPES[name], size) for i, (name, size) in enumerate(kinds)}
    write_tensors(folder / "aligned.safetensors", values)
    file = open_tensors(folder / "aligned.safetensors")
    for key, value in values.items():
        taken = file.take(key)
        assert value.nbytes % 64 or taken.data_ptr() % 64 == 0
        assert taken.data_ptr() % value.itemsize == 0
        assert torch.equal(bits(taken), bits(value))


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (torch.zeros(2, dtype=torch.complex128), "complex128"),
        (torch.eye(2).to_sparse(), "sparse_coo"),
        (torch.empty(2, device="meta"), "meta"),
    ],
)
def test_tensors_that_cannot_be_written(tmp_path, value, words):
    with pytest.raises(ValueError, match=words) as caught:
        write_tensors(tmp_path / "t.safetensors", {"fine": torch.zeros(2), "strange": value})
    assert "'strange'" in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_name_and_metadata_that_cannot_be_written(tmp_path):
    with pytest.raises(ValueError, match="__metadata__"):
        write_tensors(tmp_path / "t.safetensors", {"__metadata__": torch.zeros(2)})
    with pytest.raises(TypeError, match="text by name"):
        write_tensors(tmp_path / "t.safetensors", {}, {"step": 12})
    with pytest.raises(ValueError, match="surrogates"):  # the library could not read it
        write_tensors(tmp_path / "t.safetensors", {"\ud800": torch.zeros(2)})
    assert list(tmp_path.iterdir()) == []


def test_a_write_that_fails_in_the_middle_leaves_what_was_there(tmp_path, monkeypatch):
    path = tmp_path / "t.safetensors"
    write_tensors(path, {"old": torch.ones(3)})
    results = iter([b"\0" * 8])

    def fail_at_the_second(tensor):
        try:
            return next(results)
        except StopIteration:
            raise OSError("disk full") from None

    monkeypatch.setattr(tensors, "_bytes", fail_at_the_second)
    with pytest.raises(OSError, match="disk full"):
        write_tensors(path, {"a": torch.zeros(2), "b": torch.zeros(2)})
    assert [each.name for each in tmp_path.iterdir()] == [path.name]
    assert torch.equal(load_file(path)["old"], torch.ones(3))


# What is mapped


@pytest.fixture
def odd(tmp_path):
    """A file whose tensors start at odd bytes, over several pages."""
    values = {"byte": random(torch.uint8, 3), "w": random(torch.float32, 5000), "d": random(torch.float64, 2, 700)}
    ends = list(itertools.accumulate(value.nbytes for value in values.values()))
    header = {
        key: entry(NAMES[value.dtype], value.shape, end - value.nbytes, end)
        for (key, value), end in zip(values.items(), ends, strict=True)
    }
    text = json.dumps(header).encode()
    data = b"".join(bytes(bits(value).tolist()) for value in values.values())
    return raw(tmp_path / "odd.safetensors", text + b" " * (len(text) % 2), data), values


def test_tensors_are_taken_at_any_byte_without_a_copy(odd):
    path, values = odd
    file = open_tensors(path)
    assert file.take("w").data_ptr() % 4 != 0
    assert_equal({key: file.take(key) for key in values}, values)
    assert file.take("w").data_ptr() == file.take("w").data_ptr()
    assert file.take("d").data_ptr() - file.take("w").data_ptr() == values["w"].nbytes
    with pytest.raises(KeyError, match="absent"):
        file.take("absent")
    with pytest.raises(KeyError, match="absent"):
        file.release("absent")


def test_a_tensor_outlives_the_file(odd):
    path, values = odd
    taken = open_tensors(path).take("w")
    path.unlink()
    assert torch.equal(bits(taken), bits(values["w"]))


def test_what_is_written_into_a_tensor_stays_in_the_process(odd):
    path, values = odd
    before = path.read_bytes()
    file, other = open_tensors(path), open_tensors(path)
    weight = torch.nn.Parameter(file.take("d").nan_to_num_(0.0))
    with torch.no_grad():
        weight.fill_(1.0)
    weight.sum().backward()
    with torch.no_grad():
        weight -= 0.5 * weight.grad
    assert torch.equal(file.take("d"), torch.full((2, 700), 0.5, dtype=torch.float64))
    assert path.read_bytes() == before
    assert_equal({key: other.take(key) for key in values}, values)


@pytest.mark.skipif(not hasattr(mmap, "MADV_DONTNEED") or sys.platform != "linux", reason="Linux forgets at once")
def test_release_forgets_whole_pages_of_the_tensor_alone(odd):
    path, values = odd
    file = open_tensors(path)
    bits(file.take("w")).bitwise_not_()  # over pages that it shares with its neighbours
    bits(file.take("d")).bitwise_not_()
    file.release("w")
    same = bits(file.take("w")) == bits(values["w"])
    assert same.sum() == values["w"].nbytes // PAGE * PAGE or same.sum() == (values["w"].nbytes // PAGE - 1) * PAGE
    assert torch.equal(bits(file.take("d")), ~bits(values["d"]))


@given(st.lists(st.integers(0, 3 * PAGE), min_size=1, max_size=6), st.data())
@example([PAGE, 2 * PAGE, PAGE], None)
def test_release_loses_nothing_of_the_others(folder, sizes, data):
    values = {f"{i}": random(torch.uint8, size) for i, size in enumerate(sizes)}
    write_tensors(folder / "release.safetensors", values)
    file = open_tensors(folder / "release.safetensors")
    released = data.draw(st.sets(st.sampled_from(list(values)))) if data else {"1"}
    for key in values.keys() - released:
        file.take(key).bitwise_not_()
    for key in released:
        file.release(key)
    for key, value in values.items():
        assert torch.equal(file.take(key), value if key in released else ~value), key


@linux
def test_what_was_read_is_no_longer_mapped(odd):
    path, values = odd
    found, _ = read_tensors(path)
    assert str(path) not in Path("/proc/self/maps").read_text()
    assert all(value.data_ptr() % 64 == 0 for value in found.values())
    assert_equal(found, values)
    file = open_tensors(path)
    assert str(path) in Path("/proc/self/maps").read_text()
    del file
    assert str(path) not in Path("/proc/self/maps").read_text()


# What is refused


HALF = {"dtype": "F32", "shape": [2]}


@pytest.mark.parametrize(
    ("header", "words"),
    [
        (b"", "no JSON"),
        (b'{"w": ', "no JSON"),
        (b"\xff\xfe{", "utf-8"),
        (b"[]", "a JSON list, expected an object"),
        (b"7", "a JSON int"),
        (b"[" * 100_000, "not a whole safetensors file"),
        (b'{"w": ' + b"1" * 5000 + b"}", "not a whole safetensors file"),
        (b'{"w": {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]}, "w": 1}', "'w' is there twice"),
        (b'{"__metadata__": {"k": "1", "k": "2"}}', "'k' is there twice"),
        ({"__metadata__": {"step": 12}}, "__metadata__"),
        ({"__metadata__": ["a"]}, "__metadata__"),
        ({"w": 1}, "'w' is 1, expected a dtype, a shape and two data_offsets"),
        ({"w": HALF}, "'w' is"),
        ({"w": {**HALF, "data_offsets": [0, 8, 8]}}, "'w' is"),
        ({"w": {**HALF, "data_offsets": {"0": 8}}}, "'w' is"),
        ({"w": entry(dtype=None)}, "'w' is"),
        ({"w": entry(shape=[-2])}, "'w' is"),
        ({"w": entry(shape=[-2, -1])}, "'w' is"),
        ({"w": entry(shape=[2.0])}, "'w' is"),
        ({"w": entry(shape=[True, 2])}, "'w' is"),
        ({"w": entry(shape=["2"])}, "'w' is"),
        ({"w": entry(shape=[1] * 64 + [2])}, "'w' is"),
        ({"w": entry(start=-8, stop=0)}, "'w' is"),
        ({"w": entry(stop=8.0)}, "'w' is"),
        ({"w": entry(shape=[2**64])}, "'w' is"),
        ({"w": entry(shape=[2**62, 4])}, "'w' has the shape"),  # 2**64 elements, which wrap to none
        ({"w": entry(shape=[2**61], stop=0)}, "'w' has the shape"),  # 2**63 bytes
        ({"w": entry(shape=[0, 2**62, 2**62], stop=0)}, "'w' has the shape"),  # empty, but torch cannot stride it
        ({"w": entry(stop=4)}, "'w' has the data_offsets [0, 4], expected 8 bytes for [2] of F32"),
        ({"w": entry(shape=[2, 0])}, "'w' has the data_offsets [0, 8], expected 0 bytes"),
        ({"w": entry(start=8, stop=0)}, "'w' has the data_offsets [8, 0]"),
        ({"w": entry(start=2**63 - 9, stop=2**63 - 1)}, "'w' starts at byte"),
        ({"w": entry(), "v": entry()}, "overlaps"),
        ({"w": entry(), "v": entry(start=4, stop=12)}, "'v' starts at byte"),
        ({"w": entry(start=4, stop=12)}, "leaves a hole"),
        ({"w": entry(), "v": entry(start=12, stop=20)}, "leaves a hole"),
        ({"w": entry(), "v": entry("U8", (0,), 4, 4)}, "overlaps"),
        ({"w": entry("F32", (1,), 0, 4)}, "bytes, expected"),
        ({}, "bytes, expected"),
        ({"w": entry("F32", (4,), 0, 16)}, "bytes, expected"),
    ],
    ids=shown,
)
def test_headers_that_do_not_hold(tmp_path, header, words):
    path = raw(tmp_path / "t.safetensors", header, b"\0" * 8)
    refused(path, words, "not a whole safetensors file")


def test_a_header_that_holds(tmp_path):
    header = {"__metadata__": {"a": "b"}, "e": entry("U8", (0,), 8, 8), "w": {**entry(), "more": 1}}
    file = open_tensors(raw(tmp_path / "t.safetensors", header, b"\0\0\x80?\0\0\0@"))  # 1.0, 2.0
    assert file.metadata == {"a": "b"}
    assert file.take("w").tolist() == [1.0, 2.0]
    assert file.take("e").shape == (0,)
    file = open_tensors(raw(tmp_path / "deep.safetensors", {"w": entry(shape=[1] * 63 + [2])}, b"\0" * 8))
    assert file.take("w").clone().ndim == 64


def test_an_unknown_dtype_names_the_key_and_the_dtypes(tmp_path):
    refused(raw(tmp_path / "t.safetensors", {"w": entry("F4")}, b"\0" * 8), "'w' has the unknown dtype 'F4'", "BF16")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "empty"),
        (b"\2\0\0", "it has 3 bytes, and 10 for the header alone"),
        (b"\2\0\0\0\0\0\0\0{", "it has 9 bytes, and 10 for the header alone"),
        ((2**60).to_bytes(8, "little") + b"{}", f"its header would have {2**60} bytes"),
        ((2**64 - 1).to_bytes(8, "little") + b"{}", f"its header would have {2**64 - 1} bytes"),
        ((100_000_001).to_bytes(8, "little") + b"{}", "its header would have 100000001 bytes"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n", "git lfs pull"),
        (b"<!DOCTYPE html>\n<html>Entry not found</html>", "HTML"),
        (b"\xef\xbb\xbf\r\n <html>", "HTML"),
        (b"PK\x03\x04\0\0\x08\x08\0\0", "torch.save"),
    ],
    ids=shown,
)
def test_files_that_are_something_else(tmp_path, content, words):
    (tmp_path / "t.safetensors").write_bytes(content)
    refused(tmp_path / "t.safetensors", words)


def test_a_pickle_of_torch(tmp_path):
    torch.save({"w": torch.zeros(2)}, tmp_path / "t.safetensors")
    refused(tmp_path / "t.safetensors", "torch.save")


def test_a_sparse_giant_is_not_read(tmp_path):
    with (tmp_path / "t.safetensors").open("wb") as file:  # as long as its header claims, but too long to be one
        file.write((2**31).to_bytes(8, "little"))
        file.truncate(2**31 + 8)
    refused(tmp_path / "t.safetensors", "its header would have")


def test_paths_that_are_not_there(tmp_path):
    for name in ("absent.safetensors", "absent.safetensors.index.json"):
        with pytest.raises(FileNotFoundError, match=name):
            open_tensors(tmp_path / name)


@pytest.mark.parametrize("keep", [*range(0, 200, 7), -1])
def test_a_file_cut_short_anywhere(tmp_path, keep):
    path = tmp_path / "t.safetensors"
    write_tensors(path, {"w": torch.ones(30), "b": torch.ones(3)}, {"format": "pt"})
    path.write_bytes(path.read_bytes()[:keep])
    refused(path, "not a whole safetensors file")


def opens(path):
    """The file's tensors, or None where it was refused in one line; anything else is a failure."""
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
    found = {key: file.take(key).clone() for key in file.shapes}
    for key in found:
        file.release(key)
    assert {key: (tuple(value.shape), value.dtype) for key, value in found.items()} == {
        key: (file.shapes[key], file.dtypes[key]) for key in file.shapes
    }
    return found


@functools.cache
def whole():
    text = json.dumps({"__metadata__": {"a": "b"}, "w": entry(), "v": entry("U8", (3, 1), 8, 11)}).encode()
    return len(text).to_bytes(8, "little") + text + bytes(range(11))


@settings(max_examples=400)
@given(st.data())
def test_any_bytes_are_a_file_or_are_refused(folder, data):
    start = data.draw(st.integers(0, len(whole())))
    stop = data.draw(st.integers(start, min(start + 4, len(whole()))))
    piece = data.draw(st.binary(max_size=4) | st.sampled_from([b"9" * 30, b"{", b"]", b'"', b"\0", b"-", b"1e9"]))
    path = folder / "bytes.safetensors"
    path.write_bytes(whole()[:start] + piece + whole()[stop:])
    found = opens(path)
    if found is not None:  # the library is no stricter
        assert_equal(load_file(path), found)


JUNK = [None, True, -1, 0, 1, 3, 8, 2**20, 2**63, 2**64, 10**30, 1.5, float("inf"), "", "F32", "x\ny", [], {}]
junk = st.sampled_from(JUNK) | st.lists(st.sampled_from(JUNK), max_size=3)


@settings(max_examples=400)
@given(
    st.lists(st.tuples(st.sampled_from(KNOWN_TO_ALL), st.lists(st.integers(0, 4), max_size=3)), max_size=4),
    st.lists(
        st.tuples(st.integers(0, 3), st.sampled_from(["dtype", "shape", "data_offsets", "x", ""]), junk), max_size=2
    ),
    st.sampled_from([0, 0, 0, -1, 1]),
)
@example([("F32", [2]), ("U8", [3])], [], 0)
def test_any_header_is_a_file_or_is_refused(folder, kinds, changes, more):
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
    found = opens(path)
    if not changes and not more:
        assert found is not None
    if found is not None:
        assert_equal(load_file(path), found)
        return
    try:  # and hardly more lenient
        theirs = load_file(path)
    except (SafetensorError, ValueError, TypeError, RuntimeError, OverflowError):
        return
    raise AssertionError(f"the library reads it: {theirs}")


# Sharded


@pytest.fixture
def sharded(tmp_path):
    """Two files and their index."""
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


def test_shards_are_one(sharded):
    path, values = sharded
    file = open_tensors(path)
    assert file.path == path
    assert file.metadata == {"total_size": "318", "by": "me", "tied": "true"}
    assert file.shapes == {key: tuple(value.shape) for key, value in values.items()}
    assert file.dtypes == {key: value.dtype for key, value in values.items()}
    assert_equal({key: file.take(key) for key in values}, values)
    assert_equal(read_tensors(path)[0], values)
    for key in values:
        file.release(key)
    assert_equal({key: file.take(key) for key in values}, values)


def test_shards_that_are_links(sharded, tmp_path):
    """The Hub's cache is made of links that lead out of the directory."""
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
def test_shard_names_that_are_none(sharded, name):
    path, _ = sharded
    (path.parent.parent / "model-2-of-2.safetensors").write_bytes(
        (path.parent / "model-2-of-2.safetensors").read_bytes()
    )
    remap(path, c=name, e=name)
    refused(path, "expected the name of a .safetensors file beside it")
    (path.parent.parent / "model-2-of-2.safetensors").unlink()


def test_shards_that_do_not_fit(sharded):
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


def test_shards_that_are_missing_or_damaged(sharded):
    path, _ = sharded
    shard = path.parent / "model-2-of-2.safetensors"
    data = shard.read_bytes()
    shard.unlink()
    refused(path, shard.name, "No such file")
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
        (b"", "no JSON"),
        (b"{", "no JSON"),
        (b"[]", "a JSON list"),
        (b"[" * 100_000, "not an index"),
        (b"{}", "no weight_map"),
        (b'{"weight_map": []}', "no weight_map"),
        (b'{"weight_map": {}, "metadata": 1}', "not an index"),
        (b'{"weight_map": {"a": "1.safetensors", "a": "2.safetensors"}}', "'a' is there twice"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        (b"<!doctype html>", "HTML"),
    ],
    ids=shown,
)
def test_indexes_that_are_none(tmp_path, content, words):
    path = tmp_path / "model.safetensors.index.json"
    path.write_bytes(content)
    refused(path, words, "not an index of safetensors files")


# What it costs: the rise of the memory in use, in units of the weights, each measured in a process of its own


MEASURE = """
import json, os, sys
from pathlib import Path
import torch
from miniclip.checkpoints.formats.safetensors import open_tensors, read_tensors, write_tensors

path = Path(sys.argv[1])
torch.set_num_threads(1)


def status(field):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def touch(path):
    file = open_tensors(path)
    return file, [file.take(key).sum() for key in file.shapes]


def convert(path, release=True):
    file, found = open_tensors(path), {}
    for key in file.shapes:
        found[key] = file.take(key).to(torch.bfloat16)
        if release:
            file.release(key)
    return found


def train(path):
    file = open_tensors(path)
    return file, [file.take(key).add_(1.0) for key in file.shapes]


def write(path, tensors):
    write_tensors(path.with_name("written.safetensors"), tensors)


def measure(name, work, prepare=lambda path: path, scale=1):
    if os.fork():  # a fork starts a new account of the peak
        assert os.wait()[1] == 0
        return
    given = prepare(path)
    work(*[path] * (work is write), prepare(path.with_name("small.safetensors")))  # whatever the first call loads
    size = path.stat().st_size * scale
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # the peak starts here, after what preparing took
    before = {field: status(field) for field in ("VmRSS", "RssAnon")}
    kept = work(*[path] * (work is write), given)
    after = {"peak": status("VmHWM") - before["VmRSS"], "anonymous": status("RssAnon") - before["RssAnon"]}
    print(json.dumps({name: {key: value / size for key, value in after.items()}}), flush=True)
    os._exit(0)


measure("touched", touch)
measure("converted", convert, scale=0.5)
measure("converted and kept", lambda path: convert(path, release=False), scale=0.5)
measure("read", read_tensors)
measure("trained", train)
measure("written", write, prepare=lambda path: read_tensors(path)[0])
measure("turned and written", write, prepare=lambda path: {key: v.T for key, v in read_tensors(path)[0].items()})
"""


@pytest.fixture(scope="module")
def costs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("costs")
    weight, bias = torch.ones(512, 1024), torch.ones(7, 1)
    weights = {f"{i}.weight": weight for i in range(64)}  # 128 MiB, and one tensor is a 64th of them
    write_tensors(folder / "big.safetensors", weights | {f"{i}.bias": bias for i in range(64)})
    write_tensors(folder / "small.safetensors", {"weight": weight, "bias": bias})
    command = [sys.executable, "-c", MEASURE, str(folder / "big.safetensors")]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    for file in folder.iterdir():  # pytest would keep them for three runs
        file.unlink()
    assert run.returncode == 0, run.stderr
    return functools.reduce(dict.__or__, map(json.loads, run.stdout.splitlines()))


@linux
def test_opening_and_touching_all_costs_the_file_once_and_no_memory_of_its_own(costs):
    assert 0.95 < costs["touched"]["peak"] < 1.05
    assert costs["touched"]["anonymous"] < 0.02


@linux
def test_converting_with_release_costs_the_result_once(costs):
    assert 0.95 < costs["converted"]["peak"] < 1.15
    assert costs["converted and kept"]["peak"] > 2.5  # the file of twice the size stays beside it


@linux
def test_reading_costs_the_weights_once(costs):
    assert 0.95 < costs["read"]["peak"] < 1.1
    assert 0.95 < costs["read"]["anonymous"] < 1.05


@linux
def test_training_in_place_costs_the_weights_once(costs):
    assert 0.95 < costs["trained"]["peak"] < 1.05
    assert 0.95 < costs["trained"]["anonymous"] < 1.05


@linux
def test_writing_costs_nothing_or_one_tensor_at_a_time(costs):
    assert costs["written"]["peak"] < 0.02
    assert costs["turned and written"]["peak"] < 0.2  # the allocator may leave holes


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64, torch.bool])
def test_a_tensor_read_to_its_place(tmp_path, dtype):
    tensors = {
        "a": torch.arange(6).view(2, 3).to(dtype),
        "b": torch.tensor(1).to(dtype),
        "c": torch.empty(0, 4).to(dtype),
    }
    write_tensors(tmp_path / "t.safetensors", tensors)
    file = open_tensors(tmp_path / "t.safetensors")
    out = torch.zeros(9, dtype=dtype)
    for key, part in zip(tensors, torch.split(out, [6, 1, 2]), strict=True):
        file.copy_into(key, part if key != "c" else part[:0])
    assert torch.equal(out[:6], tensors["a"].flatten())
    assert torch.equal(out[6], tensors["b"])
    assert not out[7:].any()


def test_a_file_that_became_shorter_is_said(tmp_path):
    path = tmp_path / "t.safetensors"
    write_tensors(path, {"a": torch.arange(64.0)})
    file = open_tensors(path)
    with path.open("r+b") as short:
        short.truncate(path.stat().st_size - 8)
    with pytest.raises(CheckpointError, match=r"t\.safetensors: the file was cut short"):
        file.copy_into("a", torch.empty(64))
