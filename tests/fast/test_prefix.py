"""Shared prefix: equal to the plain form for every prefix."""

import copy
import dataclasses

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from miniclip.config import TextConfig
from miniclip.fast import accelerate, plain
from miniclip.fast.prefix import SharedPrefix
from miniclip.models.text import TextTransformer

VOCABULARY, CONTEXT = 12, 10


def tower():
    torch.manual_seed(0)
    config = TextConfig(CONTEXT, VOCABULARY, 8, 2, 2, causal=True, pooling="end")
    model = accelerate(TextTransformer(config, 6).double().eval())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.5)
    return model


MODEL = tower()


@given(st.data(), st.integers(1, 4), st.integers(2, CONTEXT), st.integers(0, 2**32 - 1))
@torch.no_grad()
def test_equals_the_plain_form(data, rows, width, seed):
    generator = torch.Generator().manual_seed(seed)
    shared = data.draw(st.integers(1, width - 1))
    tokens = torch.randint(1, VOCABULARY - 1, (rows, width), generator=generator)
    tokens[:, :shared] = tokens[0, :shared].clone()
    for row in tokens:
        end = data.draw(st.integers(shared, width - 1))  # after the prefix
        row[end], row[end + 1 :] = VOCABULARY - 1, 0
    longest = int((tokens == VOCABULARY - 1).int().argmax(dim=1).max()) + 1
    embeddings = MODEL.forward_shared(tokens[:, :longest], shared)
    torch.testing.assert_close(embeddings, MODEL(tokens), rtol=1e-10, atol=1e-10)


def test_unpack_inverts_pack():
    x = torch.arange(3 * 5 * 2.0).view(3, 5, 2)
    x[:, :2] = x[0, :2]
    prefix = SharedPrefix(2, 3, 3)
    packed = prefix.pack(x)
    assert packed.shape == (1, 2 + 9, 2)
    positions = torch.tensor([2, 4, 3])
    torch.testing.assert_close(packed[0, prefix.packed_indices(positions)], x[torch.arange(3), positions])
    (unpacked,) = prefix.unpack(packed, 1, 1)
    torch.testing.assert_close(unpacked[:, 0], x)
    assert prefix.key_mask(positions)[:, 0, 0].sum(dim=1).tolist() == [3, 5, 4]


def test_the_prefix_is_computed_once():
    """3 of 6 tokens are shared by 50 rows: little more than half of the work is left."""
    tokens = torch.full((50, 6), 3)
    tokens[:, 5] = VOCABULARY - 1
    counted = []
    for shared in (0, 3):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            MODEL.forward_shared(tokens, shared)
        counted.append(counter.get_total_flops())
    assert counted[1] < 0.65 * counted[0]


def hooks(model):
    """Return the functions that register a hook on the tower itself."""
    return {
        "forward": lambda: model.register_forward_hook(lambda module, args, output: 2 * output),
        "forward pre": lambda: model.register_forward_pre_hook(lambda module, args: (args[0].flip(0),)),
        "backward": lambda: model.register_full_backward_hook(lambda *args: None),
        "block": lambda: model.blocks[1].mlp.register_forward_hook(lambda module, args, output: 2 * output),
    }


@pytest.mark.parametrize("kind", ["forward", "forward pre", "backward", "block"])
@torch.no_grad()
def test_steps_aside_for_hooks(kind):
    """Prompts with a shared prefix are embedded by `forward_shared`, which would bypass a hook on the tower."""
    model = tower()
    tokens = torch.tensor([[3, 4, 5, 11], [3, 4, 6, 11], [3, 4, 7, 11]])
    if type(model) is TextTransformer:
        pytest.skip("MINICLIP_FAST=0")
    assert model.can_share_prefix()
    handle = hooks(model)[kind]()
    assert not model.can_share_prefix()
    torch.testing.assert_close(model.forward_shared(tokens, 2), model(tokens), rtol=1e-10, atol=1e-10)
    handle.remove()
    assert model.can_share_prefix()


@torch.no_grad()
def test_steps_aside_if_the_highest_id_is_pooled():
    """The highest id of a row may be in the prefix, unlike an end token."""
    model = accelerate(TextTransformer(dataclasses.replace(MODEL.config, end_id=None), 6).double().eval())
    model.load_state_dict(MODEL.state_dict())
    tokens = torch.tensor([[3, 11, 5, 9], [3, 11, 6, 9]])
    if type(model) is not TextTransformer:
        assert not model.can_share_prefix()
        torch.testing.assert_close(model.forward_shared(tokens, 2), model(tokens), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(model(tokens), plain(copy.deepcopy(model))(tokens), rtol=1e-10, atol=1e-10)
    assert torch.equal(model(tokens)[0], model(tokens)[1])
