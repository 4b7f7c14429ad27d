"""Packing: the same pixels bit for bit, gone on with after any interruption, damage named, another model refused."""

import contextlib
import json
import pickle
import signal
import subprocess
import sys
import warnings

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import miniclip
from miniclip.cli import main
from miniclip.config import preset
from miniclip.data import CachedDataset, Captions, Shapes, pack
from miniclip.data.cache import writing as module
from miniclip.data.loader import ImageCaptionLoader
from miniclip.data.transforms import Preprocess
from miniclip.errors import DataError
from miniclip.tokenizer import Tokenizer

PREPROCESS = Preprocess(preset("bert_vit_tiny").replace_image(image_size=32))
SIZE = 3 * 32 * 32
COUNT = 150  # of three shards: 64, 64 and 22


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Pictures of several sizes and formats, in folders whose names are not plain."""
    folder = tmp_path_factory.mktemp("ein Ordner mit Bildern, 画像")
    shapes = Shapes("train", COUNT)
    for i in range(COUNT):
        sub = folder / ("a b" if i % 2 else "ü")
        sub.mkdir(exist_ok=True)
        picture = shapes[i][0].resize((40 + i % 7, 50 - i % 5))
        picture.save(sub / f"{i}.{'png' if i % 3 else 'jpg'}")
    return folder


@pytest.fixture
def data(folder):
    return make(folder)


def make(folder):
    paths = [folder / ("a b" if i % 2 else "ü") / f"{i}.{'png' if i % 3 else 'jpg'}" for i in range(COUNT)]
    return Captions(paths, [[f"the {i}th picture", "\ud800 half a character"][: 1 + i % 2] for i in range(COUNT)])


@pytest.fixture(autouse=True)
def _small_shards(monkeypatch):
    monkeypatch.setattr(module, "SHARD_BYTES", 64 * SIZE)


def packed_here(data, out, **options):
    return pack(data, out, PREPROCESS, **{"num_workers": 0, **options})


def content(out):
    return {str(path.relative_to(out)): path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file()}


def test_what_is_packed_is_what_the_pictures_are(data, tmp_path):
    packed = packed_here(data, tmp_path / "out")
    assert [shard["pictures"] for shard in packed.index["shards"]] == [64, 64, 22]
    assert len(packed) == COUNT
    assert packed.captions == data.captions
    expected = torch.stack([PREPROCESS.pixels(data[i][0]) for i in range(COUNT)])
    assert torch.equal(packed.pixels(range(COUNT)), expected)
    picture, captions = packed[-1]
    assert captions == data.captions[-1]
    assert torch.equal(PREPROCESS.pixels(picture), expected[-1])
    assert packed.name(1) == "a b/1.png"
    packed.verify()
    with pytest.raises(IndexError):
        packed[COUNT]


@given(st.lists(st.integers(0, COUNT - 1), max_size=20))
def test_pictures_in_any_order(folder, indices):
    out = folder.parent / "any order"
    packed = CachedDataset(out) if CachedDataset.is_packed(out) else packed_here(make(folder), out)
    each = [packed.pixels([i]) for i in indices]
    assert torch.equal(packed.pixels(indices), torch.cat(each) if each else torch.empty(0, 3, 32, 32))
    assert torch.equal(pickle.loads(pickle.dumps(packed)).pixels(indices), packed.pixels(indices))


def test_workers_change_no_byte(data, tmp_path):
    packed_here(data, tmp_path / "a")
    packed_here(data, tmp_path / "b", num_workers=2)
    assert content(tmp_path / "a") == content(tmp_path / "b")


class Interrupted(Captions):
    """Ends at a picture as Ctrl-C ends it, and counts what was opened."""

    at: int | None = None
    opened = 0

    def image(self, index, at_least=None):
        if index == self.at:
            raise KeyboardInterrupt
        self.opened += 1
        return super().image(index, at_least)


@pytest.mark.parametrize(("at", "kept"), [(0, 0), (63, 0), (64, 64), (140, 128)])
def test_interrupted_and_gone_on_with_is_the_same_to_the_byte(data, tmp_path, at, kept):
    packed_here(data, tmp_path / "whole")
    stopped = Interrupted(data.paths, data.captions)
    stopped.at = at
    with pytest.raises(KeyboardInterrupt):
        packed_here(stopped, tmp_path / "out")
    assert not [path for path in (tmp_path / "out").rglob(".*") if path.is_file()]  # no half of a file
    with pytest.raises((DataError, ValueError), match=r"not packed to its end|no split"):
        CachedDataset(tmp_path / "out")
    stopped.at, stopped.opened = None, 0
    packed_here(stopped, tmp_path / "out")
    assert stopped.opened == COUNT - kept
    assert content(tmp_path / "out") == content(tmp_path / "whole")


KILLED = """
import os, signal, sys
from miniclip.data import Shapes, packing
from miniclip.data.transforms import Preprocess
from miniclip.config import preset

packing.SHARD_BYTES = 1
class Killed(Shapes):
    def __getitem__(self, index):
        if index == 130:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__getitem__(index)
config = preset("bert_vit_tiny").replace_image(image_size=32)
packing.pack(Killed("train", 150), sys.argv[1], Preprocess(config), num_workers=0)
"""


def test_killed_and_gone_on_with(tmp_path):
    out = tmp_path / "out"
    ended = subprocess.run([sys.executable, "-c", KILLED, str(out)], capture_output=True, timeout=120)
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    noted = (out / "train" / "progress.jsonl").read_text()
    assert len(noted.splitlines()) == 3  # the set, and two shards
    (out / "train" / "progress.jsonl").write_text(noted + '{"file": "00002')  # as a power cut leaves it
    (out / "train" / "00000.bin").write_bytes(b"spoiled")
    data = Shapes("train", 150)
    packed_here(data, out)
    packed_here(data, tmp_path / "whole")
    assert content(out) == content(tmp_path / "whole")


@pytest.mark.parametrize("name", ["00001.bin", "captions.jsonl", "index.json", "../pack.json"])
@pytest.mark.parametrize("how", ["cut", "longer", "gone", "changed"])
def test_damage_is_named_and_mended(data, tmp_path, name, how):
    out = tmp_path / "out"
    packed_here(data, out)
    whole = content(out)
    file = out / "train" / name
    old = file.read_bytes()
    new = {"cut": old[:-7], "longer": old + b"\0", "changed": old[:100] + bytes([old[100] ^ 1]) + old[101:]}
    if how == "gone":
        file.unlink()
    else:
        file.write_bytes(new[how])
    with pytest.raises((DataError, ValueError)) as error:
        CachedDataset(out).verify()
    assert str(out) in str(error.value)
    assert "\n" not in str(error.value)
    if name != "index.json":
        assert file.name in str(error.value)
    packed_here(data, out)
    assert content(out) == whole


def test_a_folder_of_something_else_is_left_alone(data, tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    for out, word in ((tmp_path, "other files"), (tmp_path / "thesis.tex", "is a file")):
        with pytest.raises(ValueError, match=word):
            packed_here(data, out)
    with pytest.raises(ValueError, match="name of a folder"):
        packed_here(data, tmp_path / "out", split="../up")
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_other_pixels_and_other_pictures_are_refused(data, tmp_path):
    packed = packed_here(data, tmp_path / "out")
    before = content(tmp_path / "out")
    other = Preprocess(preset("bert_vit_tiny"))
    with pytest.raises(ValueError, match=r"packed otherwise \(size 32.*now size 64"):
        pack(data, tmp_path / "out", other, num_workers=0)
    with pytest.raises(ValueError, match="from other pictures or captions"):
        packed_here(Captions(data.paths[:9], data.captions[:9]), tmp_path / "out")
    assert content(tmp_path / "out") == before
    with pytest.raises(ValueError, match="another model: its pixels have size 32, not 64"):
        packed.require(other)
    with pytest.raises(ValueError, match="another model"):
        ImageCaptionLoader(packed, Tokenizer.train(["a picture"], 514), other, context_length=9, batch_size=2)
    model = miniclip.load("bert_vit_tiny", pretrained=False, tokenizer=Tokenizer.train(["a picture"], 514))
    with pytest.raises(ValueError, match="another model"):
        miniclip.evaluation.retrieval(model, packed)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_what_cannot_be_read_is_left_out_by_name(data, tmp_path, folder, num_workers):
    bad = tmp_path / "bad.jpg"
    bad.write_bytes(b"no picture")
    paths = [bad if i == 70 else path for i, path in enumerate(data.paths)]
    pairs = Captions(paths, data.captions)
    out = tmp_path / "out"
    with pytest.raises(DataError, match=r"bad\.jpg: cannot be read"):
        packed_here(pairs, out, num_workers=num_workers)
    with pytest.warns(UserWarning, match=r"bad\.jpg: cannot be read.*\(left out\)"):
        packed = packed_here(pairs, out, num_workers=num_workers, on_error="skip")
    assert len(packed) == COUNT - 1
    assert packed.captions == data.captions[:70] + data.captions[71:]
    rest = [i for i in range(COUNT) if i != 70]
    assert torch.equal(packed.pixels(range(COUNT - 1)), torch.stack([PREPROCESS.pixels(data[i][0]) for i in rest]))
    (reason,) = packed.skip_log.reasons.values()
    assert "no picture format" in reason
    bad.write_bytes(data.paths[70].read_bytes())  # mended by the user: packing again takes it in
    assert len(packed_here(pairs, out, num_workers=num_workers)) == COUNT


@contextlib.contextmanager
def quiet():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def test_too_many_bad_ones_end_it(data, tmp_path):
    for i in range(10):
        (tmp_path / f"{i}.jpg").write_bytes(b"")
    paths = [tmp_path / f"{i}.jpg" if i < 10 else path for i, path in enumerate(data.paths)]
    with quiet(), pytest.raises(DataError, match="10 of 150 cannot be used"):
        packed_here(Captions(paths, data.captions), tmp_path / "out", on_error="skip")


def test_token_ids_travel_with_the_captions(data, tmp_path):
    tokenizer = Tokenizer.train(["the 1st picture", "the 2nd picture"], 530)
    packed = packed_here(data, tmp_path / "out", tokenizer=tokenizer, context_length=20)
    flat = [caption for own in data.captions for caption in own]
    assert torch.equal(packed.tokens(tokenizer, 20, False).long(), tokenizer(flat, context_length=20))
    assert packed.tokens(tokenizer, 21, False) is None
    assert packed.tokens(tokenizer, 20, True) is None
    assert packed.tokens(Tokenizer.train(["others"], 530), 20, False) is None
    options = {"context_length": 20, "batch_size": 8}
    kept = ImageCaptionLoader(data, tokenizer, PREPROCESS, **options)
    quick = ImageCaptionLoader(packed, only_saved(tokenizer), PREPROCESS, **options)
    for one, other in zip(kept.epoch(1), quick.epoch(1), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
    quick.close()


def only_saved(tokenizer):
    """The tokenizer, which must not be asked to tokenize."""

    class Quiet:
        end_id, vocab_size, save = tokenizer.end_id, tokenizer.vocab_size, staticmethod(tokenizer.save)

    return Quiet()


def test_what_is_no_packed_set(tmp_path, data):
    assert not CachedDataset.is_packed(tmp_path)
    with pytest.raises(FileNotFoundError, match="no such folder"):
        CachedDataset(tmp_path / "absent")
    with pytest.raises(DataError, match=r"pack\.json: is missing"):
        CachedDataset(tmp_path)
    packed_here(data, tmp_path / "out")
    with pytest.raises(ValueError, match=r"no split 'val': .* has train"):
        CachedDataset(tmp_path / "out", "val")
    (tmp_path / "out" / "pack.json").write_text(json.dumps({"format": "miniclip pack 9"}))
    with pytest.raises(DataError, match="miniclip pack 9"):
        CachedDataset(tmp_path / "out")


def test_the_command(folder, tmp_path, capsys):
    rows = "".join(f"{path.relative_to(folder).as_posix()},a caption\n" for path in sorted(folder.rglob("*.*g")))
    table = folder / "captions.csv"
    table.write_text("image,caption\n" + rows, encoding="utf-8")
    out = tmp_path / "packed set"
    command = ["data", "pack", str(table), str(out), "--preset", "bert_vit_tiny", "--num-workers", "0"]
    try:
        assert main(command) == 0
        assert "pictures of 64 px" in capsys.readouterr().out
        assert main([*command[:-2], "--image-size", "32"]) == 2
        assert "packed otherwise" in capsys.readouterr().err
        assert main([*command, "--split", "nowhere"]) == 2
    finally:
        table.unlink()
    for split in ("train", "val", "test"):
        assert len(miniclip.data.open_data(out, split)) == len(CachedDataset(out, split))


def test_ctrl_c_of_the_command(folder, tmp_path, monkeypatch, capsys):
    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("miniclip.data.cache.writing.pack", stop)
    assert main(["data", "pack", "shapes", str(tmp_path / "out")]) == 130
    assert "the same command goes on" in capsys.readouterr().out
