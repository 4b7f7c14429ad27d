"""The int8 form with constant scales: equal to fake quantization in float, close embeddings, refusals."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import miniclip
from miniclip.fast import calibrated, int8, layers, plain, quantizing
from miniclip.fast.calibrated import CalibratedLinear, CalibratedMLP, Int8Norm, Steps
from miniclip.models.layers import MLP

pytestmark = pytest.mark.skipif(not calibrated.is_supported(), reason="torch has no such int8 product here")
CAPTIONS = ["a red circle", "a dog", "a blue square above a dog", "a green triangle"]
SHAPES = [(1, 1, 1, 128, True), (5, 66, 24, 0, False), (20, 70, 50, 255, True), (3, 7, 5, 9, False)]


def steps_of(channels, zero_point=128):
    return Steps(torch.randn(channels), torch.rand(channels) * 0.1 + 0.01, zero_point)


def integers(x, steps):
    return ((x - steps.center) / steps.step + steps.zero_point).round().clamp(0, 255)


def fake(x, steps):
    """x after rounding to the integers of its channels."""
    return (integers(x, steps) - steps.zero_point) * steps.step + steps.center


def fake_weight(weight, step, factor=1.0):
    """The weight after rounding, where its input has these steps and its output this factor."""
    folded = torch.as_tensor(factor).reshape(-1, 1) * step
    values, scale = int8.quantize_weight(weight * folded)
    return values * scale[:, None] / folded


@pytest.mark.parametrize(("tokens", "inputs", "outputs", "zero_point", "bias"), SHAPES)
def test_linear_layer_equals_fake_quantization(tokens, inputs, outputs, zero_point, bias):
    torch.manual_seed(tokens * 31 + inputs)
    layer, steps = nn.Linear(inputs, outputs, bias=bias).requires_grad_(False), steps_of(inputs, zero_point)
    factor, shift = torch.rand(outputs) + 0.5, torch.randn(outputs)
    x = torch.randn(tokens, inputs) * 3
    weight = fake_weight(layer.weight, steps.step, factor)
    # the center is a part of the bias, which is not rounded
    expected = F.linear(fake(x, steps) - steps.center, weight, layer.bias) + layer.weight @ steps.center
    result = CalibratedLinear(layer, steps, factor, shift)(integers(x, steps).to(torch.uint8))
    torch.testing.assert_close(result, (expected - shift) * factor, rtol=1e-4, atol=1e-4)


def test_floats_are_rounded_and_clamped():
    layer = CalibratedLinear(nn.Linear(6, 4), Steps(torch.zeros(6), torch.ones(6), 128))
    floats = torch.tensor([[0.5, -1.5, 3e9, -3e9, 126.6, -127.5]])
    expected = layer(torch.tensor([[128, 126, 255, 0, 255, 0]], dtype=torch.uint8))
    assert torch.equal(layer(floats), expected)


def test_parts_and_empty_batches():
    layer = CalibratedLinear(nn.Linear(8, 12), steps_of(8))
    x = torch.randint(0, 256, (2, 3, 8), dtype=torch.uint8)
    whole = layer(x)
    torch.testing.assert_close(torch.cat([layer.part(x, 0, 5), layer.part(x, 5, 12)], -1), whole)
    assert layer(x[:0]).shape == (0, 3, 12)
    assert layer(x[:0]).dtype == torch.float32


def test_norm_returns_the_integers():
    norm, steps = nn.LayerNorm(40).requires_grad_(False), steps_of(40)
    norm.weight.uniform_(0.5, 2), norm.bias.normal_()
    x = torch.randn(9, 40) * 5
    result = Int8Norm(norm, steps)(x)
    assert result.dtype == torch.uint8
    difference = (result - integers(norm(x), steps)).abs()
    assert float(difference.max()) <= 1
    assert float(difference.mean()) < 0.01  # numbers in the middle of two integers
    assert int(result.min()) == 0
    assert int(result.max()) == 255


@pytest.mark.parametrize("activation", ["gelu", "gelu_tanh", "quickgelu"])
def test_mlp_equals_fake_quantization(activation):
    torch.manual_seed(0)
    mlp, inputs = MLP(16, 64, activation).requires_grad_(False), steps_of(16)
    hidden = Steps(torch.zeros(64), torch.full((64,), 0.02), 9)
    quantized = CalibratedMLP(mlp.up, mlp.down, calibrated.activation_name(mlp.activation), inputs, hidden)
    x = integers(torch.randn(2, 5, 16), inputs)
    up = (x - inputs.zero_point) * inputs.step
    up = F.linear(up, fake_weight(mlp.up.weight, inputs.step)) + mlp.up.weight @ inputs.center + mlp.up.bias
    expected = F.linear(fake(mlp.activation(up), hidden), fake_weight(mlp.down.weight, hidden.step), mlp.down.bias)
    result = quantized(x.to(torch.uint8))
    torch.testing.assert_close(result, expected, atol=0.02, rtol=0)  # a step of the hidden layer
    assert float((result - expected).abs().mean()) < 1e-3
    total = torch.randn(5, 2, 16).transpose(0, 1)
    torch.testing.assert_close(quantized.add_to_(total.clone(), x.to(torch.uint8)), total + result)


@pytest.fixture(scope="module", params=["gelu", "quickgelu", "gelu_tanh"])
def pair(request, toy_config, toy_tokenizer):
    """A model with random weights and its int8 form with constant scales."""
    causal = request.param == "quickgelu"
    config = toy_config.replace_image(activation=request.param, width=48).replace_text(
        activation=request.param, width=32, causal=causal, pooling="end"
    )
    torch.manual_seed(0)
    model = miniclip.CLIPModel(config, toy_tokenizer).initialise().eval()
    for block in (*model.image.blocks, *model.text.blocks):
        nn.init.normal_(block.norm1.bias)  # channels with centers
        nn.init.normal_(block.attention.qkv.bias)
    return model, miniclip.quantize(model, torch.randn(64, 3, 16, 16), CAPTIONS)


def fake_quantized(model, images):
    """Plain form of the image tower that rounds weights and activations as the int8 form does."""
    reference = plain(copy.deepcopy(model)).requires_grad_(False)
    copied = copy.deepcopy(model)
    modules = [m for b in copied.image.blocks for m in (b.norm1, b.norm2, b.mlp.activation)]
    with quantizing._ranges(modules, [b.attention.out for b in copied.image.blocks]) as ranges:
        copied.encode_image(images)
    for block, other in zip(reference.image.blocks, copied.image.blocks, strict=True):
        first = calibrated.channel_steps(ranges[other.norm1], other.attention.qkv.weight.detach())
        values = calibrated.channel_steps(ranges[other.attention.out], other.attention.out.weight.detach())
        second = calibrated.channel_steps(ranges[other.norm2], other.mlp.up.weight.detach())
        hidden = calibrated.one_step(ranges[other.mlp.activation])
        for module, steps in ((block.norm1, first), (block.norm2, second), (block.mlp.activation, hidden)):
            module.register_forward_hook(lambda _, __, y, steps=steps: fake(y, steps))
        block.attention.out.register_forward_pre_hook(lambda _, x, steps=values: (fake(x[0], steps),))
        factor = torch.cat([torch.ones(2 * len(values.step)), 1 / values.step])
        for layer, steps, by in (
            (block.attention.qkv, first, factor),
            (block.attention.out, values, 1.0),
            (block.mlp.up, second, 1.0),
            (block.mlp.down, hidden, 1.0),
        ):
            weight = fake_weight(layer.weight, steps.step, by)
            layer.bias += (layer.weight - weight) @ steps.center
            layer.weight.copy_(weight)
    return reference


def test_tower_equals_fake_quantization(pair):
    model, _ = pair
    torch.manual_seed(1)
    calibration, pixels = torch.randn(64, 3, 16, 16), torch.randn(6, 3, 16, 16)
    result = miniclip.quantize(model, images=calibration).encode_image(pixels)
    expected, exact = fake_quantized(model, calibration).encode_image(pixels), model.encode_image(pixels)
    assert float((result - expected).norm()) < 0.25 * float((result - exact).norm())
    torch.testing.assert_close(result, expected, atol=5e-3, rtol=0)


def test_embeddings_are_close(pair):
    model, quantized = pair
    torch.manual_seed(2)
    for name, inputs in (("encode_image", torch.randn(7, 3, 16, 16)), ("encode_text", CAPTIONS)):
        expected, result = getattr(model, name)(inputs), getattr(quantized, name)(inputs)
        assert float((expected * result).sum(1).min()) > 0.99
        assert not torch.equal(expected, result)
    assert sum(isinstance(module, CalibratedLinear) for module in quantized.modules()) == 4 * (
        model.config.image.layers + model.config.text.layers
    )


def test_one_tower(pair):
    model, both = pair
    quantized = miniclip.quantize(model, texts=iter(CAPTIONS))
    assert torch.equal(quantized.encode_text(CAPTIONS), both.encode_text(CAPTIONS))
    pixels = torch.randn(2, 3, 16, 16)
    assert torch.equal(quantized.encode_image(pixels), miniclip.quantize(model).encode_image(pixels))


@pytest.mark.parametrize("pooling", ["class", "mean", "attention"])
def test_parts_of_batches_plain_forms_and_copies_give_the_same(pooling, toy_config, toy_tokenizer, monkeypatch):
    torch.manual_seed(0)
    config = toy_config.replace_image(pooling=pooling, class_token=pooling == "class")
    model = miniclip.CLIPModel(config, toy_tokenizer).initialise().eval()
    pixels = torch.randn(5, 3, 16, 16)
    quantized = miniclip.quantize(model, pixels, CAPTIONS)
    expected, texts = quantized.encode_image(pixels), quantized.encode_text(CAPTIONS)
    copied = copy.deepcopy(quantized)
    assert torch.equal(copied.encode_image(pixels), expected)
    slow = plain(copied)
    torch.testing.assert_close(slow.encode_image(pixels), expected, atol=2e-3, rtol=0)
    torch.testing.assert_close(slow.encode_text(CAPTIONS), texts, atol=2e-3, rtol=0)
    monkeypatch.setattr(layers, "int8_rows", lambda: 1)
    torch.testing.assert_close(quantized.encode_image(pixels), expected, atol=2e-3, rtol=0)
    alone = torch.cat([quantized.encode_text([caption]) for caption in CAPTIONS])
    torch.testing.assert_close(alone, texts, atol=2e-3, rtol=0)
    prompts = [f"a photo of a {name}" for name in ("red circle", "dog", "cat")]  # share a prefix
    one_by_one = torch.cat([quantized.encode_text([prompt]) for prompt in prompts])
    torch.testing.assert_close(quantized.encode_text(prompts), one_by_one, atol=2e-3, rtol=0)


def test_nan_reaches_the_embedding_of_its_image_only(pair):
    pixels = torch.randn(3, 3, 16, 16)
    pixels[1, 0, 15, 15] = float("nan")
    assert pair[1].encode_image(pixels).isnan().any(dim=1).tolist() == [False, True, False]


def test_larger_activations_saturate(pair):
    rows = pair[1].image(torch.randn(2, 3, 16, 16) * 1000)
    assert bool(rows.isfinite().all())


def test_state_of_another_calibration_is_used(pair):
    model, quantized = pair
    pixels = torch.randn(4, 3, 16, 16)
    other = miniclip.quantize(model, pixels, CAPTIONS[:2])
    other.encode_image(pixels)
    assert not torch.equal(other.encode_image(pixels), quantized.encode_image(pixels))
    other.load_state_dict(quantized.state_dict())
    assert torch.equal(other.encode_image(pixels), quantized.encode_image(pixels))


def test_refusals(pair, monkeypatch, tmp_path):
    model, quantized = pair
    pixels = torch.randn(2, 3, 16, 16)
    with pytest.raises(ValueError, match="quantized already"):
        miniclip.quantize(quantized, pixels)
    with pytest.raises(ValueError, match="images: found none; expected a hundred or more"):
        miniclip.quantize(model, images=pixels[:0])
    with pytest.raises(ValueError, match="texts: found none"):
        miniclip.quantize(model, texts=[])
    with pytest.raises(ValueError, match="images: the model's activations are NaN"):
        miniclip.quantize(model, images=pixels * float("nan"))
    with pytest.raises(ValueError, match="no gradients"):
        quantized(pixels.requires_grad_(), quantized.tokenizer(CAPTIONS[:2]))
    with pytest.raises(ValueError, match="float32 on a CPU"):
        copy.deepcopy(quantized).bfloat16()
    with pytest.raises(ValueError, match="save the model before it is quantized"):
        miniclip.save(quantized, tmp_path / "saved")
    monkeypatch.setattr(quantizing, "MIN_COSINE", 1.1)
    with pytest.raises(ValueError, match=r"int8 text tower has a cosine of [01]\.\d{4}.*quantize without texts"):
        miniclip.quantize(model, texts=CAPTIONS)
    monkeypatch.setattr(calibrated, "is_supported", lambda: False)
    with pytest.raises(ValueError, match="without images and texts"):
        miniclip.quantize(model, images=pixels)
    miniclip.quantize(model)
