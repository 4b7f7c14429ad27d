"""Sequence packing: equal to the padded batch in value and gradient."""

import dataclasses

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from miniclip.config import TextConfig
from miniclip.fast import accelerate, towers
from miniclip.fast.unpadding import PackedSequences, round_up
from miniclip.models.text import TextTransformer

END = 11
CONFIGS = {
    "causal": TextConfig(10, 12, 8, 2, 2, causal=True, pooling="end"),
    "bert": TextConfig(10, 12, 8, 2, 2),
    "bidirectional, pooled at the end": TextConfig(10, 12, 8, 2, 2, pooling="end"),
}


def tower(config):
    torch.manual_seed(0)
    model = accelerate(TextTransformer(config, 6).double())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.5)
    return model


MODELS = {kind: tower(config) for kind, config in CONFIGS.items()}


def batch(lengths, seed):
    tokens = torch.randint(1, END, (len(lengths), max(lengths)), generator=torch.Generator().manual_seed(seed))
    for row, length in zip(tokens, lengths, strict=True):
        row[length - 1], row[length:] = END, 0
    return tokens


@given(
    st.sampled_from(sorted(CONFIGS)),
    st.lists(st.integers(1, 10), min_size=1, max_size=6),
    st.integers(0, 2**32 - 1),
    st.booleans(),
)
def test_equals_the_padded_batch(kind, lengths, seed, checkpointed):
    model, tokens, results = MODELS[kind], batch(lengths, seed), []
    model.blocks.checkpointed = checkpointed
    out = torch.randn(len(lengths), 6, generator=torch.Generator().manual_seed(seed)).double()
    before = towers.MAX_DENSITY
    for density in (0.0, 1.0):  # never, always
        towers.MAX_DENSITY = density
        model.zero_grad()
        try:
            y = model(tokens)
        finally:
            towers.MAX_DENSITY = before
        y.backward(out)
        results.append([y.detach(), *(parameter.grad.clone() for parameter in model.parameters())])
    torch.testing.assert_close(*results, rtol=1e-9, atol=1e-11)


def test_unpack_inverts_pack():
    x = torch.arange(3 * 4 * 2.0).view(3, 4, 2)
    length = torch.tensor([2, 4, 1])
    layout = PackedSequences.from_lengths(length, 4, causal=False)
    packed = layout.pack(x)
    assert packed.shape == (1, 7, 2)
    longer = PackedSequences.from_lengths(torch.tensor([20, 21]), 21, causal=False).pack(torch.ones(2, 21, 2))
    assert longer.shape == (1, 42, 2)
    positions = length - 1
    torch.testing.assert_close(packed[0, layout.packed_indices(positions)], x[torch.arange(3), positions])
    (unpacked,) = layout.unpack(packed, 1, 1)
    for row, padded, count in zip(x, unpacked[:, 0], length, strict=True):
        torch.testing.assert_close(padded[:count], row[:count])
    assert layout.key_mask(positions)[:, 0, 0].sum(dim=1).tolist() == [2, 4, 1]


@given(st.integers(1, 10**6))
def test_sizes_are_rounded_up(count):
    assert count <= round_up(count) <= count * 17 / 16
    assert round_up(round_up(count)) == round_up(count)


def test_sizes_are_few():
    assert len({round_up(count) for count in range(1024, 4096)}) <= 33


def test_the_gradient_has_a_gradient():
    layout = PackedSequences.from_lengths(torch.tensor([2, 1]), 3, causal=False)
    x = torch.randn(2, 3, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(lambda x: layout.pack(x).pow(3), x)
    packed = torch.randn(1, 3, 2, dtype=torch.float64, requires_grad=True)
    valid = torch.tensor([[1.0, 1, 0], [1, 0, 0]])[:, None, :, None]
    assert torch.autograd.gradgradcheck(lambda packed: (layout.unpack(packed, 1, 1)[0] * valid).pow(3), packed)


@pytest.mark.parametrize("kind", CONFIGS)
def test_nan_stays_in_its_sequence(kind, monkeypatch):
    monkeypatch.setattr(towers, "MAX_DENSITY", 1.0)
    model, tokens = tower(CONFIGS[kind]), batch([3, 7, 4, 2], 0)
    tokens[1:] = tokens[1:].where(tokens[1:] != 5, 6)
    tokens[0, 0] = 5
    with torch.no_grad():
        model.tokens.weight[5] = float("nan")
        assert model(tokens).isfinite().all(dim=1).tolist() == [False, True, True, True]


@pytest.mark.parametrize("compiled", [False, True])
def test_padding_is_not_computed(compiled):
    """Compiled blocks are recompiled for new shapes, so they keep the padding."""
    model = tower(dataclasses.replace(CONFIGS["bert"], layers=4))
    if compiled:
        for block in model.blocks:
            block.compile(backend="eager")
    counted = []
    for lengths in ([10] * 20, [5] * 19 + [10]):
        with FlopCounterMode(display=False) as counter:
            model(batch(lengths, 0))
        counted.append(counter.get_total_flops())
    assert counted[1] == counted[0] if compiled else counted[1] < 0.85 * counted[0]
