"""Tokenizers of other kinds: their own contract, and the ids of open_clip's HFTokenizer and transformers' classes.

The tests train one small tokenizer of each kind that CLIP-like models use.
"""

import copy
import importlib.util
import json
import pickle
import string
import sys
import unicodedata
import warnings
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from miniclip.errors import CheckpointError
from miniclip.tokenizer import cleaning, normalizers
from miniclip.tokenizer import library as module
from miniclip.tokenizer.library import LibraryTokenizer

tokenizers = pytest.importorskip("tokenizers")

FUZZ = settings(deadline=None, derandomize=True, max_examples=30)

TEXTS = [
    "a photo of a red dog",
    "Two dogs don't share their ball; they're running!",
    "",
    "   ",
    "  A  Cat\nsits\ton the\r\n mat  ",
    "snake_case and __init__, C++ <b>bold</b>",
    "fish &amp; chips &lt;3 &quot;yum&quot; &#39;ok&#39; &nbsp; &hellip; &amp;lt;",
    "it’s “curly” ‘quoted’, itâ€™s broken",
    "café cafe\u0301 CAFÉ, Zürich, ﬁne",
    "ＦＵＬＬ ｗｉｄｔｈ！ ½ ² Ⅷ",
    "ΟΔΥΣΣΕΥΣ ΑΣ Σ Α'Σ İstanbul ẞ ſ",
    "一只猫坐在沙发上。 Кошка спит 👨‍👩‍👧 🇫🇷 ❤️",
    "a [SEP] b [CLS] c [PAD] d [UNK] e [MASK]",
    "a </s> b <s> c <pad> d <unk> e<eos>f<bos>",
    "▁under▁line ##piece <0x41>",
    "odd\u2003spaces\u00a0here\u3000there\x85gone\x1cfield\u200bzero\x0bvertical",
    "nul\x00 bell\x07 del\x7f \x1b[31mred\x1b[0m",
    "_", "!!!", "'", "\ufeff",
    "dog " * 40,
    "x" * 300,
]  # fmt: skip

words = st.sampled_from(
    [*"aAbB_!.'&; \n\t▁", "dog", "Photo", "of", "[SEP]", "</s>", "<pad>", "&amp;", "’", "Σ", "\u0301", "\x1c", "\u3000"]
)
any_text = st.lists(words | st.characters(exclude_categories=("Cs",)), max_size=12).map("".join)


# Tokenizers to compare, in directories that transformers writes

CORPUS = [
    "a photo of a red dog", "two dogs share a ball, and run", "the cat sits on a mat in the kitchen",
    "a Photo of THE city at night", "don't stop, they're running fast", "café in zürich, crème brûlée", "3 rows of 12",
]  # fmt: skip


def pieces(specials: list[str]) -> list[tuple[str, float]]:
    """Return a Unigram vocabulary with scores, as in sentencepiece."""
    trained = tokenizers.Tokenizer(tokenizers.models.Unigram())
    trained.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
    trainer = tokenizers.trainers.UnigramTrainer(
        vocab_size=150, special_tokens=specials, unk_token="<unk>", show_progress=False
    )
    trained.train_from_iterator(CORPUS * 4, trainer)
    return [(piece, score) for piece, score in json.loads(trained.to_str())["model"]["vocab"]]


def word_pieces() -> dict[str, int]:
    trained = tokenizers.Tokenizer(tokenizers.models.WordPiece(unk_token="[UNK]"))
    trained.normalizer = tokenizers.normalizers.BertNormalizer()
    trained.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    specials = ["[PAD]", "[unused0]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    trainer = tokenizers.trainers.WordPieceTrainer(vocab_size=200, special_tokens=specials, show_progress=False)
    trained.train_from_iterator(CORPUS * 4, trainer)
    return dict(trained.get_vocab())


def byte_fallback() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Return a vocabulary and merges of Gemma's kind: spaces are ▁, unknown characters become bytes."""
    trained = tokenizers.Tokenizer(tokenizers.models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    trained.normalizer = tokenizers.normalizers.Replace(" ", "▁")
    specials = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=420, special_tokens=specials, show_progress=False)
    trained.train_from_iterator([text.lower() for text in CORPUS * 4], trainer)
    model = json.loads(trained.to_str())["model"]
    return model["vocab"], [tuple(pair) for pair in model["merges"]]


@pytest.fixture(scope="session")
def kinds(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    transformers = pytest.importorskip("transformers")
    vocab, merges = byte_fallback()
    by_kind = {
        "t5": transformers.T5Tokenizer(vocab=pieces(["<pad>", "</s>", "<unk>"]), extra_ids=0),
        "xlm": transformers.XLMRobertaTokenizer(vocab=pieces(["<s>", "<pad>", "</s>", "<unk>"])),
        "bert": transformers.BertTokenizer(vocab=word_pieces()),
        "cased": transformers.BertTokenizer(vocab=word_pieces(), do_lower_case=False),
        "siglip2": transformers.Siglip2Tokenizer(vocab=vocab, merges=merges, add_eos_token=True, padding_side="right"),
        "left": transformers.GemmaTokenizer(vocab=vocab, merges=merges, add_bos_token=True),
    }
    root = tmp_path_factory.mktemp("kinds")
    for name, tokenizer in by_kind.items():
        tokenizer.save_pretrained(root / name)
    return {name: root / name for name in by_kind}


KINDS = ["t5", "xlm", "bert", "cased", "siglip2", "left"]


def rows(tokenizer: LibraryTokenizer, texts: list[str], length: int = 16) -> list[list[int]]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return tokenizer(texts, length, pad=True).tolist()


# The ids of open_clip and transformers


@pytest.mark.peer
@pytest.mark.parametrize("clean", ["whitespace", "lower", "canonicalize"])
@pytest.mark.parametrize("kind", KINDS)
def test_open_clip_agrees(kinds: dict[str, Path], kind: str, clean: str):
    peers = pytest.importorskip("open_clip.tokenizer")
    strip = kind in ("xlm", "bert", "cased") and clean != "lower"
    peer = peers.HFTokenizer(str(kinds[kind]), context_length=16, clean=clean, strip_sep_token=strip)
    tokenizer = LibraryTokenizer.load(kinds[kind], clean=clean, strip_sep_token=strip)
    assert rows(tokenizer, TEXTS) == peer(TEXTS).tolist()

    @given(any_text)
    @FUZZ
    def check(text: str) -> None:
        assert rows(tokenizer, [text]) == peer([text]).tolist()

    check()


def assert_transformers_agrees(tokenizer: LibraryTokenizer, peer) -> None:
    def expected(texts: list[str]) -> list[list[int]]:
        return peer(texts, padding="max_length", truncation=True, max_length=16).input_ids

    assert rows(tokenizer, TEXTS) == expected(TEXTS)

    @given(any_text)
    @FUZZ
    def check(text: str) -> None:
        assert rows(tokenizer, [text]) == expected([text])

    check()


@pytest.mark.peer
@pytest.mark.parametrize("kind", KINDS)
def test_transformers_agrees(kinds: dict[str, Path], kind: str):
    peer = pytest.importorskip("transformers").AutoTokenizer.from_pretrained(kinds[kind])
    tokenizer = LibraryTokenizer.load(kinds[kind])
    assert_transformers_agrees(tokenizer, peer)
    assert tokenizer.pad_id == peer.pad_token_id
    assert tokenizer.vocab_size == len(peer)
    if peer.eos_token_id is not None:
        assert tokenizer.end_id == peer.eos_token_id


def edit(source: Path, target: Path, config: dict[str, object], **parts: object) -> Path:
    """Copy a tokenizer with another configuration and other parts of tokenizer.json."""
    data = json.loads((source / "tokenizer.json").read_text(encoding="utf-8")) | parts
    target.mkdir(exist_ok=True)
    (target / "tokenizer.json").write_text(json.dumps(data), encoding="utf-8")
    (target / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    return target


@pytest.mark.peer
def test_siglip_2_lowercases_for_any_file(kinds: dict[str, Path], tmp_path: Path):
    names = {"eos_token": "<eos>", "bos_token": "<bos>", "pad_token": "<pad>", "unk_token": "<unk>"}
    config = {"tokenizer_class": "Siglip2Tokenizer", "padding_side": "right", **names}
    bare = {"normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}}
    directory = edit(kinds["siglip2"], tmp_path, config, **bare)
    tokenizer = LibraryTokenizer.load(directory)
    assert_transformers_agrees(tokenizer, pytest.importorskip("transformers").AutoTokenizer.from_pretrained(directory))
    assert tokenizer.encode("A PHOTO") == tokenizer.encode("a photo")
    for setting in ({"processor_class": "SiglipProcessor"}, {"do_lower_case": True}):
        edit(kinds["siglip2"], tmp_path, {"tokenizer_class": "GemmaTokenizerFast", **setting}, **bare)
        assert LibraryTokenizer.load(tmp_path).encode("A PHOTO") == tokenizer.encode("a photo")
    edit(kinds["siglip2"], tmp_path, {"tokenizer_class": "GemmaTokenizerFast"}, **bare)
    assert LibraryTokenizer.load(tmp_path).encode("A PHOTO") != tokenizer.encode("a photo")


def siglip_canonical(text: str) -> str:
    """Lowercase, remove punctuation, collapse spaces: the rule of big_vision that transformers has for SigLIP."""
    text = "".join(c for c in text.replace("▁", " ").lower() if c not in string.punctuation)
    return " ".join(text.split())


@pytest.mark.peer
def test_siglip_1_canonicalizes(kinds: dict[str, Path], tmp_path: Path):
    plain = LibraryTokenizer.load(kinds["t5"])
    siglip = LibraryTokenizer.load(edit(kinds["t5"], tmp_path, {"tokenizer_class": "SiglipTokenizer"}))
    assert (siglip.pad_id, siglip.end_id) == (1, 1)  # </s> has both roles

    @given(any_text.filter(lambda text: not any(name in text for name in ("</s>", "<pad>"))))
    @settings(FUZZ, max_examples=100)
    def check(text: str) -> None:
        assert siglip.encode(text) == plain.encode(siglip_canonical(text))

    check()
    edit(kinds["t5"], tmp_path, {"tokenizer_class": "SiglipTokenizer", "do_lower_case": False})
    cased = LibraryTokenizer.load(tmp_path)
    assert cased.encode("The, Photo!") == plain.encode("The Photo") != plain.encode("the photo")


@pytest.mark.peer
def test_siglip_1_has_the_ids_of_sentencepiece(tmp_path: Path):
    trainer = pytest.importorskip("sentencepiece").SentencePieceTrainer
    pytest.importorskip("google.protobuf")
    transformers = pytest.importorskip("transformers")
    trainer.train(
        sentence_iterator=iter(CORPUS * 20), model_prefix=str(tmp_path / "spiece"), vocab_size=100,
        hard_vocab_limit=False, pad_id=0, eos_id=1, unk_id=2, bos_id=-1, pad_piece="<pad>", minloglevel=3,
    )  # fmt: skip
    peer = transformers.SiglipTokenizer(str(tmp_path / "spiece.model"))
    peer.save_pretrained(tmp_path)
    fast = transformers.T5Tokenizer.from_pretrained(tmp_path, extra_ids=0)
    fast.backend_tokenizer.save(str(tmp_path / "tokenizer.json"))
    tokenizer = LibraryTokenizer.load(tmp_path)
    texts = [text for text in TEXTS if "</s>" not in text]  # special tokens have other rules
    expected = peer(texts, padding="max_length", truncation=True, max_length=16).input_ids
    assert rows(tokenizer, texts) == expected


@pytest.mark.peer
def test_configuration_overrides_the_file(kinds: dict[str, Path], tmp_path: Path):
    transformers = pytest.importorskip("transformers")
    names = {"pad_token": "[unused0]", "sep_token": "[SEP]", "cls_token": "[CLS]", "unk_token": "[UNK]"}
    config = {"tokenizer_class": "BertTokenizerFast", "do_lower_case": False, "strip_accents": True, **names}
    edit(kinds["bert"], tmp_path, config, added_tokens=[], padding={
        "strategy": "BatchLongest", "direction": "Left", "pad_to_multiple_of": None, "pad_id": 0, "pad_type_id": 0,
        "pad_token": "[PAD]",
    })  # fmt: skip
    (tmp_path / "special_tokens_map.json").write_text('{"mask_token": {"content": "[MASK]", "lstrip": false}}')
    tokenizer = LibraryTokenizer.load(tmp_path)
    assert (tokenizer.pad_id, tokenizer.pad_left) == (1, True)
    assert_transformers_agrees(tokenizer, transformers.AutoTokenizer.from_pretrained(tmp_path))
    assert tokenizer.encode("a [MASK]")[-1] == 5  # special only in the configuration


# The saved file is complete


def is_plain(text: str) -> bool:
    """Return True if ftfy and html do not change a text."""
    return cleaning.fix_text(text) == text


@pytest.mark.peer
@pytest.mark.parametrize("clean", [None, "whitespace", "lower", "canonicalize"])
@pytest.mark.parametrize("kind", KINDS)
def test_save_then_load(kinds: dict[str, Path], kind: str, clean: str | None, tmp_path: Path):
    strip = kind in ("xlm", "bert")
    tokenizer = LibraryTokenizer.load(kinds[kind], clean=clean, strip_sep_token=strip)
    tokenizer.save(tmp_path / "new" / "place")
    saved = tmp_path / "new" / "place" / "tokenizer.json"
    again = LibraryTokenizer.load(saved.parent)
    assert rows(again, TEXTS) == rows(tokenizer, TEXTS)
    for name in ("vocab_size", "start_id", "end_id", "pad_id", "pad_left", "before", "after", "clean"):
        assert getattr(again, name) == getattr(tokenizer, name), name
    assert (tokenizer.end_id is None) == strip
    again.save(tmp_path / "twice.json")
    assert (tmp_path / "twice.json").read_bytes() == saved.read_bytes()
    # The old configuration beside the file changes nothing.
    (tmp_path / "new" / "place" / "tokenizer_config.json").write_bytes(
        (kinds[kind] / "tokenizer_config.json").read_bytes()
    )
    assert rows(LibraryTokenizer.load(saved), TEXTS) == rows(tokenizer, TEXTS)

    # The library gives the same ids for texts that ftfy and html do not change.
    peer = tokenizers.Tokenizer.from_file(str(saved))
    known = st.characters(exclude_categories=("Cs", "Cn", "Co"))
    plain = st.lists(st.sampled_from([*"aAbB_!.;\n\tΣ ", "dog", "Photo", "\u3000"]) | known, max_size=12).map("".join)

    @given(plain.filter(is_plain))
    @settings(FUZZ, max_examples=30)
    def check(text: str) -> None:
        assert peer.encode(text).ids == tokenizer([text], 10_000)[0].tolist()

    check()
    batch = [row.ids for row in peer.encode_batch(["a photo", "a photo of a dog"])]
    assert batch == tokenizer(["a photo", "a photo of a dog"]).tolist()  # the same padding


@pytest.mark.peer
@pytest.mark.parametrize("kind", KINDS)
def test_transformers_reads_the_saved_file(kinds: dict[str, Path], kind: str, tmp_path: Path):
    tokenizer = LibraryTokenizer.load(kinds[kind], clean="canonicalize", strip_sep_token=kind in ("xlm", "bert"))
    tokenizer.save(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    peer = pytest.importorskip("transformers").AutoTokenizer.from_pretrained(tmp_path)
    texts = ["", "A snake_case, photo!", "dog " * 40]
    assert peer(texts, padding="max_length", truncation=True, max_length=16).input_ids == rows(tokenizer, texts)


def test_no_cleaning_is_the_beginning_of_another():
    for name, rows in normalizers.OPEN_CLIP_NORMALIZERS.items():
        for other, longer in normalizers.OPEN_CLIP_NORMALIZERS.items():
            assert name == other or longer[: len(rows)] != rows


def normalizer(steps: list[dict]):
    data = {"model": {"type": "WordLevel", "vocab": {"x": 0}, "unk_token": "x"}}
    data["normalizer"] = {"type": "Sequence", "normalizers": steps}
    return tokenizers.Tokenizer.from_str(json.dumps(data)).normalizer


@pytest.mark.parametrize(
    ("clean", "normal"),
    [("whitespace", "<b> 'it's' & _A_"), ("lower", "<b> 'it's' & _a_"), ("canonicalize", "b its a")],
)
def test_normalizers_clean_as_python_does(clean: str, normal: str, monkeypatch: pytest.MonkeyPatch):
    assert (
        normalizer(normalizers.OPEN_CLIP_NORMALIZERS[clean]).normalize_str("&lt;b&gt; ‘it’s’ &amp;amp; _A_ ") == normal
    )
    # Without fix_text, they agree on every code point that this Python has assigned.
    monkeypatch.setattr(cleaning, "fix_text", lambda text: text)
    rows = normalizer(normalizers.OPEN_CLIP_NORMALIZERS[clean][len(normalizers.FIX_AND_NFC) :])
    assigned = [c for c in map(chr, range(0x110000)) if unicodedata.category(c) not in ("Cn", "Cs", "Co")]
    for start in range(0, len(assigned), 200):
        text = "".join(f" a{c}B {c}'{c}1{c}" for c in assigned[start : start + 200])
        assert rows.normalize_str(text) == cleaning.OPEN_CLIP_CLEANERS[clean](text)


# Contract, on one small tokenizer that has only a tokenizer.json


@pytest.fixture(scope="session")
def bert() -> dict:
    """Content of a tokenizer.json of BERT's kind."""
    vocab = word_pieces()
    peer = tokenizers.Tokenizer(tokenizers.models.WordPiece(vocab, unk_token="[UNK]"))
    peer.normalizer = tokenizers.normalizers.BertNormalizer()
    peer.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    peer.decoder = tokenizers.decoders.WordPiece()
    peer.add_special_tokens(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"])
    peer.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B [SEP]",
        special_tokens=[("[CLS]", vocab["[CLS]"]), ("[SEP]", vocab["[SEP]"])],
    )  # fmt: skip
    return json.loads(peer.to_str())


@pytest.fixture
def tokenizer(bert: dict) -> LibraryTokenizer:
    return LibraryTokenizer(bert)


def test_batch(tokenizer: LibraryTokenizer):
    start, end = tokenizer.start_id, tokenizer.end_id
    assert (tokenizer.pad_id, start, end, tokenizer.before, tokenizer.after) == (0, 3, 4, (3,), (4,))
    ids = tokenizer.encode("a photo of a dog")
    batch = tokenizer(["", "a photo of a dog"])
    assert batch.dtype == torch.int64
    assert batch.tolist() == [[start, end, *[0] * len(ids)], [start, *ids, end]]
    padded = tokenizer(("", "a photo of a dog"), context_length=20, pad=True)
    assert padded.shape == (2, 20)
    assert torch.equal(padded[:, : len(ids) + 2], batch)
    assert not padded[:, len(ids) + 2 :].any()
    assert tokenizer("a dog").tolist() == tokenizer(["a dog"]).tolist()
    assert tokenizer([]).shape == (0, 2)
    assert tokenizer([], 16, pad=True).shape == (0, 16)


def test_padding_on_the_left(bert: dict):
    tokenizer = LibraryTokenizer(bert, padding_side="left")
    short, long = tokenizer(["a dog", "a photo of a dog"]).tolist()
    plain = LibraryTokenizer(bert)("a dog")[0].tolist()
    assert short == [0] * (len(long) - len(plain)) + plain


def test_cut_captions_warn_once_and_are_counted(tokenizer: LibraryTokenizer):
    with pytest.warns(UserWarning, match=r"a caption of 42 tokens.* context_length=16") as caught:
        batch = tokenizer(["dog " * 40, "a dog", "dog " * 15, "dog " * 14], 16)
    assert len(caught) == 1
    assert caught[0].filename == __file__
    assert tokenizer.truncated == 2
    assert batch.shape == (4, 16)
    assert batch[0].tolist() == [3, *tokenizer.encode("dog " * 14), 4]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tokenizer("dog " * 100)
    assert tokenizer.truncated == 3
    assert len(tokenizer.encode("dog " * 100)) == 100


def test_the_separator_is_stripped(bert: dict, tmp_path: Path):
    stripped, plain = LibraryTokenizer(bert, strip_sep_token=True), LibraryTokenizer(bert)
    assert stripped.end_id is None
    for text in ("a dog", "a [SEP] dog", "dog " * 40):
        expected = [0 if index == 4 else index for index in rows(plain, [text])[0]]
        assert rows(stripped, [text]) == [expected]
        assert 4 not in expected
    stripped.save(tmp_path)
    again = LibraryTokenizer.load(tmp_path)
    assert again.encode("a [SEP] dog") == stripped.encode("a [SEP] dog")
    assert (again.end_id, again.after) == (None, (0,))
    with pytest.raises(ValueError, match="pass sep_token="):
        LibraryTokenizer({**bert, "post_processor": None}, strip_sep_token=True)
    unframed = LibraryTokenizer(
        {**bert, "post_processor": None}, strip_sep_token=True, sep_token="[MASK]", eos_token="[SEP]"
    )
    assert unframed.encode("[MASK] [SEP]") == [0, 4]


def test_decode_and_normalize(bert: dict, tokenizer: LibraryTokenizer):
    row = tokenizer(["A  dog!", "a photo of a red dog"])[0]
    assert tokenizer.decode(row) == tokenizer.normalize("A  dog!") == "a dog"  # "!" is not in the vocabulary
    assert tokenizer.decode([]) == tokenizer.decode([3, 4]) == ""
    unmarked = LibraryTokenizer({**bert, "added_tokens": []})  # no token is marked as special
    assert unmarked.decode(unmarked(["a dog", "a photo of a dog"])[0]) == "a dog"
    for wrong in (-1, tokenizer.vocab_size, 10**9):
        with pytest.raises(ValueError, match=f"id {wrong} is not in the vocabulary"):
            tokenizer.decode([5, wrong])


def test_lone_surrogates(bert: dict):
    for clean in (None, "lower"):
        tokenizer = LibraryTokenizer(bert, clean=clean)
        assert tokenizer.encode("a \ud800 dog") == tokenizer.encode("a \ufffd dog")
        assert tokenizer.encode("\ud83d\ude00") == tokenizer.encode("😀")


def test_pickle_and_deepcopy(bert: dict):
    tokenizer = LibraryTokenizer(bert, clean="lower", strip_sep_token=True)
    expected = rows(tokenizer, TEXTS)
    for loaded in (pickle.loads(pickle.dumps(tokenizer)), copy.deepcopy(tokenizer)):
        assert rows(loaded, TEXTS) == expected
        assert (
            repr(loaded)
            == repr(tokenizer)
            == f"LibraryTokenizer(WordPiece, vocab_size={loaded.vocab_size}, end_id=None, clean='lower')"
        )


def test_wrong_texts(tokenizer: LibraryTokenizer):
    with pytest.raises(ValueError, match="context_length=2 is too small: 3 is the least"):
        tokenizer(["a"], context_length=2)
    for texts, message in [(["a", None], "caption 1 is of type NoneType"), (7, "caption 0 is of type int")]:
        with pytest.raises(TypeError, match=message):
            tokenizer(texts)
    with pytest.raises(TypeError, match="of type bytes"):
        tokenizer.encode(b"a")


# Tokens that begin, end and pad a row


def template(single: list, tokens: dict[str, int]) -> dict:
    steps = [
        {"Sequence": {"id": "A", "type_id": 0}} if s == "$A" else {"SpecialToken": {"id": s, "type_id": 0}}
        for s in single
    ]
    special = {name: {"id": name, "ids": [index], "tokens": [name]} for name, index in tokens.items()}
    return {"type": "TemplateProcessing", "single": steps, "pair": steps, "special_tokens": special}


OFFSETS = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}
ROBERTA = {
    "type": "RobertaProcessing",
    "sep": ["[SEP]", 4],
    "cls": ["[CLS]", 3],
    "trim_offsets": True,
    "add_prefix_space": False,
}


@pytest.mark.parametrize(
    ("processor", "before", "after", "end"),
    [
        (None, (), (), None),
        (OFFSETS, (), (), None),
        (ROBERTA, (3,), (4,), 4),
        ({"type": "BertProcessing", "sep": ["[SEP]", 4], "cls": ["[CLS]", 3]}, (3,), (4,), 4),
        (template(["$A", "[SEP]"], {"[SEP]": 4}), (), (4,), 4),
        (template(["[CLS]", "$A"], {"[CLS]": 3}), (3,), (), None),
        (template(["$A", "[SEP]", "[CLS]"], {"[SEP]": 4, "[CLS]": 3}), (), (4, 3), 4),  # like NLLB
        ({"type": "Sequence", "processors": [OFFSETS, ROBERTA]}, (3,), (4,), 4),
        ({"type": "Sequence", "processors": [ROBERTA, template(["$A", "[MASK]"], {"[MASK]": 5})]}, (3,), (4, 5), 4),
    ],
)  # fmt: skip
def test_tokens_around_a_row(bert: dict, tmp_path: Path, processor, before, after, end):
    data = {**bert, "post_processor": processor}
    tokenizer = LibraryTokenizer(data, pad_token="[PAD]")
    assert (tokenizer.before, tokenizer.after, tokenizer.end_id) == (before, after, end)
    assert tokenizer.start_id == (before[0] if before else None)
    library = tokenizers.Tokenizer.from_str(json.dumps(data))
    assert tokenizer("a photo")[0].tolist() == library.encode("a photo").ids
    tokenizer.save(tmp_path)
    again = LibraryTokenizer.load(tmp_path)
    assert (again.before, again.after, again.end_id) == (before, after, end)


def test_end_token(bert: dict, tmp_path: Path):
    assert LibraryTokenizer(bert).end_id == 4
    assert LibraryTokenizer(bert, {"eos_token": {"content": "[MASK]", "lstrip": False}}).end_id == 5
    assert LibraryTokenizer(bert, {"eos_token": "</s>"}).end_id == 4  # not in the vocabulary
    tokenizer = LibraryTokenizer(bert, {"eos_token": "[CLS]"}, eos_token="[MASK]")
    assert tokenizer.end_id == 5
    for data in (bert, {**bert, "post_processor": None}):
        tokenizer = LibraryTokenizer(data, eos_token="[MASK]")
        tokenizer.save(tmp_path)
        again = LibraryTokenizer.load(tmp_path)
        assert again.end_id == 5
        assert rows(again, TEXTS) == rows(tokenizer, TEXTS)
    with pytest.raises(ValueError, match=r"eos_token='</s>' is not in the vocabulary"):
        LibraryTokenizer(bert, eos_token="</s>")


def test_padding_token(bert: dict):
    section = {
        "strategy": "BatchLongest",
        "direction": "Left",
        "pad_to_multiple_of": None,
        "pad_id": 5,
        "pad_type_id": 0,
    }
    padded = {**bert, "padding": {**section, "pad_token": "[MASK]"}}
    unknown = {**bert, "padding": {**section, "pad_token": "unknown"}}
    assert LibraryTokenizer(bert).pad_id == 0
    assert LibraryTokenizer(padded).pad_id == LibraryTokenizer(unknown).pad_id == 5
    assert LibraryTokenizer(padded).pad_left
    assert LibraryTokenizer(padded, {"pad_token": "[CLS]", "padding_side": "right"}).pad_id == 3
    assert not LibraryTokenizer(padded, {"padding_side": "right"}).pad_left
    assert LibraryTokenizer(padded, {"pad_token": "[CLS]"}, pad_token="[SEP]").pad_id == 4
    vocab = {
        "a" if token == "[PAD]" else token + "a" * (token == "a"): i for token, i in bert["model"]["vocab"].items()
    }
    unpadded = {**bert, "added_tokens": [], "model": {**bert["model"], "vocab": vocab}}
    assert LibraryTokenizer(unpadded).pad_id == 4  # the end token
    with pytest.raises(CheckpointError, match="pass pad_token="):
        LibraryTokenizer({**unpadded, "post_processor": None})
    with pytest.raises(CheckpointError, match="'<pad>' is not in the vocabulary"):
        LibraryTokenizer(bert, {"pad_token": "<pad>"})
    with pytest.raises(ValueError, match="pad_token='<pad>' is not in the vocabulary"):
        LibraryTokenizer(bert, pad_token="<pad>")


# Files and errors


def test_wrong_options(bert: dict, tmp_path: Path):
    (tmp_path / "tokenizer.json").write_text(json.dumps(bert), encoding="utf-8")
    with pytest.raises(ValueError, match="clean='upper' is not one of the choices: whitespace, lower, canonicalize"):
        LibraryTokenizer.load(tmp_path, clean="upper")
    with pytest.raises(ValueError, match="padding_side='top'"):
        LibraryTokenizer.load(tmp_path, padding_side="top")
    with pytest.raises(TypeError, match="'language' is not an option"):
        LibraryTokenizer.load(tmp_path, language="de")  # type: ignore[call-arg]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "damaged"),
        (b"\x80\x81", "damaged"),
        (b'{"model": {', "damaged"),
        (b"[1, 2]", "not a tokenizer.json"),
        (b"#version: 0.2\na b\n", "not a tokenizer.json"),
        (b'{"version": "1.0"}', "not a tokenizer.json"),
        (b'{"model": 3}', "its model has no vocabulary"),
        (b'{"model": {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}, "truncation": 3}', "damaged"),
        (b'{"model": {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}}', "no padding token"),
    ],
)
def test_damaged_files(tmp_path: Path, content: bytes, message: str):
    file = tmp_path / "tokenizer.json"
    file.write_bytes(content)
    with pytest.raises(CheckpointError, match=message) as error:
        LibraryTokenizer.load(tmp_path)
    assert str(file) in str(error.value)
    assert "\n" not in str(error.value)


def test_odd_configurations(bert: dict, tmp_path: Path):
    (tmp_path / "tokenizer.json").write_text(json.dumps(bert), encoding="utf-8")
    for content, message in [
        ("{", "tokenizer_config.json: damaged"),
        ("[]", "tokenizer_config.json: damaged"),
        ('{"truncation_side": "left"}', "expected a tokenizer that cuts at their end"),
    ]:
        (tmp_path / "tokenizer_config.json").write_text(content)
        with pytest.raises(CheckpointError, match=message):
            LibraryTokenizer.load(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"expected a tokenizer\.json"):
        LibraryTokenizer.load(tmp_path / "nowhere")


def test_a_failing_write_leaves_the_old_file(tokenizer: LibraryTokenizer, tmp_path: Path, monkeypatch):
    (tmp_path / "tokenizer.json").write_text("old")

    def fail(*args: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        tokenizer.save(tmp_path)
    assert [file.read_text() for file in tmp_path.iterdir()] == ["old"]


def test_without_the_library(bert: dict, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(ImportError, match=r'pip install "miniclip\[tokenizers\]"'):
        LibraryTokenizer(bert)


def test_the_library_is_imported_lazily(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "tokenizers", None)  # makes an import fail
    spec = importlib.util.spec_from_file_location("fresh", module.__file__)
    spec.loader.exec_module(importlib.util.module_from_spec(spec))
