"""Batches from cached chunks have the ids of `encode`."""

import importlib.util
import pickle
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from miniclip.tokenizer import Tokenizer, chunk_cache

FUZZ = settings(deadline=None, derandomize=True, max_examples=300)

CAPTIONS = [
    "A small red bicycle leans against the wall of a bakery.",
    "Two dogs don't share their ball; they're running, and we've lost it!",
    "A café in Zürich, über-modern, serves crème brûlée for 4.50€",
    "the women’s “blue” house — the men’s too…",
    "ΟΔΥΣΣΕΥΣ sails home, Σίσυφος rolls a stone",
    "一只猫坐在红色的沙发上，二匹の犬が走る。",
    "family 👨‍👩‍👧‍👦, flags 🇫🇷🇯🇵, thumbs 👍🏽 and a ❤️",
    "fish &amp; chips, R&B & C++ <b>bold</b> &lt;3 &NTILDE;",
    "itâ€™s a cafÃ© with â€œquotesâ€\x9d, Ã  la carte",
    "tabs\tand\nnew lines\r\n and  odd\u2003spaces\u00a0here\u3000there\x85gone\x1cfield\x0bfeed\u200bzero",
    "\x1b[31mred\x1b[0m, nul\x00, e\u0301te\u0301, ﬁne ｆｕｌｌ, \ud83d\ude00 and \ud800",
    "",
    "   ",
]
# Characters and strings that ftfy, html or the splitting into words handle specially.
PARTS = [
    *" \n\r\t\x0b\x0c\x1c\x85\xa0\u2003\u2028\u3000\u200d\ufe0f\ufeff\x00\x1b",
    *"aZÀéœŒßÂÃâ€™œ¨¦°²½©®«»¡¿‘’“”„†€£¥ΓÎРВГΣσ'sş，Ａﾊﾞﬁŉſ\u0345\u0301\u0308\u212a",
    *["&", "&amp;", "&lt;", "&#39;", "&NTILDE;", "<", ";", "dog", "the ", " cat", "'s", "<|endoftext|>", "</w>"],
    *["â€™", "Ã©", "ðŸ˜€", "é’", "中文", "\ud83d", "\ude00", "😀", "\x1b[0m", " Â ", "Ã "],
]
texts = st.lists(st.sampled_from(PARTS) | st.characters(exclude_categories=()), max_size=20).map("".join)


@pytest.fixture(scope="module", params=[False, True], ids=["trained", "openai_cleaning"])
def tokenizer(request) -> Tokenizer:
    learned = Tokenizer.train(CAPTIONS * 2, 800)
    return Tokenizer(learned.vocab, learned.merges, openai_cleaning=request.param)


@pytest.fixture(scope="module")
def openai() -> Tokenizer:
    spec = importlib.util.find_spec("open_clip")
    if spec is None or spec.origin is None:
        pytest.skip("open_clip, which has OpenAI's merges, is not installed")
    return Tokenizer.load(Path(spec.origin).with_name("bpe_simple_vocab_16e6.txt.gz"))


def encode_batch(tokenizer: Tokenizer, texts: list[str], length: int) -> list[list[int]]:
    """Return the rows of a batch from `encode`, padded to the longest."""
    cut = [[tokenizer.start_id, *tokenizer.encode(text)[: length - 2], tokenizer.end_id] for text in texts]
    return [row + [0] * (max(map(len, cut)) - len(row)) for row in cut]


def batch(tokenizer: Tokenizer, texts: list[str], length: int = 77) -> list[list[int]]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return tokenizer(texts, context_length=length).tolist()


@given(st.lists(texts, min_size=1, max_size=3), st.integers(3, 40))
@FUZZ
def test_any_text(tokenizer: Tokenizer, captions: list[str], length: int):
    expected = encode_batch(tokenizer, captions, length)
    assert batch(tokenizer, captions, length) == expected
    assert batch(tokenizer, captions, length) == expected  # from the cache


@given(st.lists(texts, min_size=1, max_size=3))
@settings(FUZZ, max_examples=100)
def test_any_text_with_openai_vocabulary(openai: Tokenizer, captions: list[str]):
    assert batch(openai, captions) == encode_batch(openai, captions, 77)


def test_captions(tokenizer: Tokenizer):
    for texts in (CAPTIONS, CAPTIONS[::-1], [" ".join(CAPTIONS)], [caption + "\n" for caption in CAPTIONS]):
        assert batch(tokenizer, texts) == encode_batch(tokenizer, texts, 77)


def test_long_texts(tokenizer: Tokenizer):
    long = [(unit * 60_000)[:1_000_010] for unit in ("café ", "e\u0301", "one two\n")]
    for text in [*long, "x" * 200_000]:
        assert batch(tokenizer, [text], 10**7) == encode_batch(tokenizer, [text], 10**7)
    assert all(len(chunk) <= chunk_cache.MAX_CHUNK_LENGTH for chunk in tokenizer._chunk_cache)


def test_cut_captions_warn_and_are_counted(tokenizer: Tokenizer):
    fresh = Tokenizer(tokenizer.vocab, tokenizer.merges, openai_cleaning=tokenizer.openai_cleaning)
    with pytest.warns(UserWarning, match="a caption of 9 tokens"):
        rows = fresh(["1 2 3 4 5 6 7", "1 2", "é 1 2 3 4 &amp;"], context_length=6)
    assert fresh.truncated == 2
    assert rows.shape == (3, 6)
    assert rows[0].tolist() == [fresh.start_id, *fresh.encode("1 2 3 4"), fresh.end_id]


def test_cache_size_is_bounded(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(chunk_cache, "MAX_CHUNKS", 10)
    small = pickle.loads(pickle.dumps(tokenizer))
    for _ in range(2):
        assert batch(small, CAPTIONS) == encode_batch(tokenizer, CAPTIONS, 77)
        assert len(small._chunk_cache) == 10


def test_batches_do_not_share_memory(tokenizer: Tokenizer):
    first = tokenizer(CAPTIONS, pad=True)
    copy = first.clone()
    second = tokenizer(CAPTIONS, pad=True)
    second += 1
    assert first.equal(copy)
    assert tokenizer(CAPTIONS, pad=True).equal(copy)


def test_copies_and_threads(tokenizer: Tokenizer):
    expected = encode_batch(tokenizer, CAPTIONS, 77)
    loaded = pickle.loads(pickle.dumps(tokenizer))
    assert not loaded._chunk_cache  # keeps messages to worker processes small
    assert len(pickle.dumps(tokenizer)) == len(pickle.dumps(loaded))
    with ThreadPoolExecutor(8) as pool:
        assert all(rows == expected for rows in pool.map(lambda _: batch(loaded, CAPTIONS), range(64)))
