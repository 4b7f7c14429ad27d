"""A batch, made of chunks that are remembered, has the ids that `encode` gives caption by caption."""

import importlib.util
import pickle
import random
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from miniclip.tokenizer import Tokenizer, chunks
from miniclip.tokenizer.bpe import WORD_END, _join_long, byte_symbols, index_merges, join, vocabulary

FUZZ = settings(deadline=None, derandomize=True, max_examples=1_000)

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
# What a caption may have of which ftfy, html or the splitting of words takes notice, alone and beside each other.
PARTS = [
    *" \n\r\t\x0b\x0c\x1c\x85\xa0\u2003\u2028\u3000\u200d\ufe0f\ufeff\x00\x1b",
    *"aZÀéœŒßÂÃâ€™œ¨¦°²½©®«»¡¿‘’“”„†€£¥ΓÎРВГΣσ'sş，Ａﾊﾞﬁŉſ\u0345\u0301\u0308\u212a",
    *["&", "&amp;", "&lt;", "&#39;", "&NTILDE;", "<", ";", "dog", "the ", " cat", "'s", "<|endoftext|>", "</w>"],
    *["â€™", "Ã©", "ðŸ˜€", "é’", "中文", "\ud83d", "\ude00", "😀", "\x1b[0m", " Â ", "Ã "],
]
texts = st.lists(st.sampled_from(PARTS) | st.characters(exclude_categories=()), max_size=20).map("".join)


@pytest.fixture(scope="module", params=[False, True], ids=["trained", "mended"])
def tokenizer(request) -> Tokenizer:
    learned = Tokenizer.train(CAPTIONS * 2, 800)
    return Tokenizer(learned.vocab, learned.merges, openai_cleaning=request.param)


@pytest.fixture(scope="module")
def openai() -> Tokenizer:
    spec = importlib.util.find_spec("open_clip")
    if spec is None or spec.origin is None:
        pytest.skip("open_clip is not installed: no file of OpenAI's merges")
    return Tokenizer.load(Path(spec.origin).with_name("bpe_simple_vocab_16e6.txt.gz"))


def plain(tokenizer: Tokenizer, texts: list[str], length: int) -> list[list[int]]:
    """The batch's rows by the plain way, padded to the longest."""
    cut = [[tokenizer.start_id, *tokenizer.encode(text)[: length - 2], tokenizer.end_id] for text in texts]
    return [row + [0] * (max(map(len, cut)) - len(row)) for row in cut]


def batch(tokenizer: Tokenizer, texts: list[str], length: int = 77) -> list[list[int]]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return tokenizer(texts, context_length=length).tolist()


@given(st.lists(texts, min_size=1, max_size=3), st.integers(3, 40))
@FUZZ
def test_any_text(tokenizer: Tokenizer, found: list[str], length: int):
    expected = plain(tokenizer, found, length)
    assert batch(tokenizer, found, length) == expected
    assert batch(tokenizer, found, length) == expected  # from what is remembered


@given(st.lists(texts, min_size=1, max_size=3))
@settings(FUZZ, max_examples=300)
def test_any_text_with_openais_vocabulary(openai: Tokenizer, found: list[str]):
    assert batch(openai, found) == plain(openai, found, 77)


def test_captions(tokenizer: Tokenizer):
    for texts in (CAPTIONS, CAPTIONS[::-1], [" ".join(CAPTIONS)], [caption + "\n" for caption in CAPTIONS]):
        assert batch(tokenizer, texts) == plain(tokenizer, texts, 77)


def test_long_texts(tokenizer: Tokenizer):
    long = [(unit * 60_000)[:1_000_010] for unit in ("café ", "e\u0301", "one two\n")]
    for text in [*long, "x" * 200_000]:
        assert batch(tokenizer, [text], 10**7) == plain(tokenizer, [text], 10**7)
    assert all(len(chunk) <= chunks._KEPT_LENGTH for chunk in tokenizer._chunks)


def test_cut_captions_are_counted_and_said(tokenizer: Tokenizer):
    fresh = Tokenizer(tokenizer.vocab, tokenizer.merges, openai_cleaning=tokenizer.openai_cleaning)
    with pytest.warns(UserWarning, match="a caption of 9 tokens"):
        rows = fresh(["1 2 3 4 5 6 7", "1 2", "é 1 2 3 4 &amp;"], context_length=6)
    assert fresh.truncated == 2
    assert rows.shape == (3, 6)
    assert rows[0].tolist() == [fresh.start_id, *fresh.encode("1 2 3 4"), fresh.end_id]


def test_memory_is_bounded(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(chunks, "_KEPT", 10)
    small = pickle.loads(pickle.dumps(tokenizer))
    for _ in range(2):
        assert batch(small, CAPTIONS) == plain(tokenizer, CAPTIONS, 77)
        assert len(small._chunks) == 10


def test_the_tensor_is_the_callers(tokenizer: Tokenizer):
    first = tokenizer(CAPTIONS, pad=True)
    kept = first.clone()
    second = tokenizer(CAPTIONS, pad=True)
    second += 1
    assert first.equal(kept)
    assert tokenizer(CAPTIONS, pad=True).equal(kept)


def test_copies_and_threads(tokenizer: Tokenizer):
    expected = plain(tokenizer, CAPTIONS, 77)
    twin = pickle.loads(pickle.dumps(tokenizer))
    assert not twin._chunks  # what a worker is sent stays small
    assert len(pickle.dumps(tokenizer)) == len(pickle.dumps(twin))
    with ThreadPoolExecutor(8) as pool:
        assert all(rows == expected for rows in pool.map(lambda _: batch(twin, CAPTIONS), range(64)))


# Joining


def test_long_and_short_words_are_joined_alike():
    rng = random.Random(0)
    symbols = ["a", "b", "c", "a" + WORD_END]
    for _ in range(200):
        merges, tokens = [], list(symbols)
        for _ in range(12):  # any list of merges, of which some make the same token, or use one made only later
            pair = (rng.choice([t for t in tokens if not t.endswith(WORD_END)]), rng.choice(tokens))
            if pair not in merges:
                merges.append(pair)
                tokens.append("".join(pair))
        rng.shuffle(merges)
        table = index_merges(merges, vocabulary(merges))
        ids = [vocabulary(merges)[symbol] for symbol in rng.choices(symbols[:3], k=rng.randint(0, 30))]
        assert join(ids, table) == _join_long(ids, table)


def test_every_token_of_openais_is_what_its_bytes_join_to(openai: Tokenizer):
    """So a word that is a token needs no joining."""
    byte_of = {symbol: byte for byte, symbol in byte_symbols().items()}
    for token, index in list(openai.vocab.items())[:-2]:
        data = [byte_of[symbol] for symbol in token.removesuffix(WORD_END)]
        last = openai._last if token.endswith(WORD_END) else openai._inner
        assert join([*(openai._inner[byte] for byte in data[:-1]), last[data[-1]]], openai._merges) == [index]


def test_only_of_openais_merges_is_that_known(openai: Tokenizer, tokenizer: Tokenizer):
    assert openai._whole
    assert not tokenizer._whole
    swapped = [*openai.merges[1:], openai.merges[0]]
    assert not Tokenizer(openai.vocab, swapped)._whole
