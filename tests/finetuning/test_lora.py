"""LoRA layers: the formula, gradients in every block through the fast forms, and merging to plain weights."""

import copy
import itertools

import pytest
import torch
from torch import nn

import miniclip
from miniclip.fast import accelerate, plain
from miniclip.fast.int8 import is_supported
from miniclip.finetuning import add_lora, merge
from miniclip.finetuning.lora import TARGETS, LoRALinear, insert, is_lora, lora_layers, shapes
from miniclip.inference.fingerprint import model_fingerprint
from miniclip.models.clip import CLIP
from miniclip.runtime.memory import checkpoint_blocks
from miniclip.train.config import LORA_TARGETS
from tests.fast.test_seam import inputs, model_of
from tests.toys import IMAGE_KINDS, TEXT_KINDS, make_model

PAIRS = list(zip(itertools.cycle(IMAGE_KINDS), TEXT_KINDS, strict=False))[:4]
SOME = [("q", "k", "v"), ("q", "v", "out"), ("k",), tuple(TARGETS)]


def adapted(model: nn.Module, targets=("q", "k", "v"), **options) -> nn.Module:
    """Add adapters whose B is not zero."""
    add_lora(model, targets=targets, **options)
    for layer in lora_layers(model).values():
        nn.init.normal_(layer.lora_B, std=0.3, generator=torch.Generator().manual_seed(1))
    return model


def test_settings_name_all_targets():
    assert tuple(TARGETS) == LORA_TARGETS


@pytest.mark.parametrize("parts", [(0, 1, 2), (0, 2), (1,)])
def test_each_group_of_a_fused_layer_is_a_layer_of_its_own(parts):
    """Queries, keys and values have their own A and B: W_g x + (alpha / r) B_g A_g x."""
    model = nn.Sequential(nn.Linear(8, 24)).double()
    (lora,) = shapes(["0.attention.qkv"], ["qkv"[part] for part in parts], 2, 6.0).values()
    insert(model, {"0": lora})
    layer = model[0]
    assert isinstance(layer, LoRALinear)
    nn.init.normal_(layer.lora_B)
    x = torch.randn(5, 3, 8, dtype=torch.float64)
    groups = []
    for group in range(3):
        rows = slice(8 * group, 8 * group + 8)
        y = x @ layer.weight[rows].T + layer.bias[rows]
        if group in parts:
            i = parts.index(group)
            y = y + 3.0 * x @ layer.lora_A[2 * i : 2 * i + 2].T @ layer.lora_B[8 * i : 8 * i + 8].T
        groups.append(y)
    torch.testing.assert_close(layer(x), torch.cat(groups, -1))
    update = layer(x) - nn.functional.linear(x, layer.weight, layer.bias)
    torch.testing.assert_close(layer.update(x, 8, 20), update[..., 8:20])


def test_a_new_adapter_changes_nothing():
    model, batch = accelerate(model_of()), inputs()
    before = model(*batch)
    added = add_lora(model)(*batch)
    assert torch.equal(added.image_embeddings, before.image_embeddings)
    assert torch.equal(added.text_embeddings, before.text_embeddings)


def test_a_depends_on_the_seed_and_the_name_only():
    one, other, third = (model_of() for _ in range(3))
    add_lora(one), add_lora(other, towers=["text"]), add_lora(third, seed=1)
    name = "text.blocks.1.attention.qkv"
    assert torch.equal(lora_layers(one)[name].lora_A, lora_layers(other)[name].lora_A)
    assert not torch.equal(lora_layers(one)[name].lora_A, lora_layers(third)[name].lora_A)
    assert not torch.equal(lora_layers(one)[name].lora_A, lora_layers(one)["text.blocks.0.attention.qkv"].lora_A)
    A = lora_layers(one)["image.blocks.0.attention.qkv"].lora_A
    assert A.abs().max() <= 16**-0.5
    assert A.std() > 0.4 * 16**-0.5


@pytest.mark.parametrize("targets", SOME, ids="".join)
@pytest.mark.parametrize(("image", "text"), PAIRS)
def test_fast_equals_plain_in_value_and_gradient(image, text, targets):
    """Gradients reach A and B of every block, and no base weight gets one."""
    model, batch = adapted(accelerate(model_of(image, text)), targets), inputs(text)
    fast = results_of(model, *batch)
    assert all(float(value.abs().max()) > 0 for value in fast.values())
    expected = results_of(plain(model), *batch)
    blocks = 2 * 2 * 2 * len({target.layer for name in targets for target in TARGETS[name]})  # towers, blocks, A and B
    assert len(expected) == blocks + 2
    torch.testing.assert_close(fast, expected, rtol=1e-9, atol=1e-11)


def results_of(model: CLIP, *batch: torch.Tensor) -> dict[str, torch.Tensor]:
    """Embeddings, and the gradients by name."""
    model.zero_grad()
    out = model(*batch)
    (out.image_embeddings.pow(2).sum() + out.text_embeddings.pow(3).sum()).backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    assert all(map(is_lora, gradients))
    return {**gradients, "image": out.image_embeddings.detach(), "text": out.text_embeddings.detach()}


def test_gradient_checkpointing_gives_the_same_gradients():
    model, batch = adapted(accelerate(model_of())), inputs()
    expected = results_of(model, *batch)
    checkpoint_blocks(model)
    torch.testing.assert_close(results_of(model, *batch), expected)


def test_bfloat16_autocast_is_close():
    model, (pixels, tokens) = adapted(accelerate(model_of().float())), inputs()
    expected = model(pixels.float(), tokens)
    with torch.autocast("cpu", torch.bfloat16):
        out = model(pixels.float(), tokens)
    for one, other in zip(out[:2], expected[:2], strict=True):
        assert torch.cosine_similarity(one.float(), other).min() > 0.99


@pytest.mark.parametrize("targets", SOME, ids="".join)
def test_merges_to_plain_weights(targets, tokenizer):
    model = adapted(make_model(tokenizer), targets, rank=3, alpha=6.0).eval()
    pixels, tokens = torch.randn(4, 3, 16, 16), tokenizer(["a red circle", "a square", "b", ""], context_length=77)
    expected, names = model(pixels, tokens), {name for name in model.state_dict() if not is_lora(name)}
    fingerprint = model_fingerprint(model)
    assert merge(model) is model
    assert model_fingerprint(model) == fingerprint  # alpha counts
    assert model.state_dict().keys() == names
    assert not lora_layers(model)
    assert all(type(module) is not LoRALinear for module in model.modules())
    out = model(pixels, tokens)
    for one, other in zip(out[:2], expected[:2], strict=True):
        assert (nn.functional.normalize(one) - nn.functional.normalize(other)).abs().max() < 1e-6


@pytest.mark.skipif(not is_supported(), reason="torch has no exact int8 product for this processor")
def test_quantization_merges_first(tokenizer):
    model = adapted(make_model(tokenizer)).eval()
    quantized = miniclip.quantize(model)
    assert not lora_layers(quantized)
    assert lora_layers(model)
    expected = miniclip.quantize(merge(copy.deepcopy(model)))
    assert torch.equal(quantized.encode_text(["a red circle"]), expected.encode_text(["a red circle"]))


def test_frozen_linear_layers_keep_no_input():
    """A frozen layer's gradient needs its weight only: the activations of LoRA's step are about half."""
    saved = []
    x, frozen = torch.randn(4, 8, requires_grad=True), nn.Linear(8, 8).requires_grad_(False)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.data_ptr()) or t, lambda t: t):
        miniclip.fast.matmul.apply_linear(frozen, x)
    assert x.data_ptr() not in saved


def test_refuses_layers_it_cannot_adapt():
    model = model_of()
    model.image.blocks[0].attention.qkv = torch.nn.utils.parametrizations.weight_norm(nn.Linear(16, 48))
    with pytest.raises(ValueError, match=r"image\.blocks\.0\.attention\.qkv is a Parametrized"):
        add_lora(model)
    tied = model_of()
    tied.image.blocks[1].attention.qkv.weight = tied.image.blocks[0].attention.qkv.weight
    with pytest.raises(ValueError, match=r"image\.blocks\.0\.attention\.qkv: its weight is tied"):
        add_lora(tied)


def test_refuses_wrong_names_and_other_adapters():
    model = add_lora(model_of(), rank=2, towers=["image"])
    with pytest.raises(ValueError, match="the image tower has other LoRA adapters already"):
        add_lora(model, rank=3)
    with pytest.raises(ValueError, match="unknown LoRA target 'query'"):
        add_lora(model, targets=["query"])
    with pytest.raises(ValueError, match=r"unknown LoRA tower 'images'; did you mean 'image'\?"):
        add_lora(model, towers=["images"])
    with pytest.raises(ValueError, match="the LoRA rank is 0; expected at least 1"):
        add_lora(model, rank=0)
