"""Damaged or hostile tokenizers: each is refused in one line, before it costs time or memory, or ends the process."""

import base64
import copy
import gzip
import json
import os
import resource
from pathlib import Path

import pytest

from miniclip.errors import CheckpointError
from miniclip.tokenizer import Tokenizer, load_tokenizer
from miniclip.tokenizer.library import LibraryTokenizer

pytest.importorskip("tokenizers")

VOCAB = {name: i for i, name in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "red", "dog"])}
PLAIN = {
    "version": "1.0",
    "added_tokens": [],
    "normalizer": None,
    "pre_tokenizer": {"type": "WhitespaceSplit"},
    "post_processor": None,
    "decoder": None,
    "model": {"type": "WordLevel", "vocab": VOCAB, "unk_token": "[UNK]"},
}
TOKEN = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}


def changed(**parts: object) -> dict:
    return {**copy.deepcopy(PLAIN), **parts}


def word_level(**vocab: int) -> dict:
    return changed(model={"type": "WordLevel", "vocab": {"[UNK]": 0, "[PAD]": 1, **vocab}, "unk_token": "[UNK]"})


def bpe(prefix: str | None, vocab: list[str], merges: list[str]) -> dict:
    ids = {token: i for i, token in enumerate(["[PAD]", *vocab])}
    return changed(model={"type": "BPE", "continuing_subword_prefix": prefix, "vocab": ids, "merges": merges})


def split(pattern: str) -> dict:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


def replacements(pattern: dict, content: str, count: int) -> dict:
    return {"type": "Sequence", "normalizers": [{"type": "Replace", "pattern": pattern, "content": content}] * count}


def table(data: bytes) -> dict:
    return {"type": "Precompiled", "precompiled_charsmap": base64.b64encode(data).decode()}


def nested(kind: str, depth: int, leaf: object) -> object:
    for _ in range(depth):
        leaf = {"type": "Sequence", kind: [leaf]}
    return leaf


# content of a tokenizer.json, and words of the refusal
REFUSED = {
    "id 2^31": (word_level(a=2**31), "the id 2147483648"),
    "id 2^32-1": (word_level(a=2**32 - 1), "the id 4294967295"),
    "id 10^400": (word_level(a=10**400), "the id 1000"),
    "negative": (word_level(a=-1), "the id -1"),
    "id of text": (changed(model={"type": "WordLevel", "vocab": {"a": "0"}, "unk_token": "a"}), "the id '0'"),
    "twice": (word_level(a=1), "the same id"),
    "added 2^31": (changed(added_tokens=[{"id": 2**31, "content": "<x>", **TOKEN}]), "the id 2147483648"),
    "empty": (changed(model={"type": "WordLevel", "vocab": {}, "unk_token": "a"}), "vocabulary is empty"),
    "empty pieces": (changed(model={"type": "Unigram", "vocab": [], "unk_id": None}), "vocabulary is empty"),
    "no model": (changed(model=3), "no vocabulary"),
    "merge cut": (bpe("#", ["a", "é", "aé"], ["a é"]), "the prefix '#'"),
    "merge short": (bpe("##", ["a", "b", "ab"], ["a b"]), "the prefix '##'"),
    "merge list": (bpe("##", ["a", "b", "ab"], [["a", "b"]]), "the prefix '##'"),
    "empty regex": (changed(pre_tokenizer=split("")), "an empty pattern"),
    "empty text": (changed(normalizer=replacements({"String": ""}, "x", 1)), "an empty pattern"),
    "grows": (changed(normalizer=replacements({"Regex": "."}, "a" * 10, 9)), "without limit"),
    "grows text": (changed(normalizer=replacements({"String": "a"}, "a" * 1000, 4)), "without limit"),
    "grows bytes": (
        changed(normalizer={"type": "Sequence", "normalizers": [{"type": "ByteLevel"}] * 24}),
        "without limit",
    ),
    "table": (changed(normalizer=table(b"\xff\xff\xff\xff" + bytes(64))), "longer than the table"),
    "table base64": (changed(normalizer={"type": "Precompiled", "precompiled_charsmap": "***"}), "not base64"),
    "table empty": (changed(normalizer=table(b"")), "cannot read it"),
    "regex": (changed(pre_tokenizer=split("(")), "cannot read it"),
    "deep steps": (changed(normalizer=nested("normalizers", 400, {"type": "NFC"})), ""),
    "deep processors": (changed(post_processor=nested("processors", 400, {"type": "ByteLevel"})), ""),
    "deep model": (changed(model=nested("model", 400, 1)), ""),
    "padding": (changed(padding={"pad_token": "x", "pad_id": 2**31, "direction": "Right"}), "the id 2147483648"),
    "padding text": (changed(padding={"pad_token": "x", "pad_id": "1", "direction": "Right"}), "the id '1'"),
    "processor": (changed(post_processor={"type": "BertProcessing", "sep": ["x", 99], "cls": ["y", 2]}), "the id 99"),
    "surrogate": (changed(padding={"pad_token": "\ud800", "pad_id": 1, "direction": "Right"}), "surrogates"),
}  # fmt: skip


@pytest.mark.parametrize(("content", "words"), REFUSED.values(), ids=REFUSED)
def test_refuses_files_that_the_library_does_not_survive(content, words, tmp_path):
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(CheckpointError, match="") as caught:
        load_tokenizer(tmp_path)
    message = str(caught.value)
    assert message.isprintable()
    assert len(message) < 600
    assert str(tmp_path) in message
    assert words in message
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # KiB


# the library panics at the first text
PANICS = {
    "regex": changed(pre_tokenizer=split("(a|aa|aaa)+$")),
    "length": changed(pre_tokenizer={"type": "FixedLength", "length": 0}),
    "template": changed(
        post_processor={
            "type": "TemplateProcessing",
            "single": [{"Sequence": {"id": "B", "type_id": 0}}],
            "pair": [],
            "special_tokens": {},
        }
    ),
    "table": changed(normalizer=table((64).to_bytes(4, "little") + b"\xff" * 64 + b"abc")),
    "unknown": changed(model={"type": "WordLevel", "vocab": {"[PAD]": 0}, "unk_token": "[UNK]"}),
}


@pytest.mark.parametrize("content", PANICS.values(), ids=PANICS)
def test_a_panic_becomes_an_error(content):
    tokenizer = LibraryTokenizer(content)
    with pytest.raises(CheckpointError, match="the tokenizers library cannot encode a text") as caught:
        tokenizer("a" * 40 + "b")
    assert str(caught.value).isprintable()


def test_a_panic_while_decoding_becomes_an_error():
    tokenizer = LibraryTokenizer(changed(decoder={"type": "Strip", "content": "a", "start": 2**40, "stop": 2**40}))
    with pytest.raises(CheckpointError, match="the tokenizers library cannot decode ids"):
        tokenizer.decode([4])


def test_an_empty_caption_without_a_token_is_padded():
    assert LibraryTokenizer(PLAIN)(["", ""]).tolist() == [[0], [0]]
    assert LibraryTokenizer(PLAIN)(["", "a red"]).tolist() == [[0, 0], [4, 5]]


@pytest.mark.parametrize("name", ["tokenizer.json", "merges.txt", "bpe_simple_vocab_16e6.txt.gz"])
def test_refuses_a_small_file_that_becomes_large(name, tmp_path):
    with gzip.open(tmp_path / name, "wb", compresslevel=1) as file:
        for _ in range(40):
            file.write(b"[" * (1 << 20))
    for read in (load_tokenizer, Tokenizer.load):
        with pytest.raises(CheckpointError, match="decompresses to more than the 32 MiB") as caught:
            read(tmp_path / name)
        assert str(caught.value).isprintable()


def test_refuses_a_large_file(tmp_path):
    with (tmp_path / "tokenizer.json").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(CheckpointError, match=r"1,024\.0 GiB long, expected at most 128"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("name", ["tokenizer.json", "vocab.json", "tokenizer_config.json", "special_tokens_map.json"])
def test_refuses_deep_json(name, tmp_path):
    (tmp_path / "tokenizer.json").write_text(json.dumps(PLAIN))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    (tmp_path / name).write_text("[" * 100_000)
    with pytest.raises(CheckpointError, match="nested too deeply") as caught:
        load_tokenizer(tmp_path / name if name == "vocab.json" else tmp_path)
    assert str(tmp_path / name) in str(caught.value)


@pytest.mark.skipif(not Path("/proc/kmsg").exists(), reason="files of Linux")
@pytest.mark.parametrize("kind", ["pipe", "directory", "/dev/zero", "/proc/kmsg", "dangling"])
@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"])
def test_refuses_files_that_are_not_regular(name, kind, tmp_path):
    (tmp_path / "tokenizer.json").write_text(json.dumps(PLAIN))
    (tmp_path / name).unlink(missing_ok=True)
    if kind == "pipe":
        os.mkfifo(tmp_path / name)
    elif kind == "directory":
        (tmp_path / name).mkdir()
    else:
        (tmp_path / name).symlink_to(kind)
    with pytest.raises((FileNotFoundError, PermissionError)) as caught:
        load_tokenizer(tmp_path)
    assert str(tmp_path / name) in str(caught.value)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    "options", [{"pad_token": ["a"]}, {"clean": {}}, {"strip_sep_token": "false"}, {"eos_token": 3}]
)
def test_refuses_options_of_another_type(options, tmp_path):
    (tmp_path / "tokenizer.json").write_text(json.dumps(PLAIN))
    with pytest.raises(TypeError, match=r"expected (text|true or false)"):
        load_tokenizer(tmp_path, **options)
