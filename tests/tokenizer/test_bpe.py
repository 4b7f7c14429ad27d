"""Byte-level BPE: a worked example, and the fast form against the specification."""

import importlib.util
import random
import time
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from miniclip.tokenizer import Tokenizer, bpe, fast_bpe
from miniclip.tokenizer.bpe import WORD_END, byte_symbols, vocabulary
from miniclip.tokenizer.cleaning import clean
from miniclip.tokenizer.clip import WORDS
from tests.tokenizer.test_clip import SAMPLE

FUZZ = settings(deadline=None, derandomize=True, max_examples=100)


@pytest.fixture(scope="module")
def trained() -> Tokenizer:
    return Tokenizer.train(SAMPLE * 2, 900)


@pytest.fixture(scope="module")
def openai() -> Tokenizer:
    spec = importlib.util.find_spec("open_clip")
    if spec is None or spec.origin is None:
        pytest.skip("open_clip, which has OpenAI's merges, is not installed")
    return Tokenizer.load(Path(spec.origin).with_name("bpe_simple_vocab_16e6.txt.gz"))


def count_words(captions: list[str]) -> Counter[str]:
    return Counter(word for caption in captions for word in WORDS.findall(clean(caption)))


def test_spelling():
    assert bpe.spell("low") == ["l", "o", "w</w>"]
    assert bpe.spell("é") == ["Ã", "©</w>"]
    assert len(set(byte_symbols().values())) == 256


def test_worked_example():
    words = Counter({"low": 5, "lower": 2, "newest": 6, "widest": 3})
    expected = "e s, es t</w>, l o, e w, ew est</w>, n ewest</w>, lo w</w>, d est</w>, i dest</w>, w idest</w>"
    merges = [tuple(pair.split()) for pair in expected.split(", ")]
    for module in (bpe, fast_bpe):
        assert module.learn_merges(words, 10) == merges
    ranks = {pair: rank for rank, pair in enumerate(merges)}
    assert bpe.apply_merges(bpe.spell("lowest"), ranks) == ["lo", "w", "est</w>"]


def test_fast_training_equals_the_specification():
    rng = random.Random(0)
    syllables = ["".join(rng.choice("ab") for _ in range(rng.randint(1, 9))) for _ in range(60)]
    for captions in (SAMPLE * 2, [" ".join(rng.choices(syllables, k=8)) for _ in range(40)]):
        words = count_words(captions)
        merges = bpe.learn_merges(words, 150)
        assert fast_bpe.learn_merges(words, 150) == merges
        assert Tokenizer.train(captions, 514 + 150).merges == merges


@given(st.text("aehinort ", max_size=60) | st.sampled_from(SAMPLE))
@FUZZ
def test_encoding_equals_the_specification(trained: Tokenizer, text: str):
    ranks = {pair: rank for rank, pair in enumerate(trained.merges)}
    tokens = [token for word in WORDS.findall(clean(text)) for token in bpe.apply_merges(bpe.spell(word), ranks)]
    assert trained.encode(text) == [trained.vocab[token] for token in tokens]


def test_encoding_equals_every_merge_in_turn(trained: Tokenizer):
    for text in SAMPLE:
        ids = []
        for word in WORDS.findall(clean(text)):
            spelled = bpe.spell(word)
            for pair in trained.merges:
                spelled = bpe.join_pair(spelled, pair)
            ids += [trained.vocab[token] for token in spelled]
        assert trained.encode(text) == ids


def test_long_and_short_words_are_merged_alike():
    rng = random.Random(0)
    symbols = ["a", "b", "c", "a" + WORD_END]
    for _ in range(200):
        merges, tokens = [], list(symbols)
        for _ in range(12):  # any merges; some make the same token, or use one that a later merge makes
            pair = (rng.choice([t for t in tokens if not t.endswith(WORD_END)]), rng.choice(tokens))
            if pair not in merges:
                merges.append(pair)
                tokens.append("".join(pair))
        rng.shuffle(merges)
        table = fast_bpe.merge_table(merges, vocabulary(merges))
        ids = [vocabulary(merges)[symbol] for symbol in rng.choices(symbols[:3], k=rng.randint(0, 30))]
        assert fast_bpe.apply_merges(ids, table) == fast_bpe.apply_merges_to_long_word(ids, table)


def test_bytes_of_every_openai_token_merge_to_it(openai: Tokenizer):
    """Words that are tokens of OpenAI's vocabulary need no merging."""
    byte_of = {symbol: byte for byte, symbol in byte_symbols().items()}
    for token, index in list(openai.vocab.items())[:-2]:
        data = [byte_of[symbol] for symbol in token.removesuffix(WORD_END)]
        last = openai._last_ids if token.endswith(WORD_END) else openai._inner_ids
        ids = [*(openai._inner_ids[byte] for byte in data[:-1]), last[data[-1]]]
        assert fast_bpe.apply_merges(ids, openai._merge_table) == [index]


def test_only_openai_merges_skip_merging(openai: Tokenizer, trained: Tokenizer):
    assert openai._whole_words
    assert not trained._whole_words
    swapped = [*openai.merges[1:], openai.merges[0]]
    assert not Tokenizer(openai.vocab, swapped)._whole_words


def test_training_on_many_captions_takes_seconds():
    rng = random.Random(2)
    words = ["".join(rng.choice("etaoinshrdlu") for _ in range(rng.randint(2, 9))) for _ in range(8_000)]
    captions = [" ".join(rng.choices(words, k=9)) for _ in range(30_000)] + ["x" * 1_000_000]
    start = time.process_time()
    assert Tokenizer.train(captions, 8_192).vocab_size == 8_192
    assert time.process_time() - start < 30  # about two seconds; the specification takes hours
