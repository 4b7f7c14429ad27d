"""Relevance of words of a trained toy model: the words that it names first carry the similarity."""

import pytest
import torch

from miniclip.data import Shapes
from miniclip.explanation import explain, word_faithfulness
from miniclip.explanation.word_relevance import explain_words, tokens_of, without_words
from miniclip.losses.reference import contrastive_loss
from tests.toys import CONFIG, make_model

TEXT_TOWERS = {
    "masked, first": {"causal": False, "padding": "masked", "pooling": "first"},
    "causal, end": {"causal": True, "padding": "masked", "pooling": "end"},
}


@pytest.fixture(scope="module", params=TEXT_TOWERS)
def trained(request, tokenizer):
    """Toy model after 80 steps on shapes, of each kind of text tower."""
    model = make_model(tokenizer, text=CONFIG.replace_text(**TEXT_TOWERS[request.param]).text)
    data = Shapes("train", 256, image_size=16)
    pixels = torch.stack([model.preprocess(data[index][0]) for index in range(len(data))])
    tokens = tokenizer([data[index][1][0] for index in range(len(data))])
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    generator = torch.Generator().manual_seed(0)
    for _ in range(80):
        rows = torch.randperm(len(data), generator=generator)[:64]
        out = model(pixels[rows], tokens[rows])
        loss = contrastive_loss(out.image_embeddings, out.text_embeddings, out.logit_scale)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


@pytest.fixture(scope="module")
def pairs():
    data = Shapes("test", 48, image_size=16)
    return [data[index][0] for index in range(48)], [data[index][1][0] for index in range(48)]


def test_relevant_words_carry_the_similarity(trained, pairs):
    scores = {method: word_faithfulness(trained, *pairs, method) for method in ("legrad", "random")}
    assert scores["legrad"].deletion < scores["random"].deletion - 0.05
    assert scores["legrad"].insertion > scores["random"].insertion + 0.05


def test_curves_start_and_end_at_the_complete_text_or_no_word(trained, pairs):
    for method in ("legrad", "grad_eclip", "random"):
        scores = word_faithfulness(trained, pairs[0][:4], pairs[1][:4], method)
        assert scores.deletion_curve[0] == pytest.approx(float(scores.insertion_curve[-1]), abs=1e-5)
        assert scores.deletion_curve[-1] == pytest.approx(float(scores.insertion_curve[0]), abs=1e-5)


def test_a_text_without_words_is_the_text_of_the_others(trained):
    text = "a red circle above a blue square"
    row = tokens_of(trained, text)[0]
    words = explain_words(trained, text, trained.encode_text("a red circle"), "legrad")
    shorter = without_words(trained.tokenizer, row, [word for word in words if word.text in ("red", "blue")])
    expected = tokens_of(trained, "a circle above a square")[0]
    assert shorter[: len(expected)].tolist() == expected.tolist()
    assert shorter.shape == row.shape
    assert not shorter[len(expected) :].any()


def test_nan_embeddings_are_refused(tokenizer, pairs):
    model = make_model(tokenizer)
    with torch.no_grad():
        model.image.projection.weight[0] = torch.nan
    with pytest.raises(ValueError, match="NaN or infinite; the model cannot be explained"):
        explain(model, pairs[0][0], pairs[1][0])
