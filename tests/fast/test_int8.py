"""The int8 form of a model: integers as defined, close embeddings, refusals."""

import copy
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import miniclip
from miniclip.checkpoints.native import save_checkpoint
from miniclip.fast import int8, layers, plain, quantizing
from miniclip.fast.layers import LEAST
from miniclip.models.layers import QuickGELU

pytestmark = pytest.mark.skipif(not int8.is_supported(), reason="torch has no int8 product for this processor")
MIN_COSINE = 0.99


def reference(layer, x):
    """The layer as the head of the module defines it, in float64."""
    weight, scale = int8.quantize_weight(layer.weight)
    limit = x.abs().amax(dim=-1, keepdim=True).double()
    tokens = (x * (127 / limit.float())).round().double()
    y = (tokens @ weight.double().T) * (limit / 127) * scale.double()
    return y + layer.bias.double() if layer.bias is not None else y


@given(st.integers(1, 40), st.integers(1, 70), st.integers(1, 50), st.booleans())
def test_layer_equals_the_formula(tokens, inputs, outputs, bias):
    torch.manual_seed(tokens * 31 + inputs)
    layer = nn.Linear(inputs, outputs, bias=bias)
    x = torch.randn(tokens, inputs) * torch.logspace(-3, 3, tokens)[:, None]  # each token has another scale
    expected = reference(layer, x)
    torch.testing.assert_close(int8.Int8Linear(layer)(x).double(), expected, rtol=1e-4, atol=1e-5)


def test_parts_and_factors_equal_the_whole():
    layer, x = int8.Int8Linear(nn.Linear(8, 12)), torch.randn(2, 3, 8)
    whole = layer(x)
    torch.testing.assert_close(torch.cat([layer.part(x, 0, 5), layer.part(x, 5, 12)], -1), whole)
    scaled = int8.Int8Linear(nn.Linear(8, 12, bias=False))
    torch.testing.assert_close(scaled.part(x, 0, 12, 0.5, 3.0), scaled(x) * 1.5)
    biased = layer.part(x, 0, 12, scale_out=2.0)
    torch.testing.assert_close(biased, whole * 2)


def test_tokens_are_rounded_to_even_and_shifted():
    x = torch.tensor([[0.5, 1.5, 2.5, -0.5, -1.5, 126.4, -127.0, 127.0]])
    expected = [128, 130, 130, 128, 126, 254, 1, 255]
    for in_place in (False, True):
        given = x.clone()
        values, limit = int8.quantize_tokens(given, in_place)
        assert values.dtype == torch.uint8
        assert values.tolist() == [expected]
        assert limit.tolist() == [[127]]
        assert in_place or torch.equal(given, x)


@given(st.floats(-2, 0), st.floats(1e-3, 2))
def test_a_known_least_value_changes_nothing(least, largest):
    x = torch.linspace(least, largest, 9).repeat(3, 1) * torch.tensor([[1.0], [0.5], [0.0]])
    for result, expected in zip(int8.quantize_tokens(x, least=least), int8.quantize_tokens(x), strict=True):
        assert torch.equal(result, expected)


@pytest.mark.parametrize("activation", [*LEAST, partial(nn.GELU, approximate="tanh")])
def test_activations_are_not_below_their_least_value(activation):
    module, x = activation(), torch.linspace(-20, 5, 100_001)
    factor = 1.702 if activation is QuickGELU else 1.0  # that int8 leaves out
    smallest = float(factor * module(x).min())
    assert LEAST[type(module)] < smallest < LEAST[type(module)] + 3e-4


@given(st.integers(0, 1000), st.integers(1, 40), st.sampled_from(["normal", "equal", "ends"]))
def test_neighbouring_weights_fit_in_16_bits(seed, inputs, kind):
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(4, inputs, generator=generator)
    if kind == "equal":
        weight = torch.ones(4, inputs)
    elif kind == "ends":
        weight = weight.sign() * 3
    values, scale = int8.quantize_weight(weight)
    assert int(values.int().abs().max()) <= 127
    pairs = nn.functional.pad(values.int(), (0, inputs % 2)).unflatten(1, (-1, 2)).sum(2)
    assert int(pairs.abs().max()) * 255 <= 2**15
    assert bool(((values * scale[:, None] - weight).abs() <= scale[:, None] * 0.5001).all())


def test_tokens_of_zeros_and_nan():
    layer = int8.Int8Linear(nn.Linear(4, 3))
    x = torch.randn(3, 4)
    x[0], x[1, 2] = 0, float("nan")
    y = layer(x)
    torch.testing.assert_close(y[0], layer.bias)
    assert bool(y[1].isnan().all())
    assert bool(y[2].isfinite().all())
    assert layer(torch.zeros(0, 4)).shape == (0, 3)


@pytest.mark.parametrize("pooling", ["class", "mean", "attention"])
def test_images_in_parts_equal_the_batch(pooling, toy_config, toy_tokenizer, monkeypatch):
    torch.manual_seed(0)
    config = toy_config.replace_image(pooling=pooling, class_token=pooling == "class")
    quantized = miniclip.quantize(miniclip.CLIPModel(config, toy_tokenizer).initialise().eval())
    pixels, tokens = torch.randn(5, 3, 16, 16), quantized.image.positions.shape[0]
    expected = quantized.image(pixels)
    batches = []
    quantized.image.blocks[0].register_forward_hook(lambda _, inputs, __: batches.append(inputs[0].shape[0]))
    monkeypatch.setattr(layers, "int8_rows", lambda: 2 * tokens)
    quantized.image(pixels)
    assert batches == [5]  # a hook receives the whole batch
    monkeypatch.setattr(layers, "has_hooks", lambda _: False)
    torch.testing.assert_close(quantized.image(pixels), expected, atol=1e-3, rtol=0)
    assert batches[1:] == [2, 2, 1]


@pytest.fixture(scope="module", params=["gelu", "quickgelu", "gelu_tanh"])
def pair(request, toy_config, toy_tokenizer):
    """A model with random weights and its int8 form."""
    config = toy_config.replace_image(activation=request.param, width=48).replace_text(
        activation=request.param, width=32, causal=request.param == "quickgelu", pooling="end"
    )
    torch.manual_seed(0)
    model = miniclip.CLIPModel(config, toy_tokenizer).initialise().eval()
    return model, miniclip.quantize(model)


def test_embeddings_are_close(pair):
    model, quantized = pair
    pixels, captions = torch.randn(5, 3, 16, 16), ["a red circle", "a dog", "a blue square above a dog"]
    for name, inputs in (("encode_image", pixels), ("encode_text", captions)):
        expected, found = getattr(model, name)(inputs), getattr(quantized, name)(inputs)
        assert float((expected * found).sum(1).min()) > MIN_COSINE
        assert not torch.equal(expected, found)
    layers = [module for module in quantized.modules() if isinstance(module, int8.Int8Linear)]
    assert len(layers) == 4 * (model.config.image.layers + model.config.text.layers)
    assert not any(isinstance(module, int8.Int8Linear) for module in model.modules())


@pytest.mark.parametrize("name", ["norm1", "attention.qkv", "mlp.up", "mlp"])
@pytest.mark.parametrize("calibrated", [False, True])
def test_layers_keep_their_hooks(pair, name, calibrated):
    model, pixels = copy.deepcopy(pair[0]), torch.randn(5, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    before = model.encode_image(pixels)
    model.image.blocks[0].get_submodule(name).register_forward_hook(lambda module, args, output: -3 * output)
    expected = model.encode_image(pixels)
    assert float((before * expected).sum(1).min()) < 0.9
    found = miniclip.quantize(model, pixels if calibrated else None).encode_image(pixels)
    assert float((found * expected).sum(1).min()) > MIN_COSINE


def test_plain_forms_give_the_same(pair):
    _, quantized = pair
    pixels, captions = torch.randn(5, 3, 16, 16), ["a red circle", "a dog", "a blue square above a dog"]
    slow = plain(copy.deepcopy(quantized))
    torch.testing.assert_close(slow.encode_image(pixels), quantized.encode_image(pixels), atol=1e-3, rtol=0)
    torch.testing.assert_close(slow.encode_text(captions), quantized.encode_text(captions), atol=1e-3, rtol=0)


def test_rows_of_a_batch_do_not_depend_on_each_other(pair):
    quantized, pixels = pair[1], torch.randn(40, 3, 16, 16)
    pixels[7] *= 1000  # activations are quantized by token
    alone = torch.cat([quantized.image(pixel[None]) for pixel in pixels])
    torch.testing.assert_close(quantized.image(pixels), alone, atol=1e-2, rtol=1e-2)


def test_an_empty_batch_has_no_rows(pair):
    quantized = pair[1]
    assert quantized.image(torch.empty(0, 3, 16, 16)).shape == (0, quantized.config.embed_dim)
    assert quantized.text(torch.empty(0, 5, dtype=torch.int64)).shape == (0, quantized.config.embed_dim)


def test_int8_model_is_not_saved(pair, tmp_path):
    quantized = pair[1]
    for write in (
        lambda: miniclip.save(quantized, tmp_path / "saved"),
        lambda: save_checkpoint(quantized, tmp_path / "saved"),
        lambda: miniclip.export(quantized, tmp_path / "saved", layout="onnx"),
    ):
        with pytest.raises(ValueError, match=r"Int8Linear.*save the model before it is quantized"):
            write()
    assert not any(tmp_path.rglob("*.safetensors"))


def test_int8_model_has_no_gradients_and_stays_on_the_cpu(pair):
    quantized = pair[1]
    with pytest.raises(ValueError, match="no gradients"):
        quantized(torch.randn(2, 3, 16, 16, requires_grad=True), quantized.tokenizer(["a dog", "a dog"]))
    with pytest.raises(ValueError, match="float32 on a CPU"):
        copy.deepcopy(quantized).bfloat16()
    with pytest.raises(ValueError, match="float32 on a CPU"):
        copy.deepcopy(quantized).to("meta")


def test_weights_of_another_int8_model_are_used(pair):
    model, quantized = pair
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.text.blocks[0].mlp.up.weight.mul_(-1)
    other = miniclip.quantize(other)
    expected = quantized.encode_text(["a dog"])
    assert not torch.equal(other.encode_text(["a dog"]), expected)
    other.load_state_dict(quantized.state_dict())
    torch.testing.assert_close(other.encode_text(["a dog"]), expected)
    with pytest.raises(RuntimeError, match=r"found torch\.float32; expected torch\.int8"):
        other.load_state_dict(model.state_dict(), strict=False)


def test_refusals(pair, monkeypatch):
    model, quantized = pair
    with pytest.raises(ValueError, match="quantized already"):
        miniclip.quantize(quantized)
    with pytest.raises(ValueError, match=r"torch.bfloat16 on cpu; expected float32"):
        miniclip.quantize(copy.deepcopy(model).bfloat16())
    mixed = copy.deepcopy(model)
    mixed.text.bfloat16()
    with pytest.raises(ValueError, match=r"text.positions is torch.bfloat16 on cpu; expected float32"):
        miniclip.quantize(mixed)
    with pytest.raises(TypeError, match="expected a CLIPModel"):
        miniclip.quantize(nn.Linear(2, 2))
    broken = copy.deepcopy(model)
    with torch.no_grad():
        broken.image.blocks[0].mlp.up.weight[0, 0] = float("nan")
    with pytest.raises(ValueError, match="finite"):
        miniclip.quantize(broken)
    monkeypatch.setattr(quantizing, "is_supported", lambda: False)
    with pytest.raises(ValueError, match="no exact int8 product"):
        miniclip.quantize(model)
