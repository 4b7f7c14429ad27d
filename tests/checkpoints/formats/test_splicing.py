"""Parts of a file mapped one after the other: their bytes, nothing of their neighbours', and no memory for them."""

import os
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from miniclip.checkpoints.formats import splicing
from miniclip.checkpoints.formats.safetensors import IN_PLACE, open_tensors
from miniclip.checkpoints.formats.splicing import PAGE, spliced

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere parts are copied")


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("parts") / "file"
    path.write_bytes(os.urandom(40 * PAGE + 123))
    with path.open("rb", buffering=0) as opened:
        yield opened


def content(file, spans):
    data = Path(file.name).read_bytes()
    return b"".join(data[start:stop] for start, stop in spans)


@settings(deadline=None, max_examples=60)
@given(
    st.integers(0, PAGE - 1), st.lists(st.tuples(st.integers(0, 30), st.integers(1, 3 * PAGE)), min_size=1, max_size=5)
)
def test_any_parts_that_meet_in_a_page(file, phase, parts):
    spans, place = [], phase
    for page, size in parts:
        start = page * PAGE + place % PAGE
        spans.append((start, start + size))
        place += size
    whole, begin = spliced(file, spans)
    assert whole[begin : begin + sum(size for _, size in parts)] == content(file, spans)


def test_up_to_the_last_byte_of_the_file(file):
    spans = [(4 * PAGE + 123, 5 * PAGE), (39 * PAGE, 40 * PAGE + 123)]
    whole, begin = spliced(file, spans)
    assert whole[begin:] == content(file, spans)


def test_parts_that_do_not_meet_and_systems_that_cannot(file, monkeypatch):
    assert spliced(file, [(0, PAGE), (PAGE + 1, 2 * PAGE)]) is None
    fine = [(0, PAGE), (3 * PAGE, 4 * PAGE)]
    assert spliced(file, fine) is not None
    monkeypatch.setattr(splicing, "_mmap", lambda: None)
    assert spliced(file, fine) is None
    monkeypatch.setattr(splicing, "_mmap", lambda: lambda *arguments: False)  # as where a process has too many maps
    assert spliced(file, fine) is None


def test_what_is_written_stays_in_the_process_and_no_file_is_needed(tmp_path):
    path = tmp_path / "file"
    data = os.urandom(4 * PAGE)
    path.write_bytes(data)
    with path.open("rb", buffering=0) as opened:
        whole, _ = spliced(opened, [(2 * PAGE, 3 * PAGE), (0, PAGE)])
    whole[0] = whole[0] ^ 1
    assert path.read_bytes() == data
    path.unlink()
    assert whole[PAGE:] == data[:PAGE]


def test_every_map_is_given_back(file):
    def maps():
        return sum(file.name in line for line in Path("/proc/self/maps").read_text().splitlines())

    before = maps()
    whole, begin = spliced(file, [(0, PAGE), (3 * PAGE, 4 * PAGE)])
    tensor = torch.frombuffer(whole, dtype=torch.uint8, offset=begin)
    del whole
    assert (maps(), int(tensor.sum())) == (before + 2, sum(content(file, [(0, PAGE), (3 * PAGE, 4 * PAGE)])))
    del tensor
    assert maps() == before


@pytest.mark.parametrize("between", [PAGE, PAGE // 2])
def test_tensors_joined(tmp_path, between):
    """As transformers' library sorts them: k, out, q, v, with their biases between."""
    values = {
        name: torch.randn(rows, 1024) for name, rows in (("k", 256), ("out", 256), ("q", 256), ("small", 1), ("v", 256))
    } | {"p": torch.randn(between // 4)}
    save_file(values, tmp_path / "t.safetensors")
    file = open_tensors(tmp_path / "t.safetensors")
    joined = file.take_joined(["q", "k"])
    assert values["q"].nbytes == IN_PLACE
    if between % PAGE:
        assert joined is None
        return
    assert joined is not None
    assert torch.equal(joined.view(512, 1024), torch.cat([values["q"], values["k"]]))
    assert file.take_joined(["q", "small"]) is None
    with pytest.raises(KeyError, match="absent"):
        file.take_joined(["q", "absent"])
