"""Stochastic depth: its mean, whole samples, equal numbers in plain and fast forms, nothing in evaluation."""

import pytest
import torch

from miniclip.fast import accelerate, plain
from miniclip.fast.towers import FastTextTransformer
from miniclip.models.stochastic_depth import drop_branches
from miniclip.runtime.memory import checkpoint_blocks
from miniclip.train.variants.stochastic_depth import set_stochastic_depth
from tests.toys import CONFIG, make_model

TOKENS = torch.tensor([[1, 7, 8, 9, 599], [1, 5, 599, 0, 0], [1, 599, 0, 0, 0], [1, 4, 599, 0, 0]])


def test_whole_samples_are_dropped_and_the_mean_is_kept():
    branch = torch.ones(4000, 3, 2)
    dropped = drop_branches(branch, 0.25)
    values = dropped.flatten(1)
    assert torch.equal(values.amin(dim=1), values.amax(dim=1))
    assert dropped.unique().tolist() == pytest.approx([0, 4 / 3])
    assert float(dropped.mean()) == pytest.approx(1, abs=0.05)
    assert drop_branches(branch, 0.0) is branch


def test_packed_tokens_of_a_sample_are_dropped_together():
    samples = torch.tensor([0, 0, 0, 1, 2, 2])
    torch.manual_seed(3)
    packed = drop_branches(torch.ones(1, 6, 2), 0.5, samples)
    torch.manual_seed(3)
    assert torch.equal(packed[0], drop_branches(torch.ones(3, 2), 0.5)[samples])


@pytest.fixture
def deep(tokenizer):
    image, text = CONFIG.replace_image(layers=3).image, CONFIG.replace_text(layers=2, vocab_size=600).text
    return make_model(tokenizer, image=image, text=text)


def test_rates_rise_with_depth(deep):
    set_stochastic_depth(deep, 0.3)
    assert [block.drop_rate for block in deep.image.blocks] == pytest.approx([0.1, 0.2, 0.3])
    assert [block.drop_rate for block in deep.text.blocks] == pytest.approx([0.15, 0.3])
    with pytest.raises(ValueError, match=r"the model has no miniclip.models.layers.Block"):
        set_stochastic_depth(torch.nn.Linear(1, 1), 0.1)


def gradients(model):
    """Embeddings and gradients of a step with the random numbers of one seed."""
    model.train().zero_grad()
    torch.manual_seed(5)
    output = model(torch.ones(4, 3, 16, 16), TOKENS)
    (output.image_embeddings.square().sum() + output.text_embeddings.square().sum()).backward()
    return [*output[:2], *(p.grad for p in model.parameters() if p.grad is not None)]


def test_fast_forms_and_recomputed_blocks_drop_the_same_samples(deep):
    set_stochastic_depth(deep, 0.5)
    expected = gradients(plain(deep))
    for form in (lambda: accelerate(deep), lambda: checkpoint_blocks(deep)):
        form()
        for a, b in zip(gradients(deep), expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_samples_are_dropped_in_training_only(deep):
    pixels = torch.randn(4, 3, 16, 16)
    expected = deep.eval()(pixels, TOKENS)
    set_stochastic_depth(deep, 0.5)
    assert torch.equal(deep(pixels, TOKENS).image_embeddings, expected.image_embeddings)
    assert not torch.allclose(deep.train()(pixels, TOKENS).image_embeddings, expected.image_embeddings)
    if isinstance(deep.text, FastTextTransformer):  # not with MINICLIP_FAST=0
        assert not deep.text.can_share_prefix()
