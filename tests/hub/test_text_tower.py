"""Longer captions for a loaded model, and tokenizers that do not belong to pretrained weights."""

import dataclasses
import warnings

import pytest
import torch

from miniclip.hub import fresh, load, save
from miniclip.hub.text_tower import OPENAI_IDS, SENTENCES, ids_digest, stretched
from miniclip.tokenizer import Tokenizer
from tests.toys import CONFIG, TEXT_KINDS, make_model

SHORT, LONG = "a red circle", " ".join(["a red circle above a blue square"] * 20)


@pytest.fixture(params=[kind for kind in TEXT_KINDS if kind != "siglip"])
def saved(request, toy_tokenizer, tmp_path):
    """A checkpoint with a text tower that masks padding."""
    text = dataclasses.replace(CONFIG.text, end_id=-1, **TEXT_KINDS[request.param])
    save(make_model(toy_tokenizer, text=text), tmp_path / "model")
    return tmp_path / "model"


def test_positions_are_those_of_long_clip():
    """Zhang et al. 2024: 20 positions are kept, and each of the others becomes four, by linear interpolation."""
    old = torch.randn(77, 5, dtype=torch.float64)
    expected = torch.zeros(248, 5, dtype=torch.float64)
    expected[:20] = old[:20]
    for i in range(20, 76):
        for k in range(4):
            expected[20 + 4 * (i - 20) + k] = (4 - k) / 4 * old[i] + k / 4 * old[i + 1]
    for k in range(4):
        expected[244 + k] = old[76] + k / 4 * (old[76] - old[75])
    torch.testing.assert_close(stretched(old, 248), expected)


def test_longer_context_keeps_short_captions_and_reads_long_ones(saved, tmp_path):
    model = load(saved)
    with pytest.warns(UserWarning, match="the positions 21 to 77 of the text tower were stretched to 248"):
        longer = load(saved, context_length=248)
    assert longer.config.text.context_length == len(longer.text.positions) == 248
    torch.testing.assert_close(longer.encode_text(SHORT), model.encode_text(SHORT))
    other = LONG.replace("blue square", "green ring")
    assert LONG[:300] != other[:300]
    cut, ending = LONG + " a dog", LONG + " a red circle a blue square"
    assert torch.equal(model.encode_text(cut), model.encode_text(ending))
    assert not torch.equal(longer.encode_text(cut), longer.encode_text(ending))
    save(longer, tmp_path / "longer")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = load(tmp_path / "longer")
    assert torch.equal(again.encode_text(cut), longer.encode_text(cut))


def test_shorter_context_takes_the_first_positions(saved):
    shorter = load(saved, context_length=24)
    assert shorter.config.text.context_length == 24
    torch.testing.assert_close(shorter.encode_text(SHORT), load(saved).encode_text(SHORT))


def test_tower_that_attends_to_padding_is_refused(toy_tokenizer, tmp_path):
    text = dataclasses.replace(CONFIG.text, end_id=-1, **TEXT_KINDS["siglip"])
    save(make_model(toy_tokenizer, text=text), tmp_path / "model")
    with pytest.raises(ValueError, match="attends to padding"):
        load(tmp_path / "model", context_length=248)


@pytest.mark.parametrize(("length", "error"), [("248", TypeError), (2, ValueError), (True, TypeError)])
def test_refuses_other_lengths(length, error, toy_tokenizer, tmp_path):
    save(make_model(toy_tokenizer), tmp_path / "model")
    with pytest.raises(error, match="context_length"):
        load(tmp_path / "model", context_length=length)


def test_too_few_positions_are_refused(toy_tokenizer, toy_config, tmp_path):
    save(fresh(toy_config, toy_tokenizer), tmp_path / "model")
    with pytest.raises(ValueError, match="has 12 positions"):
        load(tmp_path / "model", context_length=30)


def test_fresh_preset_has_the_context():
    assert load("bert_vit_tiny", pretrained=False, context_length=32).config.text.context_length == 32


def test_tokenizer_with_other_words_is_refused(toy_tokenizer, tmp_path):
    """Size and end token are equal, so that only the ids show that the words are others."""
    save(make_model(toy_tokenizer), tmp_path / "model")
    captions = ["photographs of cats and dogs in the other languages of people"] * 3
    other = Tokenizer.train(captions, toy_tokenizer.vocab_size)
    assert other.end_id == toy_tokenizer.end_id
    with pytest.raises(ValueError, match="belong to other words"):
        load(tmp_path / "model", tokenizer=other)
    assert load(tmp_path / "model", tokenizer=toy_tokenizer).tokenizer is toy_tokenizer


def test_ids_of_openai_are_those_of_open_clip():
    open_clip = pytest.importorskip("open_clip")
    whole = open_clip.get_tokenizer("ViT-B-32")

    def tokenizer(text, context_length):
        return whole(text, context_length)[:, : len(whole.encode(text)) + 2]

    assert ids_digest(tokenizer) == OPENAI_IDS
    assert (
        ids_digest(lambda text, context_length: tokenizer(text.replace("zebra", "sofa"), context_length)) != OPENAI_IDS
    )


class Renamed:
    """A tokenizer of another kind, which exchanges the ids of some words."""

    def __init__(self, tokenizer, ids):
        self.tokenizer, self.ids = tokenizer, ids
        self.vocab_size, self.end_id = tokenizer.vocab_size, tokenizer.end_id

    def __call__(self, texts, context_length=77, pad=False):
        """Tokenize texts."""
        rows = self.tokenizer(texts, context_length, pad)
        return rows.apply_(lambda i: self.ids.get(i, i))


def test_one_word_with_another_id_is_found(toy_tokenizer, tmp_path):
    """The word is in no sentence of the check."""
    used = {i for sentence in SENTENCES for i in toy_tokenizer(sentence)[0].tolist()}
    free = [i for i in range(512, toy_tokenizer.end_id - 1) if i not in used and toy_tokenizer.decode([i]).isalpha()]
    words = [i for i in free if toy_tokenizer(toy_tokenizer.decode([i]))[0].tolist()[1:-1] == [i]]
    save(make_model(toy_tokenizer), tmp_path / "model")
    exchanged = {words[0]: words[1], words[1]: words[0]}
    with pytest.raises(ValueError, match=f"{toy_tokenizer.decode([words[0]])!r} is .* belong to other words"):
        load(tmp_path / "model", tokenizer=Renamed(toy_tokenizer, exchanged))
    assert load(tmp_path / "model", tokenizer=Renamed(toy_tokenizer, {})).tokenizer.ids == {}
