"""Every fast form equals its plain form in value and gradient, and steps aside where it cannot."""

import copy
import itertools
import pickle
import warnings

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from miniclip.config import CLIPConfig, ImageConfig, TextConfig
from miniclip.fast import accelerate, plain, plain_forms
from miniclip.fast.attention import attention
from miniclip.fast.layers import FastTransformer, is_exact
from miniclip.fast.seam import FAST, PLAIN
from miniclip.models.clip import CLIP
from miniclip.models.layers import ACTIVATIONS, MLP, Attention, AttentionPool, Block, Transformer
from miniclip.train.ema import EMA
from tests.toys import IMAGE_KINDS, TEXT_KINDS

END = 19
PAIRS = list(zip(itertools.cycle(IMAGE_KINDS), TEXT_KINDS, strict=False))[:4]


def noisy(module: nn.Module, seed: int = 0) -> nn.Module:
    """Draw every parameter, biases and gains too, so that each one affects the result."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3 + (parameter.dim() == 1) * 0.2)
    return module


def model_of(image: str = "class", text: str = "causal") -> CLIP:
    config = CLIPConfig(
        ImageConfig(8, 4, 16, 2, 2, **IMAGE_KINDS[image]), TextConfig(9, 20, 16, 2, 2, **TEXT_KINDS[text]), 16
    )
    return noisy(CLIP(config).double()).eval()


def inputs(text: str = "causal", batch: int = 3, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randn(batch, 3, 8, 8, generator=generator).double()
    tokens = torch.randint(1, END, (batch, 9), generator=generator)
    for row, length in zip(tokens, itertools.cycle((3, 9, 5)), strict=False):
        row[length - 1], row[length:] = END, 0
    return pixels, tokens


def results(model: CLIP, pixels: torch.Tensor, tokens: torch.Tensor) -> list[torch.Tensor]:
    """Embeddings, and the gradient of every parameter."""
    model.zero_grad()
    out = model(pixels, tokens)
    weights = torch.linspace(-1, 1, out.image_embeddings.numel()).double().view_as(out.image_embeddings)
    (out.image_embeddings * weights).sum().backward()
    (out.text_embeddings * weights).sum().backward()
    grads = [p.grad.clone() for name, p in model.named_parameters() if name != "log_scale"]
    return [out.image_embeddings.detach(), out.text_embeddings.detach(), *grads]


@pytest.mark.parametrize(("image", "text"), PAIRS)
@pytest.mark.parametrize("checkpointed", [False, True])
def test_equals_the_plain_form(image, text, checkpointed):
    model, batch = model_of(image, text), inputs(text)
    expected = results(model, *batch)
    accelerate(model)
    assert {type(module) for module in model.modules()} & set(FAST.values())
    assert not {type(module) for module in model.modules()} & set(FAST)
    model.image.blocks.checkpointed = model.text.blocks.checkpointed = checkpointed
    torch.testing.assert_close(results(model, *batch), expected, rtol=1e-9, atol=1e-11)
    plain(model)
    assert not {type(module) for module in model.modules()} & set(FAST.values())


@pytest.mark.parametrize(("image", "text"), PAIRS)
@torch.no_grad()
def test_equals_the_plain_form_without_gradient(image, text):
    model, (pixels, tokens) = model_of(image, text).float(), inputs(text)
    expected = model(pixels.float(), tokens)
    out = accelerate(model)(pixels.float(), tokens)
    torch.testing.assert_close(out.image_embeddings, expected.image_embeddings, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(out.text_embeddings, expected.text_embeddings, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("image", "text"), PAIRS)
def test_an_empty_batch_has_no_rows(image, text):
    model, (pixels, tokens) = accelerate(model_of(image, text)), inputs(text)
    out = model(pixels[:0], tokens[:0])
    assert out.image_embeddings.shape == out.text_embeddings.shape == (0, 16)
    (out.image_embeddings.sum() + out.text_embeddings.sum()).backward()
    assert all(not p.grad.any() for name, p in model.named_parameters() if name != "log_scale")


def test_every_pair_is_a_subclass_without_parameters():
    config = ImageConfig(8, 4, 16, 2, 2)
    modules = [Attention(16, 2), AttentionPool(config), Block(config), MLP(16, 32, "gelu"), Transformer(config)]
    modules.append(nn.Conv2d(3, 4, 2, 2))
    for module in [*modules, *CLIP(model_of().config).children()]:
        names = set(module.state_dict())
        kind = type(module)
        assert issubclass(FAST[kind], kind)
        assert PLAIN[FAST[kind]] is kind
        assert set(accelerate(module).state_dict()) == names
        assert type(module) is FAST[kind]
    assert len(FAST) == len(modules) + 2


def test_the_switch_keeps_the_plain_forms(monkeypatch):
    monkeypatch.setenv("MINICLIP_FAST", "0")
    assert not {type(module) for module in accelerate(model_of()).modules()} & set(FAST.values())


def test_plain_forms_restores_the_fast_ones():
    model = accelerate(model_of())
    kinds = [type(module) for module in model.modules()]
    with plain_forms(model):
        assert not {type(module) for module in model.modules()} & set(FAST.values())
    assert [type(module) for module in model.modules()] == kinds


def test_deep_copies_pickles_and_ema_keep_the_forms():
    model, batch = accelerate(model_of()), inputs()
    expected = results(model, *batch)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert [type(module) for module in other.modules()] == [type(module) for module in model.modules()]
        torch.testing.assert_close(results(other, *batch), expected)
    ema = EMA(model, 0.5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)
    with ema.applied_to(model):
        torch.testing.assert_close(results(model, *batch), expected)


@given(
    st.integers(1, 3), st.integers(1, 8), st.sampled_from([1, 2]), st.sampled_from(["none", "mask", "causal"]),
    st.integers(0, 2**32 - 1), st.booleans(),
)  # fmt: skip
def test_one_pooled_position_equals_that_position_of_all(B, T, H, kind, seed, checkpointed):
    model = accelerate(noisy(Transformer(ImageConfig(8, 4, 8, 2, H, activation="quickgelu")), seed).double())
    if type(model) is not FastTransformer:
        pytest.skip("MINICLIP_FAST=0")
    model.checkpointed = checkpointed
    generator = torch.Generator().manual_seed(seed)
    pool_indices = torch.randint(T, (B,), generator=generator)
    mask = None
    if kind == "mask":
        mask = torch.rand(B, 1, 1, T, generator=generator) < 0.5
        mask[..., 0] = True
    x = torch.randn(B, T, 8, generator=generator).double().requires_grad_()
    weights = torch.randn(B, 8, generator=generator).double()
    outputs = []
    for pooled in (False, True):
        model.zero_grad()
        x.grad = None
        y = model(x, mask, kind == "causal", pool_indices) if pooled else model(x, mask, kind == "causal")
        y = y if pooled else y[torch.arange(B), pool_indices]
        y.backward(weights)
        outputs.append([y.detach(), x.grad.clone(), *(parameter.grad.clone() for parameter in model.parameters())])
    torch.testing.assert_close(outputs[1], outputs[0])


@pytest.mark.parametrize("activation", ACTIVATIONS)
@torch.no_grad()
def test_an_mlp_in_place_equals_the_plain_one(activation):
    mlp, x = noisy(MLP(8, 32, activation)), torch.randn(2, 3, 8)
    expected, before = mlp(x), x.clone()
    torch.testing.assert_close(accelerate(mlp)(x), expected, rtol=1e-5, atol=1e-6)
    assert torch.equal(x, before)
    mlp.activation = nn.ReLU()
    torch.testing.assert_close(mlp(x), plain(mlp)(x), rtol=1e-5, atol=1e-6)


SUBMODULES = sorted({name.split("blocks.1.")[1] for name, _ in model_of().named_modules() if "blocks.1." in name})


@pytest.mark.parametrize("name", SUBMODULES)
@pytest.mark.parametrize("tower", ["image", "text"])
def test_hooks_see_the_plain_shapes(tower, name):
    model, batch = accelerate(model_of()), inputs()
    shapes = []
    module = model.get_submodule(f"{tower}.blocks.1.{name}")
    handle = module.register_forward_hook(lambda module, args, output: shapes.append((args[0].shape, output.shape)))
    hooked = results(model, *batch)
    handle.remove()
    torch.testing.assert_close(results(model, *batch), hooked, rtol=1e-9, atol=1e-11)
    assert len(shapes) == 1
    module.register_forward_hook(lambda module, args, output: shapes.append((args[0].shape, output.shape)))
    results(plain(model), *batch)
    assert shapes[0] == shapes[1]


@pytest.mark.parametrize("name", ["attention.qkv", "attention.out", "mlp.up", "mlp.down"])
@pytest.mark.parametrize("tower", ["image", "text"])
def test_a_replaced_layer_is_used_in_every_block(tower, name):
    """An adapter around a linear layer gets a gradient in every block, the last one too."""

    class Adapter(nn.Module):
        def __init__(self, layer):
            super().__init__()
            self.layer, self.delta = layer, nn.Linear(layer.in_features, layer.out_features).double()

        def forward(self, x):
            return self.layer(x) + self.delta(x)

    model, batch = accelerate(model_of()), inputs()
    for block in getattr(model, tower).blocks:
        parent, _, child = name.partition(".")
        setattr(getattr(block, parent), child, Adapter(block.get_submodule(name)))
    expected = results(model, *batch)
    adapters = [module for module in model.modules() if isinstance(module, Adapter)]
    assert len(adapters) == 2
    assert all(float(adapter.delta.weight.grad.abs().max()) > 0 for adapter in adapters)
    torch.testing.assert_close(results(plain(model), *batch), expected, rtol=1e-9, atol=1e-11)


@pytest.mark.peer
@pytest.mark.parametrize("image", ["class", "attention"])
def test_lora_trains_in_every_block(image):
    peft = pytest.importorskip("peft")
    model, batch = accelerate(model_of(image)), inputs()
    lora = peft.get_peft_model(model, peft.LoraConfig(r=4, target_modules=["qkv"], init_lora_weights=False))
    expected = results_of_lora(lora.base_model.model, *batch)
    assert set(expected) == {name for name, _ in lora.base_model.model.named_parameters() if "lora_" in name} | {
        "image",
        "text",
    }
    assert all(float(value.abs().max()) > 0 for value in expected.values())
    merged = lora.merge_and_unload()
    out = merged(*batch)
    torch.testing.assert_close(out.image_embeddings, expected["image"], rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(out.text_embeddings, expected["text"], rtol=1e-6, atol=1e-9)


def results_of_lora(model: CLIP, pixels: torch.Tensor, tokens: torch.Tensor) -> dict[str, torch.Tensor]:
    out = model(pixels, tokens)
    (out.image_embeddings.pow(2).sum() + out.text_embeddings.pow(2).sum()).backward()
    grads = {name: parameter.grad for name, parameter in model.named_parameters() if "lora_" in name}
    return {**grads, "image": out.image_embeddings.detach(), "text": out.text_embeddings.detach()}


def test_dynamic_quantization_replaces_the_linear_layers():
    model, (pixels, tokens) = accelerate(model_of("attention").float()), inputs()
    linears = sum(type(module) is nn.Linear for module in model.modules())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        quantized = torch.ao.quantization.quantize_dynamic(copy.deepcopy(model), {nn.Linear})
    assert linears
    assert not any(type(module) is nn.Linear for module in quantized.modules())
    with torch.no_grad():
        out, expected = quantized(pixels.float(), tokens), model(pixels.float(), tokens)
    similarity = nn.functional.cosine_similarity(out.image_embeddings, expected.image_embeddings)
    assert float(similarity.min()) > 0.99


def test_parametrized_weights_are_used():
    model, batch = accelerate(model_of()), inputs()
    nn.utils.parametrizations.weight_norm(model.image.blocks[1].attention.qkv)
    assert not is_exact(model.image.blocks)
    expected = results(model, *batch)
    torch.testing.assert_close(results(plain(model), *batch), expected, rtol=1e-9, atol=1e-11)


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize(("image", "text"), PAIRS)
@torch.no_grad()
def test_export_and_trace_take_the_plain_form(image, text):
    """For any batch, and any length of captions where the tower does not attend to padding."""
    model, (pixels, tokens) = accelerate(model_of(image, text)), inputs(text)
    batch, length = torch.export.Dim("batch"), torch.export.Dim("length", min=1, max=9)
    more = [inputs(text, batch=size, seed=size) for size in (1, 2, 7)]
    lengths = (9,) if text == "siglip" else (9, 6, 1)
    captions = [rows[:, :columns] for _, rows in more for columns in lengths]
    for tower, example, dims, others in (
        (model.image, pixels, {0: batch}, [images for images, _ in more]),
        (model.text, tokens, {0: batch} if text == "siglip" else {0: batch, 1: length}, captions),
    ):
        exported = torch.export.export(tower, (example,), dynamic_shapes=(dims,)).module()
        traced = torch.jit.trace(tower, (example,))
        for other in others:
            torch.testing.assert_close(exported(other), tower(other), rtol=1e-9, atol=1e-11)
            torch.testing.assert_close(traced(other), tower(other), rtol=1e-9, atol=1e-11)


def test_torch_func_takes_the_plain_form():
    model, tokens = accelerate(model_of()), inputs()[1]
    parameters = dict(model.text.named_parameters())

    def loss(parameters, row):
        return torch.func.functional_call(model.text, parameters, (row[None],)).pow(2).sum()

    per_sample = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(parameters, tokens)
    model.text(tokens).pow(2).sum().backward()
    for name, parameter in parameters.items():
        torch.testing.assert_close(per_sample[name].sum(0), parameter.grad, rtol=1e-8, atol=1e-10)


def test_compiled_towers_equal_the_plain_ones():
    model, batch = model_of(), inputs()
    expected = results(model, *batch)
    accelerate(model)
    for tower in (model.image, model.text):
        tower.compile(backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(results(model, *batch), expected, rtol=1e-9, atol=1e-11)


def test_a_subclass_of_the_user_is_left_alone():
    class Doubled(Attention):
        def forward(self, x, mask=None, causal=False):
            return 2 * super().forward(x, mask, causal)

    model, batch = model_of(), inputs()
    for block in model.image.blocks:
        attention = Doubled(16, 2).double()
        attention.load_state_dict(block.attention.state_dict())
        block.attention = attention
    expected = results(model, *batch)
    assert not is_exact(accelerate(model).image.blocks)
    torch.testing.assert_close(results(model, *batch), expected, rtol=1e-9, atol=1e-11)


def test_plain_refuses_wrapped_modules():
    model = accelerate(model_of())
    model.image.__class__ = type("Wrapped", (type(model.image),), {})
    if isinstance(model.text, tuple(PLAIN)):
        with pytest.raises(ValueError, match=r"image is a Wrapped: call fast\.plain before"):
            plain(model)


@pytest.mark.parametrize("tokens", [1, 50, 600])
@pytest.mark.parametrize("amx", [True, False])
def test_bfloat16_attention_is_as_accurate_as_torchs(tokens, amx, monkeypatch):
    """Both forms differ from float64 by bfloat16's rounding."""
    monkeypatch.setattr("miniclip.fast.attention.has_amx", lambda: amx)
    q, k, v = (torch.randn(2, 3, tokens, 16, generator=torch.Generator().manual_seed(i)) for i in range(3))
    exact = nn.functional.scaled_dot_product_attention(q.double(), k.double(), v.double())
    rounded = [x.bfloat16() for x in (q, k, v)]
    torch_error = (nn.functional.scaled_dot_product_attention(*rounded).double() - exact).norm() / exact.norm()
    y = attention(*rounded, None, causal=False)
    assert y.dtype == torch.bfloat16
    error = (y.double() - exact).norm() / exact.norm()
    assert error < 1.5 * torch_error < 0.02


@pytest.mark.parametrize(("image", "text"), PAIRS)
def test_a_bfloat16_residual_stream_is_near_the_float32_one(image, text):
    """Only under autocast, and in the dtype between the blocks too."""
    model, (pixels, tokens) = accelerate(model_of(image, text).float()), inputs(text)
    if type(model.image.blocks) is not FastTransformer:
        pytest.skip("MINICLIP_FAST=0")

    def output(enabled):
        model.image.blocks.bfloat16_residual = model.text.blocks.bfloat16_residual = enabled
        with torch.autocast("cpu", torch.bfloat16):
            return torch.cat(model(pixels.float(), tokens)[:2]).float()

    expected = output(False)
    error = (output(True) - expected).norm() / expected.norm()
    assert 0 < error < 0.05
    exact = model(pixels.float(), tokens)
    model.image.blocks.bfloat16_residual = model.text.blocks.bfloat16_residual = False
    assert torch.equal(exact.image_embeddings, model(pixels.float(), tokens).image_embeddings)
