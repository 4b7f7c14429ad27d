"""Embeddings of many texts: in order, in bounded batches, equal to one text at a time."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from miniclip import CLIPConfig, ImageConfig, TextConfig
from miniclip.inference import texts as module
from miniclip.inference.model import CLIPModel
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
    return CLIPModel(config).initialise().eval()


MODELS = {kind: model_of(kind) for kind in KINDS}


def token_rows(lengths):
    tokens = torch.zeros(len(lengths), 7, dtype=torch.int64)
    for number, (row, length) in enumerate(zip(tokens, lengths, strict=True)):
        row[: length - 1] = torch.arange(length - 1) % 3 + 1 + number % 4
        row[length - 1] = END
    return tokens


@given(st.sampled_from(sorted(KINDS)), st.lists(st.integers(2, 7), max_size=30), st.integers(1, 9), st.integers(1, 50))
def test_equals_one_text_at_a_time(kind, lengths, batch_size, max_tokens):
    model, tokens = MODELS[kind], token_rows(lengths)
    before = module.MAX_TOKENS, module.CHUNK
    module.MAX_TOKENS, module.CHUNK = {"cpu": max_tokens}, 7
    try:
        with torch.no_grad():
            embeddings = embed_texts(model, None, tokens, batch_size)
            single = [model.text(row[None]) for row in tokens]
    finally:
        module.MAX_TOKENS, module.CHUNK = before
    assert embeddings.shape == (len(lengths), 6)
    if single:
        torch.testing.assert_close(embeddings, torch.cat(single), rtol=1e-5, atol=1e-6)


def test_batches_are_bounded():
    model, seen = MODELS["clip"], []
    hook = model.text.register_forward_pre_hook(lambda tower, args: seen.append(tuple(args[0].shape)))
    model.encode_text(token_rows([2 + i % 6 for i in range(40_000)]), batch_size=10_000)
    hook.remove()
    assert max(rows * tokens for rows, tokens in seen) <= module.MAX_TOKENS["cpu"]


def test_a_foreign_tower_embeds():
    class Mean(torch.nn.Module):
        def forward(self, tokens):
            return tokens.float().mean(dim=1, keepdim=True).expand(-1, 6)

    model = model_of("bert")
    model.text = Mean()
    assert embed_texts(model, None, token_rows([3, 4, 5]), 2).shape == (3, 6)


@pytest.mark.parametrize("texts", [torch.zeros(3), torch.zeros(2, 3)])
def test_a_tensor_without_token_ids_is_refused(texts):
    with pytest.raises(TypeError, match="expected strings, or token ids"):
        embed_texts(MODELS["clip"], None, texts, 2)
