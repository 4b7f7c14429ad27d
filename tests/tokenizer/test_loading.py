"""Loading of a checkpoint's tokenizer: `Tokenizer` for CLIP's kind, `LibraryTokenizer` for others."""

import copy
import gzip
import json
from pathlib import Path

import pytest

from miniclip.errors import CheckpointError
from miniclip.tokenizer import TextTokenizer, Tokenizer, find_tokenizer, load_tokenizer
from miniclip.tokenizer.bpe import END, START
from miniclip.tokenizer.library import LibraryTokenizer

CAPTIONS = ["a photo of a red dog", "two dogs don't share a ball", "the cat sits on the mat", "a café in Zürich, at 12"]
TEXTS = [*CAPTIONS, "", "  A  Photo\nof DOGS!", "naïve cafe\u0301 ΟΔΥΣ", "一只猫 👍🏽", "a </w> b ## c", "it's 3'45"]


@pytest.fixture(scope="module")
def clip() -> Tokenizer:
    return Tokenizer.train(CAPTIONS * 3, 560)


@pytest.fixture(scope="module")
def other() -> dict:
    """Content of a tokenizer.json of another kind: one token per word, between [CLS] and [SEP]."""
    vocab = {word: i for i, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "red", "dog", "'"])}
    return {
        "version": "1.0",
        "added_tokens": [],
        "normalizer": {"type": "Lowercase"},
        "pre_tokenizer": {"type": "WhitespaceSplit"},
        "post_processor": {"type": "BertProcessing", "sep": ["[SEP]", 3], "cls": ["[CLS]", 2]},
        "decoder": None,
        "model": {"type": "WordLevel", "vocab": vocab, "unk_token": "[UNK]"},
    }


def write_json(file: Path, value: object) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(value), encoding="utf-8")
    return file


def write_pair(directory: Path, tokenizer: Tokenizer) -> Path:
    """Write vocab.json and merges.txt in the format of older transformers."""
    lines = ["#version: 0.2", *(" ".join(pair) for pair in tokenizer.merges)]
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    write_json(directory / "vocab.json", tokenizer.vocab)
    return directory


def write_merges(file: Path, tokenizer: Tokenizer) -> Path:
    """Write one gzipped file in OpenAI's format."""
    lines = ['"bpe_simple_vocab_16e6.txt#version: 0.2', *(" ".join(pair) for pair in tokenizer.merges)]
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(gzip.compress("\n".join(lines).encode("utf-8")))
    return file


def ids(tokenizer: TextTokenizer) -> list[list[int]]:
    return tokenizer(TEXTS, context_length=200).tolist()


# Kinds


def test_clip_is_read_by_tokenizer(clip: Tokenizer, tmp_path: Path):
    clip.save(tmp_path / "json")
    pair = write_pair(tmp_path / "pair", clip)
    merges = write_merges(tmp_path / "openai" / "bpe_simple_vocab_16e6.txt.gz", clip)
    paths = [tmp_path / "json", tmp_path / "json/tokenizer.json", pair, pair / "vocab.json", pair / "merges.txt"]
    for path in [*paths, merges, merges.parent, str(pair)]:
        loaded = load_tokenizer(path)
        assert type(loaded) is Tokenizer
        assert (loaded.vocab, loaded.merges) == (clip.vocab, clip.merges)
        assert loaded.openai_cleaning == ("openai" in str(path))


def test_others_are_read_by_library_tokenizer(other: dict, tmp_path: Path):
    pytest.importorskip("tokenizers")
    for path in (write_json(tmp_path / "tokenizer.json", other), tmp_path, str(tmp_path)):
        loaded = load_tokenizer(path)
        assert type(loaded) is LibraryTokenizer
        assert loaded(["A red dog", "a cat"]).tolist() == [[2, 4, 5, 6, 3], [2, 4, 1, 3, 0]]
    loaded = load_tokenizer(tmp_path, clean="canonicalize", strip_sep_token=True, pad_token="[UNK]")
    assert loaded("A 'red' dog!", 7, pad=True).tolist() == [[2, 4, 5, 6, 0, 1, 1]]


def test_a_token_may_look_like_the_head_of_a_file_of_merges(other: dict, tmp_path: Path):
    pytest.importorskip("tokenizers")
    other = copy.deepcopy(other)
    other["model"]["vocab"]["#version"] = 8
    assert load_tokenizer(write_json(tmp_path / "tokenizer.json", other)).encode("a #version") == [4, 8]


def test_both_kinds_are_text_tokenizers(clip: Tokenizer, other: dict, tmp_path: Path):
    pytest.importorskip("tokenizers")
    tokenizers: list[TextTokenizer] = [clip, LibraryTokenizer(other)]
    for number, tokenizer in enumerate(tokenizers):
        tokenizer.save(tmp_path / str(number))
        assert ids(load_tokenizer(tmp_path / str(number))) == ids(tokenizer)
        assert int(tokenizer(TEXTS).max()) < tokenizer.vocab_size
        assert tokenizer.end_id in tokenizer("a")


def test_clip_with_added_tokens_is_read_by_library_tokenizer(clip: Tokenizer, tmp_path: Path):
    """`Tokenizer` has no added tokens."""
    pytest.importorskip("tokenizers")
    clip.save(tmp_path)
    file = tmp_path / "tokenizer.json"
    data = json.loads(file.read_text(encoding="utf-8"))
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    specials = [(START, clip.start_id), (END, clip.end_id), ("<new>", clip.vocab_size)]
    data["added_tokens"] = [{"id": i, "content": name, **flags} for name, i in specials]
    write_json(file, data)
    loaded = load_tokenizer(tmp_path)
    assert type(loaded) is LibraryTokenizer
    assert (loaded.vocab_size, loaded.end_id) == (clip.vocab_size + 1, clip.end_id)
    a, dog = clip.encode("a"), clip.encode("dog")
    assert loaded("a <new> dog")[0].tolist() == [clip.start_id, *a, clip.vocab_size, *dog, clip.end_id]
    data["added_tokens"].pop()
    write_json(file, data)
    assert type(load_tokenizer(tmp_path)) is Tokenizer


def test_options_for_clip(clip: Tokenizer, tmp_path: Path):
    clip.save(tmp_path)
    for clean in ("whitespace", "lower"):
        assert load_tokenizer(tmp_path, clean=clean).openai_cleaning
    assert type(load_tokenizer(tmp_path, pad_token="!", eos_token=END, strip_sep_token=False)) is Tokenizer
    pair = write_pair(tmp_path / "pair", clip)
    for options in (
        {"clean": "canonicalize"},
        {"strip_sep_token": True},
        {"eos_token": START},
        {"padding_side": "left"},
    ):
        with pytest.raises(ValueError, match="does not fit a tokenizer of CLIP's kind"):
            load_tokenizer(pair, **options)
    with pytest.raises(TypeError, match="'language' is not an option of a tokenizer"):
        load_tokenizer(tmp_path, language="de")  # type: ignore[call-arg]
    pytest.importorskip("tokenizers")
    assert load_tokenizer(tmp_path, padding_side="left").pad_left
    canonical = load_tokenizer(tmp_path, clean="canonicalize")
    assert canonical.encode("A snake_case, dog!") == clip.encode("a snake case dog")


# Files of a directory


def test_order_of_the_candidates(clip: Tokenizer, tmp_path: Path):
    assert find_tokenizer(tmp_path) is None
    assert find_tokenizer(tmp_path / "nowhere") is None
    write_merges(tmp_path / "bpe_simple_vocab_16e6.txt.gz", clip)
    assert find_tokenizer(tmp_path) == tmp_path / "bpe_simple_vocab_16e6.txt.gz"
    (tmp_path / "bpe.txt").write_bytes(b"")
    assert find_tokenizer(tmp_path) is None  # two candidates
    write_pair(tmp_path, clip)
    assert find_tokenizer(str(tmp_path)) == tmp_path / "vocab.json"
    (tmp_path / "tokenizer.json").write_text("{}")
    assert find_tokenizer(tmp_path) == tmp_path / "tokenizer.json"


def test_a_vocabulary_without_its_merges(clip: Tokenizer, tmp_path: Path):
    write_json(tmp_path / "vocab.json", clip.vocab)
    assert find_tokenizer(tmp_path) is None
    with pytest.raises(FileNotFoundError, match=r"expected a tokenizer\.json"):
        load_tokenizer(tmp_path)
    with pytest.raises(CheckpointError, match=r"vocab\.json: a vocabulary without its merges; expected merges\.txt"):
        load_tokenizer(tmp_path / "vocab.json")


def test_missing_files(tmp_path: Path):
    for path in (tmp_path, tmp_path / "nowhere", str(tmp_path / "nowhere.json")):
        with pytest.raises(FileNotFoundError, match="no tokenizer; expected") as error:
            load_tokenizer(path)
        assert str(path) in str(error.value)


@pytest.mark.parametrize("name", ["spiece.model", "tokenizer.model"])
def test_sentencepiece_is_refused_with_advice(tmp_path: Path, name: str):
    (tmp_path / name).write_bytes(b"\n\x0e\n\x05<pad>")
    assert find_tokenizer(tmp_path) is None
    for path in (tmp_path, tmp_path / name):
        with pytest.raises(
            CheckpointError, match=rf"{name}: cannot read sentencepiece.*backend_tokenizer\.save"
        ) as error:
            load_tokenizer(path)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"\x80\x81", b"[" * 100_000, b"3", b"{}", gzip.compress(b"{}", mtime=0)[:-9]],
    ids=["empty", "cut", "not UTF-8", "deep", "a number", "an empty object", "a cut gzip"],
)
def test_damaged_files(tmp_path: Path, content: bytes):
    file = tmp_path / "tokenizer.json"
    file.write_bytes(content)
    with pytest.raises(CheckpointError, match="damaged") as error:
        load_tokenizer(tmp_path)
    assert str(file) in str(error.value)
    assert "\n" not in str(error.value)


# The same ids as the peers


@pytest.mark.peer
def test_files_of_transformers_are_read_by_tokenizer(clip: Tokenizer, tmp_path: Path):
    transformers = pytest.importorskip("transformers")
    peer = transformers.CLIPTokenizer(vocab=clip.vocab, merges=clip.merges)
    peer(TEXTS, padding="max_length", truncation=True, max_length=77)  # writes its padding to the file
    peer.save_pretrained(tmp_path / "json")
    assert json.loads((tmp_path / "json/tokenizer.json").read_text())["padding"]["pad_token"] == END
    write_pair(tmp_path / "pair", clip)
    for directory in (tmp_path / "json", tmp_path / "pair"):
        fast = transformers.CLIPTokenizerFast.from_pretrained(directory)
        loaded = load_tokenizer(directory)
        assert type(loaded) is Tokenizer
        for text, row in zip(TEXTS, fast(TEXTS).input_ids, strict=True):
            assert loaded(text)[0].tolist() == row, text


@pytest.mark.peer
def test_transformers_agrees_on_clip_with_added_tokens(clip: Tokenizer, tmp_path: Path):
    transformers = pytest.importorskip("transformers")
    peer = transformers.CLIPTokenizer(vocab=clip.vocab, merges=clip.merges)
    peer.add_tokens(["<new>", "dog2"])
    peer.save_pretrained(tmp_path)
    loaded = load_tokenizer(tmp_path)
    texts = [*TEXTS, "a <new> dog2", f"a {END} b"]
    expected = peer(texts, padding="max_length", truncation=True, max_length=77)
    assert loaded(texts, pad=True).tolist() == expected.input_ids
    assert loaded.vocab_size == len(peer)


@pytest.mark.peer
def test_open_clip_agrees_on_its_merges():
    peers = pytest.importorskip("open_clip.tokenizer")
    loaded = load_tokenizer(Path(peers.default_bpe()).parent)
    assert loaded(TEXTS, pad=True).tolist() == peers.SimpleTokenizer()(TEXTS).tolist()
