"""Text tower: tokens after the end token never matter, so a batch may be cut at its longest text."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from miniclip.config import TextConfig
from miniclip.fast import accelerate
from miniclip.fast.towers import trim
from miniclip.models.init import initialise
from miniclip.models.text import TextTransformer, sequence_lengths

START, END, VOCAB, CONTEXT = 18, 19, 20, 12
TOWERS = {
    "causal": TextConfig(CONTEXT, VOCAB, 16, 2, 2, activation="quickgelu", causal=True, pooling="end"),
    "bert": TextConfig(CONTEXT, VOCAB, 16, 2, 2),
    "bidirectional-end": TextConfig(CONTEXT, VOCAB, 16, 2, 2, pooling="end"),
}
towers = st.sampled_from(list(TOWERS))
seeds = st.integers(0, 2**32 - 1)
captions = st.lists(st.lists(st.integers(0, START - 1), max_size=CONTEXT - 2), min_size=1, max_size=4)


def tower(kind: str) -> TextTransformer:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = TextTransformer(TOWERS[kind], 8).eval()
        initialise(model)
        for parameter in (model.tokens.weight, model.positions):  # or all captions look alike to it
            torch.nn.init.normal_(parameter)
    return model.requires_grad_(False)


MODELS = {kind: tower(kind) for kind in TOWERS}
FAST = {kind: accelerate(tower(kind)) for kind in TOWERS}


def batch(words: list[list[int]], width: int = CONTEXT, padding: int = 0) -> Tensor:
    """Start, words, end, padding."""
    rows = torch.full((len(words), width), padding)
    for row, ids in zip(rows, words, strict=True):
        row[: len(ids) + 2] = torch.tensor([START, *ids, END])
    return rows


def test_lengths_by_hand():
    tokens = torch.tensor(
        [[18, 3, 19, 0, 0], [18, 19, 0, 19, 0], [18, 1, 2, 3, 4], [19, 0, 0, 0, 0], [18, 0, 0, 0, 19]]
    )
    assert sequence_lengths(tokens, 19).tolist() == [3, 2, 5, 1, 5]
    assert sequence_lengths(tokens, 19).dtype == torch.int64


def test_trim_by_hand():
    tokens = torch.tensor([[18, 3, 19, 0, 0], [18, 19, 0, 19, 0]])
    assert trim(tokens, 19).tolist() == [[18, 3, 19], [18, 19, 0]]
    assert trim(tokens[1:], 19).tolist() == [[18, 19]]
    assert trim(torch.tensor([[18, 19], [18, 3]]), 19).tolist() == [[18, 19], [18, 3]]  # a row without an end
    assert trim(torch.empty(0, 5, dtype=torch.int64), 19).shape == (0, 5)


@given(st.lists(st.lists(st.integers(0, 3), min_size=6, max_size=6), min_size=1, max_size=5))
def test_lengths_and_trim_are_plain_python(rows):
    expected = [row.index(3) + 1 if 3 in row else 6 for row in rows]
    assert sequence_lengths(torch.tensor(rows), 3).tolist() == expected
    assert trim(torch.tensor(rows), 3).tolist() == [row[: max(expected)] for row in rows]


@given(towers, captions)
def test_cutting_at_the_longest_caption_is_exact(kind, words):
    model, tokens = MODELS[kind], batch(words)
    full = model(tokens)
    assert full.shape == (len(words), 8)
    torch.testing.assert_close(model(trim(tokens, END)), full, rtol=0, atol=1e-6)
    torch.testing.assert_close(FAST[kind](tokens), full, rtol=0, atol=1e-6)


@given(towers, captions, seeds)
def test_content_after_the_end_never_matters(kind, words, seed):
    model, tokens = MODELS[kind], batch(words)
    noise = torch.randint(0, VOCAB, tokens.shape, generator=torch.Generator().manual_seed(seed))
    after = torch.arange(CONTEXT) >= sequence_lengths(tokens, END)[:, None]
    torch.testing.assert_close(model(torch.where(after, noise, tokens)), model(tokens), rtol=0, atol=1e-6)


@given(towers, captions)
def test_a_text_equals_itself_in_a_batch(kind, words):
    model = MODELS[kind]
    together = model(batch(words))
    for ids, row in zip(words, together, strict=True):
        torch.testing.assert_close(model(batch([ids], len(ids) + 2))[0], row, rtol=0, atol=1e-6)


@given(towers, captions.filter(lambda words: len(words[0]) > 0), st.data())
def test_every_word_matters(kind, words, data):
    model, tokens = MODELS[kind], batch(words)
    place = data.draw(st.integers(1, len(words[0])))
    other = tokens.clone()
    other[0, place] = (tokens[0, place] + 1) % START
    change = (model(other) - model(tokens)).abs().amax(dim=1)
    assert float(change[0]) > 1e-4
    assert float(change[1:].sum()) < 1e-5


@pytest.mark.parametrize("kind", TOWERS)
def test_the_order_of_words_matters(kind):
    one, other = MODELS[kind](batch([[1, 2, 3], [3, 2, 1]]))
    assert float((one - other).abs().max()) > 1e-3


def with_all_positions(model, embed):
    """Output of the model, and output of its blocks for every position."""
    outputs = []
    hook = model.blocks.register_forward_hook(lambda module, args, output: outputs.append(output))
    y = embed()
    hook.remove()
    return y, outputs[0]


@pytest.mark.parametrize("kind", ["causal", "bidirectional-end"])
def test_pooled_at_the_first_end_token(kind):
    model = MODELS[kind]
    tokens = torch.tensor([[START, 5, END, 7, 8, END]])
    y, outputs = with_all_positions(model, lambda: model(tokens))
    torch.testing.assert_close(y, model.projection(model.norm_after(outputs[:, 2])), rtol=0, atol=1e-6)
    torch.testing.assert_close(y, model(tokens[:, :3]), rtol=0, atol=1e-6)


def test_bert_is_pooled_at_its_first_token():
    model = MODELS["bert"]
    y, outputs = with_all_positions(model, lambda: model(batch([[4, 5]])))
    torch.testing.assert_close(y, model.projection(model.norm_after(outputs[:, 0])), rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", TOWERS)
def test_a_row_without_an_end_is_read_to_its_last_token(kind):
    model = MODELS[kind]
    row = torch.tensor([[START, 1, 2, 3, 4]])
    both = model(torch.cat([row, torch.tensor([[START, 1, END, 0, 0]])]))
    torch.testing.assert_close(both[:1], model(row), rtol=0, atol=1e-6)
    other = row.clone()
    other[0, 4] = 9
    assert float((model(other) - model(row)).abs().max()) > 1e-3


@pytest.mark.parametrize("kind", TOWERS)
def test_too_long(kind):
    model = MODELS[kind]
    model(torch.full((1, CONTEXT), 3))
    with pytest.raises(ValueError, match=rf"{CONTEXT + 1} tokens.*context length is {CONTEXT}"):
        model(torch.full((1, CONTEXT + 1), 3))


def test_int32_tokens():
    tokens = batch([[1, 2]])
    for model in MODELS.values():
        assert torch.equal(model(tokens.int()), model(tokens))


ATTENDED = {
    "siglip": TextConfig(CONTEXT, VOCAB, 16, 2, 2, padding="attended", pooling="last", projection="bias"),
    "first": TextConfig(CONTEXT, VOCAB, 16, 2, 2, padding="attended", pooling="first"),
    "end": TextConfig(CONTEXT, VOCAB, 16, 2, 2, padding="attended", pooling="end", projection="none"),
}


def attending(kind: str) -> TextTransformer:
    model = TextTransformer(ATTENDED[kind], 16).eval()
    initialise(model)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model.requires_grad_(False)


@pytest.mark.parametrize("kind", ATTENDED)
def test_attended_padding_written_out(kind):
    """Every position goes through the blocks, none is masked, and one of them is the caption's."""
    model, tokens = attending(kind), batch([[1, 2, 3], [4]])
    x = model.tokens.weight[tokens] + model.positions
    for block in model.blocks:
        x = block(x)
    at = {"siglip": [CONTEXT - 1] * 2, "first": [0, 0], "end": [4, 2]}[kind]
    pooled = model.norm_after(x[torch.arange(2), torch.tensor(at)])
    expected = pooled if kind == "end" else pooled @ model.projection.weight.T
    expected = expected + model.projection.bias if kind == "siglip" else expected
    torch.testing.assert_close(model(tokens), expected, rtol=1e-5, atol=1e-5)
    assert float((model(batch([[1, 2, 3], [4]], padding=5)) - model(tokens)).abs().max()) > 1e-3  # padding is seen


def test_attended_padding_needs_rows_of_the_context_length():
    with pytest.raises(ValueError, match=r"7 tokens in a row; .* rows of 12 tokens: tokenize with pad=True"):
        attending("siglip")(batch([[1, 2]], width=7))
    with pytest.raises(ValueError, match="13 tokens in a row"):
        attending("siglip")(batch([[1, 2]], width=13))
