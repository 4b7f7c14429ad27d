"""Many texts: the order given, whatever the passes; bounded, and the same as one by one."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from miniclip import CLIP, CLIPConfig, ImageConfig, TextConfig
from miniclip.inference import texts as module
from miniclip.inference.texts import embed_texts

END = 11
KINDS = {
    "clip": {"causal": True, "pooling": "end"},
    "bert": {"causal": False, "pooling": "first"},
    "siglip": {"causal": False, "pooling": "last", "padding": "attended"},
}


def model_of(kind):
    torch.manual_seed(0)
    config = CLIPConfig(ImageConfig(8, 4, 8, 1, 1), TextConfig(7, 12, 8, 2, 2, **KINDS[kind]), 6)
    return CLIP(config).initialise().eval()


MODELS = {kind: model_of(kind) for kind in KINDS}


def token_rows(lengths):
    tokens = torch.zeros(len(lengths), 7, dtype=torch.int64)
    for number, (row, length) in enumerate(zip(tokens, lengths, strict=True)):
        row[: length - 1] = torch.arange(length - 1) % 3 + 1 + number % 4
        row[length - 1] = END
    return tokens


@given(st.sampled_from(sorted(KINDS)), st.lists(st.integers(2, 7), max_size=30), st.integers(1, 9), st.integers(1, 50))
def test_each_text_as_it_is_alone(kind, lengths, batch_size, most_tokens):
    model, tokens = MODELS[kind], token_rows(lengths)
    before = module.MOST_TOKENS, module.BLOCK
    module.MOST_TOKENS, module.BLOCK = {"cpu": most_tokens}, 7
    try:
        with torch.no_grad():
            found = embed_texts(model, tokens, batch_size)
            alone = [model.text(row[None]) for row in tokens]
    finally:
        module.MOST_TOKENS, module.BLOCK = before
    assert found.shape == (len(lengths), 6)
    if alone:
        torch.testing.assert_close(found, torch.cat(alone), rtol=1e-5, atol=1e-6)


def test_passes_are_bounded():
    """A hundred thousand texts never stand before the tower at once."""
    model, seen = MODELS["clip"], []
    hook = model.text.register_forward_pre_hook(lambda tower, args: seen.append(tuple(args[0].shape)))
    model.encode_text(token_rows([2 + i % 6 for i in range(40_000)]), batch_size=10_000)
    hook.remove()
    assert max(rows * tokens for rows, tokens in seen) <= module.MOST_TOKENS["cpu"]


def test_a_tower_of_ones_own_need_not_know_of_sharing():
    class Mean(torch.nn.Module):
        def forward(self, tokens):
            return tokens.float().mean(dim=1, keepdim=True).expand(-1, 6)

    model = model_of("bert")
    model.text = Mean()
    assert embed_texts(model, token_rows([3, 4, 5]), 2).shape == (3, 6)


@pytest.mark.parametrize("texts", [torch.zeros(3), torch.zeros(2, 3)])
def test_what_is_no_token_ids(texts):
    with pytest.raises(TypeError, match="expected strings, or token ids"):
        embed_texts(MODELS["clip"], texts, 2)
