"""Damaged and hostile caches: one DataError that names the file, before anything wrong is trained on."""

import hashlib
import json
import os
import shutil

import pytest
import torch

from miniclip.config import preset
from miniclip.data import CachedDataset, CacheOptions, Shapes, build_cache
from miniclip.data.cache.format import write_json
from miniclip.data.loader import ImageCaptionLoader
from miniclip.data.options import LoaderOptions
from miniclip.data.preprocess import Preprocess
from miniclip.errors import DataError
from miniclip.tokenizer import Tokenizer

PREPROCESS = Preprocess(preset("bert_vit_tiny").replace_image(image_size=16))
IMAGE = 3 * 16 * 16
COUNT = 5
TOKENIZER = Tokenizer.train(["a red circle", "a blue square"], 530)
FILES = ("cache.json", "train/index.json", "train/captions.jsonl", "train/tokens.bin", "train/00000.bin")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    out = tmp_path_factory.mktemp("whole") / "cache"
    options = CacheOptions(num_workers=0, tokenizer=TOKENIZER, context_length=20)
    build_cache(Shapes("train", COUNT, image_size=16), out, PREPROCESS, options=options)
    return out


@pytest.fixture
def cache(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "cache")


def read_all(cache):
    """Read everything that training reads."""
    data = CachedDataset(cache)
    loader = ImageCaptionLoader(data, TOKENIZER, PREPROCESS, LoaderOptions(COUNT, 20))
    try:
        (batch,) = loader.epoch(0)
    finally:
        loader.close()
    return batch


def pixels_of(*indices):
    data = Shapes("train", COUNT, image_size=16)
    return torch.stack([PREPROCESS.pixels(data[index][0]) for index in indices])


def refusal(cache):
    with pytest.raises(DataError) as error:
        read_all(cache)
    assert "\n" not in str(error.value)
    assert str(cache) in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", ["a bit", "zeros", "cut", "longer"])
def test_damage_is_refused(cache, name, damage):
    file = cache / name
    content = bytearray(file.read_bytes())
    middle = len(content) // 2
    if damage == "a bit":
        content[middle] ^= 1
    elif damage == "zeros":
        content[middle : middle + 40] = bytes(40)
    elif damage == "cut":
        del content[-1]
    else:
        content += b"\n"
    if bytes(content) == file.read_bytes():
        content[middle : middle + 40] = b"\1" * 40
    file.write_bytes(content)
    if name.endswith("json") and damage in ("cut", "longer"):  # only a line end more or less
        read_all(cache)
    else:
        assert file.name in refusal(cache)


def test_a_damaged_image_is_named_and_the_others_are_read(cache):
    file = cache / "train" / "00000.bin"
    content = bytearray(file.read_bytes())
    content[3 * IMAGE + 7] ^= 0x10
    file.write_bytes(content)
    data = CachedDataset(cache)
    assert torch.equal(data.pixels([0, 4]), pixels_of(0, 4))
    with pytest.raises(DataError, match=r"00000\.bin: image '.*' has changed since it was written: build the cache"):
        data[3]


@pytest.mark.parametrize("change", [lambda file: os.truncate(file, 3 * IMAGE), os.unlink], ids=["cut", "removed"])
def test_a_shard_that_changes_while_it_is_used(cache, change):
    data = CachedDataset(cache)
    data.pixels([0, 4])
    change(cache / "train" / "00000.bin")
    with pytest.raises(DataError, match=r"00000\.bin: is (cut short|missing)"):
        data.pixels([4])


@pytest.mark.parametrize("index", [-1, COUNT])
def test_pixels_outside_the_dataset(whole, index):
    with pytest.raises(IndexError, match="out of range for 5 images"):
        CachedDataset(whole).pixels([0, index])


# Entries of index.json with a right checksum that cannot be right: keys that lead to the entry, and its new value.
WRONG_ENTRIES = {
    "absolute name": (["shards", 0, "file"], "/etc/passwd"),
    "name above": (["shards", 0, "file"], "../train/00000.bin"),
    "name in a folder": (["shards", 0, "file"], "a/00000.bin"),
    "another number": (["shards", 0, "file"], "00001.bin"),
    "number as name": (["shards", 0, "file"], 0),
    "no checksum": (["shards", 0, "sha256"], None),
    "few checksums": (["shards", 0, "checksums"], "00000000"),
    "checksums of letters": (["shards", 0, "checksums"], "x" * 8 * COUNT),
    "fewer images": (["shards", 0, "images"], COUNT - 1),
    "many images": (["shards", 0, "images"], 10**15),
    "negative": (["shards", 0, "images"], -1),
    "true": (["shards", 0, "images"], True),
    "fraction": (["shards", 0, "bytes"], 3840.5),
    "huge": (["shards", 0, "bytes"], 10**400),
    "first": (["shards", 0, "first"], 1),
    "shard": (["shards", 0], "00000.bin"),
    "skipped twice": (["shards", 0, "skipped"], [{"image": 9, "name": "a", "reason": "b"}] * 2),
    "no shards": (["shards"], []),
    "shards by name": (["shards"], {"00000.bin": 1}),
    "captions": (["captions"], None),
    "skip list": (["skipped"], [["a", "b"]]),
    "source": (["source"], []),
    "images of the source": (["source", "images"], COUNT + 1),
    "size": (["source", "pixels", "size"], 0),
    "other preprocessing": (["source", "pixels", "resize"], "squash"),
    "tokens": (["tokens"], [1]),
    "shape": (["tokens", "shape"], [COUNT * 5]),
    "fewer rows": (["tokens", "shape", 0], 1),
    "more cut captions than rows": (["tokens", "truncated"], 10**6),
    "longer rows": (["tokens", "shape", 1], 10**9),
    "size of tokens": (["tokens", "bytes"], 4),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG_ENTRIES)
def test_wrong_entries_are_refused(cache, case):
    keys, value = WRONG_ENTRIES[case]
    file = cache / "train" / "index.json"
    index = content = json.loads(file.read_text())
    for key in keys[:-1]:
        content = content[key]
    content[keys[-1]] = value
    write_json(file, index)
    assert "index.json" in refusal(cache)


@pytest.mark.parametrize("size", [0, -16, 17, 10**9, True, "16", None])
def test_wrong_sizes_in_the_header_are_refused(cache, size):
    write_json(cache / "cache.json", {"pixels": {**PREPROCESS.pixel_settings, "size": size}})
    refusal(cache)


def rewrite(cache, name, content):
    """Replace captions or token ids, with right sizes and checksums in the index."""
    (cache / "train" / name).write_bytes(content)
    index = json.loads((cache / "train" / "index.json").read_text())
    index[name.split(".")[0]] |= {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    write_json(cache / "train" / "index.json", index)


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"{}",
        b"7",
        b"[]",
        b'{"name": 1, "captions": ["a"]}',
        b'{"name": "a", "captions": "a"}',
        b'{"name": "a", "captions": []}',
        b'{"name": "a", "captions": [1]}',
        b"\xff",
        b"[" * 1000,
        b'{"name"',
    ],
    ids=range(11),
)
def test_malformed_captions_are_refused(cache, line):
    lines = (cache / "train" / "captions.jsonl").read_bytes().splitlines(keepends=True)
    rewrite(cache, "captions.jsonl", b"".join([lines[0], line + b"\n", *lines[2:]]))
    assert "captions.jsonl, line 2: is not a name with captions" in refusal(cache)


@pytest.mark.parametrize("count", [COUNT - 1, COUNT + 1])
def test_captions_of_other_images_are_refused(cache, count):
    lines = (cache / "train" / "captions.jsonl").read_bytes().splitlines(keepends=True)
    rewrite(cache, "captions.jsonl", b"".join((lines * 2)[:count]))
    assert f"lists {count} images, expected {COUNT}" in refusal(cache)


@pytest.mark.parametrize("token", [-1, 1 << 20])
def test_ids_outside_the_vocabulary_are_refused(cache, token):
    content = bytearray((cache / "train" / "tokens.bin").read_bytes())
    content[4:8] = token.to_bytes(4, "little", signed=True)
    rewrite(cache, "tokens.bin", bytes(content))
    assert f"expected 0 to {TOKENIZER.vocab_size - 1}" in refusal(cache)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, lambda path: path.symlink_to("/dev/zero")], ids=range(3))
def test_other_things_than_files_are_refused(cache, name, make):
    (cache / name).unlink()
    make(cache / name)
    with pytest.raises((DataError, ValueError)) as error:
        read_all(cache)
    assert str(cache) in str(error.value)


@pytest.mark.parametrize("name", ["cache.json", "train/index.json"])
@pytest.mark.parametrize("content", [b"[" * 1000, b"", b"[]", b"\xff\xfe", b"NaN", b'{"format": {}}'], ids=range(6))
def test_malformed_json_is_refused(cache, name, content):
    (cache / name).write_bytes(content)
    refusal(cache)


@pytest.mark.parametrize("name", ["../../victim", "/etc/passwd", "00001.bin"])
def test_a_journal_cannot_name_other_files(cache, name):
    """The next build keeps no shard that the journal misplaces."""
    folder = cache / "train"
    expected = {path.name: path.read_bytes() for path in folder.iterdir()}
    index = json.loads((folder / "index.json").read_text())
    index["shards"][0]["file"] = name
    lines = [index["source"], *index["shards"], ["not a shard"]]
    (folder / "progress.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "index.json").unlink()
    options = CacheOptions(num_workers=0, tokenizer=TOKENIZER, context_length=20)
    build_cache(Shapes("train", COUNT, image_size=16), cache, PREPROCESS, options=options)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == expected
