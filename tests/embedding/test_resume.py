"""Interrupted embeddings resume and give the files of an undisturbed run; another model or source is refused."""

import json
import os
import random
import shutil
import signal
import sys

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import miniclip
from miniclip import cli
from miniclip.data import Shapes
from miniclip.data.subset import Subset
from miniclip.embedding import partial as partial_module
from miniclip.embedding import parts, writing
from miniclip.errors import DataError, UnreadableError


class Stopped(Exception):
    """Stands for a kill: nothing catches it."""


class MadeImages:
    """Dataset whose images are made by the user's own class, each of one grey level; None cannot be read."""

    def __init__(self, levels):
        self.levels, self.captions = levels, [["a shape"]] * len(levels)

    def __len__(self):
        return len(self.levels)

    def __getitem__(self, index):
        if self.levels[index] is None:
            raise DataError("cannot be read")
        return Image.new("RGB", (16, 16), (self.levels[index],) * 3), self.captions[index]


def stop_after(monkeypatch, batches):
    """Let the model fail after some batches."""
    count, real = 0, parts.embed_batch

    def stopping(*arguments):
        nonlocal count
        count += 1
        if count > batches:
            raise Stopped
        return real(*arguments)

    monkeypatch.setattr(parts, "embed_batch", stopping)


def interrupt(batches, *arguments, **options):
    """Begin a run that stops after some batches."""
    with pytest.MonkeyPatch.context() as patch:
        stop_after(patch, batches)
        with pytest.raises(Stopped):
            miniclip.embed(*arguments, **options)


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


@pytest.fixture
def undisturbed(toy, photos, tmp_path):
    miniclip.embed(toy, photos, tmp_path / "whole" / "out.npy", batch_size=4)
    return contents(tmp_path / "whole")


@pytest.mark.parametrize("suffix", [".npy", ".parquet", ".safetensors"])
def test_resumed_files_are_the_same(toy, photos, tmp_path, monkeypatch, small_chunks, suffix):
    miniclip.embed(toy, photos, tmp_path / "whole" / f"out{suffix}", batch_size=4)
    out = tmp_path / "parts" / f"out{suffix}"
    for batches in (0, 2, 3):
        interrupt(batches, toy, photos, out, batch_size=4)
        assert not out.exists()
    assert len((out.parent / f"out{suffix}.partial" / "journal.jsonl").read_text().splitlines()) == 5
    stop_after(monkeypatch, 3)  # 5 of the 8 batches are not computed again
    miniclip.embed(toy, photos, out, batch_size=4)
    assert {path.name for path in out.parent.iterdir()} == {path.name for path in (tmp_path / "whole").iterdir()}
    if suffix == ".safetensors":  # the order of its metadata is random
        tensors = [load_file(folder / out.name)["embeddings"] for folder in (out.parent, tmp_path / "whole")]
        assert torch.equal(*tensors)
    else:
        assert contents(out.parent) == contents(tmp_path / "whole")


@pytest.mark.parametrize("write", range(12))
def test_stopped_at_any_write(toy, photos, tmp_path, monkeypatch, small_chunks, undisturbed, write):
    """A run stops within the write of vectors, of names or of a line of the journal, and leaves a part of it."""
    out, number, real = tmp_path / "parts" / "out.npy", 0, partial_module.Partial._append

    def torn(self, name, content):
        nonlocal number
        number += 1
        if number > write:
            real(self, name, content[: random.Random(write).randrange(len(content))])
            raise Stopped
        real(self, name, content)

    with monkeypatch.context() as patch:
        patch.setattr(partial_module.Partial, "_append", torn)
        with pytest.raises(Stopped):
            miniclip.embed(toy, photos, out, batch_size=4)
    miniclip.embed(toy, photos, out, batch_size=4)
    assert contents(out.parent) == undisturbed


@pytest.mark.parametrize("name", ["vectors", "names.jsonl", "journal.jsonl"])
def test_damaged_parts_are_computed_again(toy, photos, tmp_path, small_chunks, undisturbed, name):
    out = tmp_path / "parts" / "out.npy"
    interrupt(5, toy, photos, out, batch_size=4)
    file = out.with_name("out.npy.partial") / name
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    miniclip.embed(toy, photos, out, batch_size=4)
    assert contents(out.parent) == undisturbed


def test_texts_resume(toy, tmp_path, monkeypatch, small_chunks):
    (tmp_path / "t.txt").write_text("".join(f"text {number}\n" for number in range(20)))
    miniclip.embed(toy, f"{tmp_path}/t.txt", tmp_path / "whole" / "out.npy")
    count, real = 0, parts.embed_texts

    def stopping(model, tokenizer, texts, batch_size):
        nonlocal count
        count += 1
        if count == 5:
            raise Stopped
        return real(model, tokenizer, texts, batch_size)

    monkeypatch.setattr(parts, "embed_texts", stopping)
    with pytest.raises(Stopped):
        miniclip.embed(toy, f"{tmp_path}/t.txt", tmp_path / "parts" / "out.npy")
    miniclip.embed(toy, f"{tmp_path}/t.txt", tmp_path / "parts" / "out.npy")
    assert count == 5 + 3
    assert contents(tmp_path / "parts") == contents(tmp_path / "whole")


def test_unreadable_image_keeps_the_work_before_it(toy, photos, tmp_path, monkeypatch):
    shutil.copytree(photos, tmp_path / "photos")
    bad = tmp_path / "photos" / "19.png"
    good = bad.read_bytes()
    bad.write_text("no image")
    with pytest.raises(UnreadableError, match=r"19\.png"):
        miniclip.embed(toy, tmp_path / "photos", tmp_path / "out.npy", batch_size=4)
    bad.write_bytes(good)
    stop_after(monkeypatch, 5)  # 3 of 8 batches are before it
    assert miniclip.embed(toy, tmp_path / "photos", tmp_path / "out.npy", batch_size=4).count == 30


def test_skipped_images_stay_skipped(toy, photos, tmp_path, small_chunks):
    shutil.copytree(photos, tmp_path / "photos")
    (tmp_path / "photos" / "01.png").write_text("no image")
    options = {"batch_size": 4, "on_error": "skip"}
    with pytest.warns(UserWarning, match=r"01\.png"):
        interrupt(3, toy, tmp_path / "photos", tmp_path / "out.npy", **options)
    with pytest.warns(UserWarning, match=r"01\.png"):
        written = miniclip.embed(toy, tmp_path / "photos", tmp_path / "out.npy", **options)
    assert written.skipped.keys() == {"01.png"}
    assert written.count == 29


class TestChanges:
    """Every change of the model, the source or an option is refused, and `overwrite` starts over."""

    @pytest.fixture
    def begun(self, toy, photos, tmp_path, small_chunks):
        shutil.copytree(photos, tmp_path / "photos")
        interrupt(3, toy, tmp_path / "photos", tmp_path / "out.npy", batch_size=4)
        return tmp_path / "photos"

    def refused(self, model, photos, words, **options):
        out = photos.parent / "out.npy"
        with pytest.raises(ValueError, match=f"{words}.*start over with overwrite"):
            miniclip.embed(model, photos, out, batch_size=4, **options)
        assert miniclip.embed(model, photos, out, batch_size=4, overwrite=True, **options).count in (29, 30, 31)

    def test_model(self, toy, begun):
        other = type(toy)(toy.config, toy.tokenizer)
        other.load_state_dict(toy.state_dict())
        with torch.no_grad():
            other.image.projection.weight[0, 0] += 1
        self.refused(other, begun, "begun with another model")

    @pytest.mark.parametrize(("name", "value"), [("dtype", "float16"), ("normalize", False)])
    def test_options(self, toy, begun, name, value):
        self.refused(toy, begun, f"begun with another {name}", **{name: value})

    def test_image_changed(self, toy, begun):
        shutil.copy(begun / "02.jpg", begun / "04.jpg")
        self.refused(toy, begun, "the source has changed since it was begun")

    def test_image_added(self, toy, begun):
        shutil.copy(begun / "02.jpg", begun / "00a.jpg")
        self.refused(toy, begun, "the source has changed since it was begun")

    def test_image_removed(self, toy, begun):
        (begun / "02.jpg").unlink()
        self.refused(toy, begun, "the source has changed since it was begun")

    def test_changes_after_the_finished_images_do_no_harm(self, toy, begun):
        shutil.copy(begun / "02.jpg", begun / "zz.jpg")
        assert miniclip.embed(toy, begun, begun.parent / "out.npy", batch_size=4).count == 31

    @pytest.mark.parametrize("changed", [0, 2])
    def test_first_and_last_image_without_a_file(self, toy, tmp_path, changed):
        with pytest.raises(UnreadableError, match="image 3"):
            miniclip.embed(toy, MadeImages([1, 2, 3, None]), tmp_path / "out.npy", batch_size=1)
        levels = [1, 2, 3, 4]
        assert miniclip.embed(toy, MadeImages(levels), tmp_path / "other.npy", batch_size=1).count == 4
        levels[changed] = 200
        with pytest.raises(ValueError, match=r"the source has changed since it was begun \(items 1 to 3\)"):
            miniclip.embed(toy, MadeImages(levels), tmp_path / "out.npy", batch_size=1)
        miniclip.embed(toy, MadeImages([1, 2, 3, 4]), tmp_path / "out.npy", batch_size=1)
        assert (tmp_path / "out.npy").read_bytes() == (tmp_path / "other.npy").read_bytes()

    def test_fewer_images_without_a_file(self, toy, tmp_path):
        with pytest.raises(UnreadableError, match="image 3"):
            miniclip.embed(toy, MadeImages([1, 2, 3, None]), tmp_path / "out.npy", batch_size=1)
        with pytest.raises(ValueError, match="the source has changed"):
            miniclip.embed(toy, MadeImages([1, 2]), tmp_path / "out.npy", batch_size=1)

    @pytest.mark.parametrize("other", [(1, [0, 1, 2]), (0, [0, 1, 3])])
    def test_part_of_another_dataset(self, toy, tmp_path, small_chunks, other):
        def part(seed, indices):
            return Subset(Shapes("val", 8, image_size=16, seed=seed), indices)

        interrupt(2, toy, part(0, [0, 1, 2]), tmp_path / "out.npy", batch_size=1)
        with pytest.raises(ValueError, match="begun with another source"):
            miniclip.embed(toy, part(*other), tmp_path / "out.npy", batch_size=1)
        assert miniclip.embed(toy, part(0, [0, 1, 2]), tmp_path / "out.npy", batch_size=1).count == 3

    def test_foreign_folder(self, toy, photos, tmp_path):
        (tmp_path / "out.npy.partial").mkdir()
        (tmp_path / "out.npy.partial" / "mine.txt").write_text("")
        with pytest.raises(FileExistsError, match=r"holds other files \(mine\.txt\)"):
            miniclip.embed(toy, photos, tmp_path / "out.npy", overwrite=True)


def arguments_of(folder):
    options = ["-o", folder / "out.npy", "--batch-size", 4, "--device", "cpu"]
    return list(map(str, ["embed", folder / "model", folder / "photos", *options]))


def stopped_command(folder):
    """Run the command in this process, which a signal to it ends at its fourth batch."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell ignores it in background jobs
    real, left, writing.CHUNK_ITEMS = parts.embed_batch, [3], 1

    def stopping(*arguments):
        left[0] -= 1
        if left[0] < 0:
            os.kill(os.getpid(), int((folder / "signal").read_text()))
        return real(*arguments)

    parts.embed_batch = stopping
    sys.exit(cli.main(arguments_of(folder)))


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_command_resumes(toy, photos, tmp_path, number, capsys, ranks):
    """The command is killed after its third batch, in a process of its own; the same command resumes."""
    miniclip.save(toy, tmp_path / "model")
    (tmp_path / "signal").write_text(str(int(number)))
    (tmp_path / "photos").symlink_to(photos)
    ((code, _, error),) = ranks(1, stopped_command, tmp_path, succeed=False)
    assert code in (130, -int(number)), error
    journal = tmp_path / "out.npy.partial" / "journal.jsonl"
    assert len([json.loads(line) for line in journal.read_text().splitlines()]) == 3
    assert cli.main(arguments_of(tmp_path)) == 0
    output = capsys.readouterr()
    assert "resuming after 12 images" in output.err
    assert output.out.startswith(f"{tmp_path / 'out.npy'}: 30 embeddings of 16 numbers, names in ")
    miniclip.embed(toy, photos, tmp_path / "whole" / "out.npy", batch_size=4)
    assert (tmp_path / "out.npy").read_bytes() == (tmp_path / "whole" / "out.npy").read_bytes()
