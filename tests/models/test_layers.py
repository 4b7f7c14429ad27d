"""Attention against the formula written out, and what it must never let through: the future, and what is masked."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from miniclip.config import ImageConfig
from miniclip.models.layers import ACTIVATIONS, MLP, Attention, AttentionPool, Block, QuickGELU, Transformer

seeds = st.integers(0, 2**32 - 1)
heads = st.sampled_from([1, 2, 3])
head_widths = st.sampled_from([1, 4, 8])
batches = st.integers(1, 3)
tokens = st.integers(1, 8)
masks = st.sampled_from(["none", "random", "causal"])


def tower(width: int, heads: int, activation: str = "gelu") -> ImageConfig:
    return ImageConfig(8, 4, width, layers=2, heads=heads, activation=activation)


def noisy(module: nn.Module, seed: int = 0) -> nn.Module:
    """Random weights, biases and gains too, so that each one tells."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3 + (parameter.dim() == 1) * 0.2)
    return module.eval()


def example(B: int, T: int, D: int, seed: int) -> Tensor:
    return torch.randn(B, T, D, generator=torch.Generator().manual_seed(seed))


def random_mask(B: int, T: int, seed: int) -> Tensor:
    """(B, 1, T, T), each token sees at least itself."""
    seen = torch.rand(B, 1, T, T, generator=torch.Generator().manual_seed(seed)) < 0.5
    return seen | torch.eye(T, dtype=torch.bool)


def plain_attention(layer: Attention, x: Tensor, seen: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(d)) v, one image, head and query at a time."""
    B, T, D = x.shape
    d = D // layer.heads
    y = torch.zeros(B, T, D)
    for b in range(B):
        q, k, v = (x[b] @ layer.qkv.weight.T + layer.qkv.bias).split(D, dim=-1)
        for h in range(layer.heads):
            part = slice(h * d, (h + 1) * d)
            for t in range(T):
                keys = [s for s in range(T) if seen[b, 0, t, s]]
                weights = (k[keys][:, part] @ q[t, part] / math.sqrt(d)).softmax(0)
                y[b, t, part] = weights @ v[keys][:, part]
    return y @ layer.out.weight.T + layer.out.bias


@torch.no_grad()
@given(batches, tokens, heads, head_widths, masks, seeds)
def test_attention_equals_the_formula(B, T, H, d, kind, seed):
    layer, x = noisy(Attention(H * d, H), seed), example(B, T, H * d, seed)
    seen = torch.ones(B, 1, T, T, dtype=torch.bool)
    if kind == "random":
        seen = random_mask(B, T, seed)
        y = layer(x, seen)
    elif kind == "causal":
        seen = seen.tril()
        y = layer(x, causal=True)
    else:
        y = layer(x)
    assert y.shape == x.shape
    torch.testing.assert_close(y, plain_attention(layer, x, seen), rtol=1e-5, atol=1e-5)


def stack(D: int, H: int, kind: str, seed: int) -> nn.Module:
    modules = {
        "attention": lambda: Attention(D, H),
        "block": lambda: Block(tower(D, H)),
        "transformer": lambda: Transformer(tower(D, H, "quickgelu")),
    }
    return noisy(modules[kind](), seed)


kinds = st.sampled_from(["attention", "block", "transformer"])


@torch.no_grad()
@given(batches, st.integers(2, 8), heads, head_widths, kinds, seeds, st.data())
def test_a_later_token_never_changes_an_earlier_output(B, T, H, d, kind, seed, data):
    first = data.draw(st.integers(1, T - 1))  # the first token that changes
    layer, x = stack(H * d, H, kind, seed), example(B, T, H * d, seed)
    other = x.clone()
    other[:, first:] = example(B, T - first, H * d, seed + 1) * 5
    y, z = layer(x, causal=True), layer(other, causal=True)
    torch.testing.assert_close(y[:, :first], z[:, :first], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(y[:, :first], layer(x[:, :first], causal=True), rtol=1e-5, atol=1e-5)


@torch.no_grad()
@given(batches, st.integers(2, 8), heads, head_widths, kinds, seeds, st.data())
def test_content_of_masked_keys_never_matters(B, T, H, d, kind, seed, data):
    kept = data.draw(st.lists(st.integers(1, T), min_size=B, max_size=B))
    real = torch.arange(T) < torch.tensor(kept)[:, None]  # (B, T)
    layer, x = stack(H * d, H, kind, seed), example(B, T, H * d, seed)
    other = torch.where(real[:, :, None], x, example(B, T, H * d, seed + 1) * 5)
    mask = real[:, None, None, :]
    y, z = layer(x, mask), layer(other, mask)
    torch.testing.assert_close(y[real], z[real], rtol=1e-6, atol=1e-6)
    for b in range(B):  # and it is as if they were not there
        torch.testing.assert_close(y[b, : kept[b]], layer(x[b : b + 1, : kept[b]])[0], rtol=1e-5, atol=1e-5)


@torch.no_grad()
@given(batches, tokens, heads, head_widths, kinds, seeds)
def test_without_a_mask_the_order_of_tokens_is_unknown(B, T, H, d, kind, seed):
    layer, x = stack(H * d, H, kind, seed), example(B, T, H * d, seed)
    order = torch.randperm(T, generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(layer(x[:, order]), layer(x)[:, order], rtol=1e-5, atol=1e-5)


@torch.no_grad()
@given(st.integers(2, 4), tokens, kinds, st.booleans(), seeds)
def test_a_row_does_not_depend_on_the_others_of_its_batch(B, T, kind, causal, seed):
    layer, x = stack(8, 2, kind, seed), example(B, T, 8, seed)
    alone = torch.cat([layer(row[None], causal=causal) for row in x])
    torch.testing.assert_close(layer(x, causal=causal), alone, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_tokens_do_attend():
    for causal in (False, True):
        layer, x = noisy(Attention(8, 2)), example(1, 4, 8, 0)
        other = x.clone()
        other[:, 0] += 1
        assert float((layer(x, causal=causal) - layer(other, causal=causal))[:, 3].abs().max()) > 1e-2


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("kind", ["attention", "block", "transformer"])
def test_the_gradient_reaches_every_parameter(kind, causal):
    layer = stack(12, 3, kind, 0).train()
    (layer(example(2, 5, 12, 0), causal=causal) * example(2, 5, 12, 1)).sum().backward()
    for name, parameter in layer.named_parameters():
        parts = parameter.grad.chunk(3) if name.endswith("qkv.weight") else [parameter.grad]  # query, key, value
        assert all(float(part.abs().max()) > 1e-6 for part in parts), name


def test_quickgelu_is_its_formula_and_not_gelu():
    x = torch.linspace(-6, 6, 25, dtype=torch.float64)
    expected = torch.tensor([v / (1 + math.exp(-1.702 * v)) for v in x.tolist()], dtype=torch.float64)
    torch.testing.assert_close(QuickGELU()(x), expected, rtol=1e-12, atol=1e-12)
    assert float((QuickGELU()(x) - nn.functional.gelu(x)).abs().max()) > 0.01


def test_gelu_is_the_exact_one():
    x = torch.linspace(-4, 4, 17, dtype=torch.float64)
    expected = torch.tensor([v / 2 * (1 + math.erf(v / math.sqrt(2))) for v in x.tolist()], dtype=torch.float64)
    torch.testing.assert_close(ACTIVATIONS["gelu"]()(x), expected, rtol=1e-12, atol=1e-12)


def test_gelu_tanh_is_the_approximation():
    x = torch.linspace(-4, 4, 17, dtype=torch.float64)
    expected = [v / 2 * (1 + math.tanh(math.sqrt(2 / math.pi) * (v + 0.044715 * v**3))) for v in x.tolist()]
    expected = torch.tensor(expected, dtype=torch.float64)
    torch.testing.assert_close(ACTIVATIONS["gelu_tanh"]()(x), expected, rtol=1e-12, atol=1e-12)
    assert float((expected - ACTIVATIONS["gelu"]()(x)).abs().max()) > 1e-4


@torch.no_grad()
@given(batches, tokens, heads, head_widths, seeds)
def test_the_attention_pool_is_the_query_attending_and_an_mlp(B, T, H, d, seed):
    """The pooled output equals attention with the query as first token that no token attends to."""
    pool, x = noisy(AttentionPool(tower(H * d, H)), seed), example(B, T, H * d, seed)
    seen = torch.ones(1, 1, T + 1, T + 1, dtype=torch.bool)
    seen[..., 0] = False
    with_query = torch.cat([pool.query.expand(B, 1, -1), x], dim=1)
    answer = plain_attention(pool.attention, with_query, seen.expand(B, -1, -1, -1))[:, 0]
    torch.testing.assert_close(pool(x), answer + pool.mlp(pool.norm(answer)), rtol=1e-4, atol=1e-5)


def test_the_gradient_reaches_the_pools_parameters():
    pool = noisy(AttentionPool(tower(12, 3))).train()
    (pool(example(2, 5, 12, 0)) * example(1, 2, 12, 1)[0]).sum().backward()
    assert all(float(p.grad.abs().max()) > 1e-6 for p in pool.parameters())


@torch.no_grad()
@pytest.mark.parametrize("activation", ["gelu", "quickgelu"])
def test_mlp_and_block_are_their_formulas(activation):
    block, x = noisy(Block(tower(8, 2, activation))), example(2, 3, 8, 0)
    act = QuickGELU() if activation == "quickgelu" else nn.functional.gelu

    def mlp(z: Tensor) -> Tensor:
        m = block.mlp
        return act(z @ m.up.weight.T + m.up.bias) @ m.down.weight.T + m.down.bias

    def norm(layer: nn.LayerNorm, z: Tensor) -> Tensor:
        centred = z - z.mean(-1, keepdim=True)
        return centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt() * layer.weight + layer.bias

    assert block.mlp.up.weight.shape == (32, 8)
    torch.testing.assert_close(MLP.forward(block.mlp, x), mlp(x), rtol=1e-5, atol=1e-5)
    h = x + plain_attention(block.attention, norm(block.norm1, x), torch.ones(2, 1, 3, 3))
    torch.testing.assert_close(block(x), h + mlp(norm(block.norm2, h)), rtol=1e-5, atol=1e-5)


def test_a_transformer_is_its_blocks_in_order():
    layer, x = stack(8, 2, "transformer", 0), example(2, 3, 8, 0)
    assert torch.equal(layer(x), layer[1](layer[0](x)))
    assert len(layer) == 2


@pytest.mark.peer
@torch.no_grad()
@pytest.mark.parametrize("causal", [False, True])
def test_a_block_equals_open_clips(causal):
    peer = pytest.importorskip("open_clip.transformer")
    theirs = noisy(peer.ResidualAttentionBlock(16, 4, act_layer=peer.QuickGELU))
    ours = Block(tower(16, 4, "quickgelu")).eval()
    names = {
        "norm1": "ln_1", "norm2": "ln_2", "attention.qkv.": "attn.in_proj_", "attention.out": "attn.out_proj",
        "mlp.up": "mlp.c_fc", "mlp.down": "mlp.c_proj",
    }  # fmt: skip
    source = theirs.state_dict()
    state = {}
    for key in ours.state_dict():
        prefix = next(name for name in names if key.startswith(name))
        state[key] = source.pop(key.replace(prefix, names[prefix]))
    assert not source
    ours.load_state_dict(state)
    x = example(2, 6, 16, 0)
    mask = torch.full((6, 6), -torch.inf).triu(1) if causal else None
    torch.testing.assert_close(ours(x, causal=causal), theirs(x, attn_mask=mask), rtol=1e-5, atol=1e-5)
