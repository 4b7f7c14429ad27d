"""The cache: identical pixels, resumed after any interruption, damage named and repaired, other models refused."""

import contextlib
import io
import json
import os
import pickle
import signal
import warnings

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import miniclip
from miniclip.cli import main
from miniclip.config import preset
from miniclip.data import CachedDataset, CacheOptions, Captions, Shapes, build_cache
from miniclip.data.cache import writing as module
from miniclip.data.loader import ImageCaptionLoader
from miniclip.data.options import LoaderOptions
from miniclip.data.preprocess import Preprocess
from miniclip.errors import DataError
from miniclip.tokenizer import Tokenizer

PREPROCESS = Preprocess(preset("bert_vit_tiny").replace_image(image_size=32))
SIZE = 3 * 32 * 32
COUNT = 150  # three shards: 64, 64 and 22


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Images of several sizes and formats, in folders with spaces and non-ASCII names."""
    folder = tmp_path_factory.mktemp("ein Ordner mit Bildern, 画像")
    shapes = Shapes("train", COUNT)
    for i in range(COUNT):
        sub = folder / ("a b" if i % 2 else "ü")
        sub.mkdir(exist_ok=True)
        image = shapes[i][0].resize((40 + i % 7, 50 - i % 5))
        image.save(sub / f"{i}.{'png' if i % 3 else 'jpg'}")
    return folder


@pytest.fixture
def data(folder):
    return make(folder)


def make(folder):
    paths = [folder / ("a b" if i % 2 else "ü") / f"{i}.{'png' if i % 3 else 'jpg'}" for i in range(COUNT)]
    return Captions(paths, [[f"the {i}th image", "\ud800 half a character"][: 1 + i % 2] for i in range(COUNT)])


@pytest.fixture(autouse=True)
def _small_shards(monkeypatch):
    monkeypatch.setattr(module, "MAX_SHARD_BYTES", 64 * SIZE)


def build(data, out, split="train", **options):
    options = CacheOptions(**{"num_workers": 0, **options})
    return build_cache(data, out, PREPROCESS, split=split, options=options)


def content(out):
    return {str(path.relative_to(out)): path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file()}


def test_the_cache_holds_the_same_pixels(data, tmp_path):
    cached = build(data, tmp_path / "out")
    assert [shard["images"] for shard in cached.index["shards"]] == [64, 64, 22]
    assert len(cached) == COUNT
    assert cached.captions == data.captions
    expected = torch.stack([PREPROCESS.pixels(data[i][0]) for i in range(COUNT)])
    assert torch.equal(cached.pixels(range(COUNT)), expected)
    image, captions = cached[-1]
    assert captions == data.captions[-1]
    assert torch.equal(PREPROCESS.pixels(image), expected[-1])
    assert cached.name(1) == "a b/1.png"
    cached.verify()
    with pytest.raises(IndexError):
        cached[COUNT]


@given(st.lists(st.integers(0, COUNT - 1), max_size=20))
def test_images_in_any_order(folder, indices):
    out = folder.parent / "any order"
    cached = CachedDataset(out) if CachedDataset.is_cache(out) else build(make(folder), out)
    each = [cached.pixels([i]) for i in indices]
    assert torch.equal(cached.pixels(indices), torch.cat(each) if each else torch.empty(0, 3, 32, 32))
    assert torch.equal(pickle.loads(pickle.dumps(cached)).pixels(indices), cached.pixels(indices))


def test_any_number_of_workers_writes_the_same_bytes(data, tmp_path):
    build(data, tmp_path / "a")
    build(data, tmp_path / "b", num_workers=2)
    assert content(tmp_path / "a") == content(tmp_path / "b")


class Interrupted(Captions):
    """Raises KeyboardInterrupt at an image, and counts the images opened."""

    stop: int | None = None
    opened = 0

    def image(self, index, at_least=None):
        if index == self.stop:
            raise KeyboardInterrupt
        self.opened += 1
        return super().image(index, at_least)


@pytest.mark.parametrize(("stop", "kept"), [(0, 0), (63, 0), (64, 64), (140, 128)])
def test_a_resumed_build_writes_the_same_bytes(data, tmp_path, stop, kept):
    build(data, tmp_path / "whole")
    interrupted = Interrupted(data.paths, data.captions)
    interrupted.stop = stop
    with pytest.raises(KeyboardInterrupt):
        build(interrupted, tmp_path / "out")
    assert not [path for path in (tmp_path / "out").rglob(".*") if path.is_file()]  # no partial file
    with pytest.raises((DataError, ValueError), match=r"is incomplete|no split"):
        CachedDataset(tmp_path / "out")
    interrupted.stop, interrupted.opened = None, 0
    build(interrupted, tmp_path / "out")
    assert interrupted.opened == COUNT - kept
    assert content(tmp_path / "out") == content(tmp_path / "whole")


class Killed(Shapes):
    """Dataset whose image in the third shard kills the process."""

    def __getitem__(self, index):
        if index == 130:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__getitem__(index)


def killed_build(folder):
    module.MAX_SHARD_BYTES = 1
    build_cache(Killed("train", COUNT), folder / "out", PREPROCESS, options=CacheOptions(num_workers=0))


def test_a_killed_build_is_resumed(ranks, tmp_path):
    out = tmp_path / "out"
    ((code, _, error),) = ranks(1, killed_build, tmp_path, succeed=False)
    assert code == -signal.SIGKILL, error
    journal = (out / "train" / "progress.jsonl").read_text()
    assert len(journal.splitlines()) == 3  # the source, and two shards
    (out / "train" / "progress.jsonl").write_text(journal + '{"file": "00002')  # cut by a power failure
    (out / "train" / "00000.bin").write_bytes(b"spoiled")
    data = Shapes("train", 150)
    build(data, out)
    build(data, tmp_path / "whole")
    assert content(out) == content(tmp_path / "whole")


@pytest.mark.parametrize("name", ["00001.bin", "captions.jsonl", "index.json", "../cache.json"])
@pytest.mark.parametrize("damage", ["cut", "longer", "missing", "changed"])
def test_damage_is_named_and_repaired(data, tmp_path, name, damage):
    out = tmp_path / "out"
    build(data, out)
    whole = content(out)
    file = out / "train" / name
    old = file.read_bytes()
    new = {"cut": old[:-7], "longer": old + b"\0", "changed": old[:100] + bytes([old[100] ^ 1]) + old[101:]}
    if damage == "missing":
        file.unlink()
    else:
        file.write_bytes(new[damage])
    with pytest.raises((DataError, ValueError)) as error:
        CachedDataset(out).verify()
    assert str(out) in str(error.value)
    assert "\n" not in str(error.value)
    if name != "index.json":
        assert file.name in str(error.value)
    build(data, out)
    assert content(out) == whole


def test_a_folder_with_other_files_is_left_alone(data, tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    for out, message in ((tmp_path, "other files"), (tmp_path / "thesis.tex", "is a file")):
        with pytest.raises(ValueError, match=message):
            build(data, out)
    with pytest.raises(ValueError, match="name of a folder"):
        build(data, tmp_path / "out", split="../up")
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_other_settings_and_other_data_are_refused(data, tmp_path):
    cached = build(data, tmp_path / "out")
    before = content(tmp_path / "out")
    other = Preprocess(preset("bert_vit_tiny"))
    with pytest.raises(ValueError, match=r"other settings \(size 32.*now size 64"):
        build_cache(data, tmp_path / "out", other, options=CacheOptions(num_workers=0))
    with pytest.raises(ValueError, match="from other images or captions"):
        build(Captions(data.paths[:9], data.captions[:9]), tmp_path / "out")
    assert content(tmp_path / "out") == before
    with pytest.raises(ValueError, match="another model: its pixels have size 32, not 64"):
        cached.require(other)
    with pytest.raises(ValueError, match="another model"):
        ImageCaptionLoader(cached, Tokenizer.train(["an image"], 514), other, LoaderOptions(2, 9))
    model = miniclip.load("bert_vit_tiny", pretrained=False, tokenizer=Tokenizer.train(["an image"], 514))
    with pytest.raises(ValueError, match="another model"):
        miniclip.evaluation.retrieval(model, cached)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_unreadable_images_are_skipped_by_name(data, tmp_path, folder, num_workers):
    bad = tmp_path / "bad.jpg"
    bad.write_bytes(b"not an image")
    paths = [bad if i == 70 else path for i, path in enumerate(data.paths)]
    captions = Captions(paths, data.captions)
    out = tmp_path / "out"
    with pytest.raises(DataError, match=r"bad\.jpg: cannot be read"):
        build(captions, out, num_workers=num_workers)
    with pytest.warns(UserWarning, match=r"bad\.jpg: cannot be read.*\(skipped\)"):
        cached = build(captions, out, num_workers=num_workers, on_error="skip")
    assert len(cached) == COUNT - 1
    assert cached.captions == data.captions[:70] + data.captions[71:]
    readable = [i for i in range(COUNT) if i != 70]
    assert torch.equal(cached.pixels(range(COUNT - 1)), torch.stack([PREPROCESS.pixels(data[i][0]) for i in readable]))
    (reason,) = cached.skip_log.reasons.values()
    assert "no image format" in reason
    bad.write_bytes(data.paths[70].read_bytes())  # the next build includes the repaired file
    assert len(build(captions, out, num_workers=num_workers)) == COUNT


@contextlib.contextmanager
def no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def test_more_than_max_skip_fraction_is_an_error(data, tmp_path):
    for i in range(10):
        (tmp_path / f"{i}.jpg").write_bytes(b"")
    paths = [tmp_path / f"{i}.jpg" if i < 10 else path for i, path in enumerate(data.paths)]
    with no_warnings(), pytest.raises(DataError, match="10 of 150 cannot be used"):
        build(Captions(paths, data.captions), tmp_path / "out", on_error="skip")


def test_token_ids_are_stored_with_the_captions(data, tmp_path):
    tokenizer = Tokenizer.train(["the 1st image", "the 2nd image"], 530)
    cached = build(data, tmp_path / "out", tokenizer=tokenizer, context_length=20)
    flat = [caption for captions in data.captions for caption in captions]
    assert torch.equal(cached.tokens(tokenizer, 20, False).long(), tokenizer(flat, context_length=20))
    assert cached.tokens(tokenizer, 21, False) is None
    assert cached.tokens(tokenizer, 20, True) is None
    assert cached.tokens(Tokenizer.train(["others"], 530), 20, False) is None
    options = LoaderOptions(8, 20)
    from_files = ImageCaptionLoader(data, tokenizer, PREPROCESS, options)
    from_cache = ImageCaptionLoader(cached, only_saved(tokenizer), PREPROCESS, options)
    for batch, other in zip(from_files.epoch(1), from_cache.epoch(1), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(batch, other, strict=True))
    from_cache.close()


def only_saved(tokenizer):
    """A tokenizer that can be saved, and fails to tokenize."""

    class OnlySaved:
        end_id, vocab_size, save = tokenizer.end_id, tokenizer.vocab_size, staticmethod(tokenizer.save)

    return OnlySaved()


def test_folders_that_are_not_a_cache_are_refused(tmp_path, data):
    assert not CachedDataset.is_cache(tmp_path)
    with pytest.raises(FileNotFoundError, match="no such folder"):
        CachedDataset(tmp_path / "absent")
    with pytest.raises(DataError, match=r"cache\.json: is missing"):
        CachedDataset(tmp_path)
    build(data, tmp_path / "out")
    with pytest.raises(ValueError, match=r"no split 'val': .* has train"):
        CachedDataset(tmp_path / "out", "val")
    (tmp_path / "out" / "cache.json").write_text(json.dumps({"format": "miniclip cache 9"}))
    with pytest.raises(DataError, match="miniclip cache 9"):
        CachedDataset(tmp_path / "out")


def test_the_command_builds_all_splits(folder, tmp_path, capsys):
    rows = "".join(f"{path.relative_to(folder).as_posix()},a caption\n" for path in sorted(folder.rglob("*.*g")))
    table = folder / "captions.csv"
    table.write_text("image,caption\n" + rows, encoding="utf-8")
    out = tmp_path / "a cache"
    command = ["data", "cache", str(table), str(out), "--preset", "bert_vit_tiny", "--num-workers", "0"]
    try:
        assert main(command) == 0
        assert "images of 64 px" in capsys.readouterr().out
        assert main([*command[:-2], "--image-size", "32"]) == 2
        assert "other settings" in capsys.readouterr().err
        assert main([*command, "--split", "nowhere"]) == 2
    finally:
        table.unlink()
    for split in ("train", "val", "test"):
        assert len(miniclip.data.open_data(out, split)) == len(CachedDataset(out, split))


def test_a_fourth_split_is_cached_too(tmp_path, capsys):
    splits = ["train", "train", "val", "extra"]  # and no test
    for number in range(len(splits)):
        Image.new("RGB", (8, 8), (number, 0, 0)).save(tmp_path / f"{number}.png")
    rows = [f"{number}.png,a caption,{split}" for number, split in enumerate(splits)]
    (tmp_path / "table.csv").write_text("\n".join(["image,caption,split", *rows]), encoding="utf-8")
    again, options = tmp_path / "again", ["--preset", "bert_vit_tiny", "--num-workers", "0"]
    assert main(["data", "cache", str(tmp_path / "table.csv"), str(tmp_path / "out"), *options]) == 0
    assert main(["data", "cache", str(tmp_path / "out"), str(again), *options]) == 0
    assert [len(CachedDataset(again, split)) for split in ("train", "val", "extra")] == [2, 1, 1]
    assert sorted(path.name for path in again.iterdir() if path.is_dir()) == ["extra", "train", "val"]


def test_ctrl_c_ends_the_command_and_advises_to_resume(folder, tmp_path, monkeypatch, capsys):
    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("miniclip.data.cache.writing.build_cache", stop)
    assert main(["data", "cache", "shapes", str(tmp_path / "out")]) == 130
    assert "the same command resumes" in capsys.readouterr().out


class StoredColor:
    """Stored image that has only a row number for a name."""

    def __init__(self, row: int, value: int) -> None:
        self.row, self.value = row, value

    def __str__(self) -> str:
        return f"row {self.row}"

    def read(self) -> bytes:
        file = io.BytesIO()
        Image.new("RGB", (8, 8), (self.value,) * 3).save(file, "PNG")
        return file.getvalue()


@pytest.mark.parametrize("part", [False, True], ids=["whole", "part"])
def test_other_images_of_the_same_names_and_captions_raise(tmp_path, part):
    first, second = (
        Captions([StoredColor(row, value) for row in range(40)], [["a cat"], ["a dog"]] * 20) for value in (10, 200)
    )
    if part:
        first, second = (torch.utils.data.Subset(data, range(30)) for data in (first, second))
    build_cache(first, tmp_path, PREPROCESS)
    assert build_cache(first, tmp_path, PREPROCESS)[7][0].getpixel((0, 0)) == (10, 10, 10)
    with pytest.raises(ValueError, match="built from other images or captions"):
        build_cache(second, tmp_path, PREPROCESS)


def test_shards_of_replaced_images_are_built_again(tmp_path):
    paths = [tmp_path / f"{i}.png" for i in range(COUNT)]
    for path in paths:
        Image.new("RGB", (32, 32), "red").save(path)
    data = Captions(paths, [["an image"]] * COUNT)
    build(data, tmp_path / "out")
    kept = (tmp_path / "out" / "train" / "00000.bin").stat().st_mtime_ns
    Image.new("RGB", (32, 32), "lime").save(paths[70])  # in the second shard
    time = (tmp_path / "out").stat().st_mtime + 10
    os.utime(paths[70], (time, time))
    cache = build(data, tmp_path / "out")
    cache.verify()
    assert [cache[i][0].getpixel((0, 0))[1] for i in (69, 70, 71)] == [0, 255, 0]
    assert (tmp_path / "out" / "train" / "00000.bin").stat().st_mtime_ns == kept


class OneColor:
    """Dataset that makes its images itself."""

    captions = [["an image"]] * 8

    def __init__(self, color):
        self.color = color

    def __len__(self):
        return 8

    def __getitem__(self, index):
        return Image.new("RGB", (32, 32), self.color), self.captions[index]


def test_other_images_of_a_dataset_that_makes_them_raise(tmp_path):
    build(OneColor("red"), tmp_path)
    build(OneColor("red"), tmp_path)
    with pytest.raises(ValueError, match="built from other images or captions"):
        build(OneColor("lime"), tmp_path)
