"""Adapters of peft: adapted and merged models agree in every layer of both towers, for every pooling."""

import copy
import itertools

import pytest
import torch
from torch import nn

from miniclip.fast import accelerate, plain
from tests.fast.test_seam import PAIRS, inputs, model_of, noisy

pytestmark = pytest.mark.peer
peft = pytest.importorskip("peft")

LINEAR = ["qkv", "out", "up", "down", "projection"]
ADAPTERS = {
    "lora": lambda: peft.LoraConfig(r=4, target_modules=[*LINEAR, "patches", "tokens"]),
    "dora": lambda: peft.LoraConfig(r=4, use_dora=True, target_modules=[*LINEAR, "patches", "tokens"]),
    "ia3": lambda: peft.IA3Config(target_modules=[*LINEAR, "patches"], feedforward_modules=["down"]),
    "vera": lambda: peft.VeraConfig(r=4, target_modules=["qkv"]),
    "oft": lambda: peft.OFTConfig(oft_block_size=4, target_modules=["qkv", "out", "up", "down"]),
    "loha": lambda: peft.LoHaConfig(r=4, target_modules=[*LINEAR, "patches"]),
    "lokr": lambda: peft.LoKrConfig(r=4, target_modules=LINEAR),
    "boft": lambda: peft.BOFTConfig(boft_block_size=4, target_modules=["qkv", "out"]),
    "randlora": lambda: peft.RandLoraConfig(r=4, target_modules=["qkv"]),
    "fourier": lambda: peft.FourierFTConfig(n_frequency=20, target_modules=["qkv", "out"]),
    "hra": lambda: peft.HRAConfig(r=4, target_modules=LINEAR),
}


def adapted(name, image, text):
    """Return a model with random adapters in every layer, which changes its embeddings."""
    config = ADAPTERS[name]()
    if image == "attention":  # this tower has no projection
        config.target_modules = {"text.projection" if name == "projection" else name for name in config.target_modules}
    model = peft.get_peft_model(accelerate(model_of(image, text)), config)
    base = {id(parameter) for parameter in model_of(image, text).parameters()}
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if parameter.requires_grad and id(parameter) not in base and "magnitude" not in key:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype))
    return model.eval()


@torch.no_grad()
def embeddings(model, batch):
    return model(*batch)[:2]


@pytest.mark.parametrize(
    ("name", "image", "text"),
    [("lora", *pair) for pair in PAIRS[1:]]
    + [(name, *pair) for name, pair in zip(ADAPTERS, itertools.cycle(PAIRS), strict=False)],
)
def test_adapted_and_merged_models_agree(name, image, text):
    """LoRA in every pair of towers, the other adapters in one of them each."""
    batch, untouched = inputs(text), model_of(image, text)
    model = adapted(name, image, text)
    expected = embeddings(model.base_model.model, batch)
    for value, other in zip(expected, embeddings(untouched, batch), strict=True):
        assert float((value - other).abs().max()) > 1e-4, "the adapter has no effect"
    for value, other in zip(embeddings(plain(copy.deepcopy(model.base_model.model)), batch), expected, strict=True):
        torch.testing.assert_close(value, other, rtol=1e-6, atol=1e-8)
    for value, other in zip(embeddings(model.merge_and_unload(), batch), expected, strict=True):
        torch.testing.assert_close(value, other, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["lora", "ia3", "vera", "oft"])
def test_adapters_have_gradients_in_every_block(name):
    model, batch = adapted(name, "class", "causal"), inputs()
    output = model.base_model.model(*batch)
    (output.image_embeddings.pow(2).sum() + output.text_embeddings.pow(2).sum()).backward()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert trained
    assert all(float(parameter.grad.abs().max()) > 0 for parameter in trained)


@pytest.mark.parametrize("name", ["out", "up", "patches", "tokens", "norm1", "projection", "positions"])
@pytest.mark.parametrize("tower", ["image", "text"])
def test_parametrizations_are_used(tower, name):
    class Scaled(nn.Module):
        def forward(self, weight):
            return 1.3 * weight

    model, batch = accelerate(model_of()), inputs()
    before = embeddings(model, batch)
    changed = False
    for module_name, module in list(model.named_modules()):
        if module_name.startswith(tower) and module_name.rpartition(".")[2] == name:
            nn.utils.parametrize.register_parametrization(module, "weight", Scaled())
            changed = True
    if name == "positions":
        nn.utils.parametrize.register_parametrization(getattr(model, tower), "positions", Scaled())
        changed = True
    after = embeddings(model, batch)
    for value, other in zip(after, embeddings(plain_copy(model, name), batch), strict=True):
        torch.testing.assert_close(value, other, rtol=1e-9, atol=1e-11)
    index = 0 if tower == "image" else 1
    assert (float((after[index] - before[index]).abs().max()) > 1e-4) == changed
    assert torch.equal(after[1 - index], before[1 - index])


def plain_copy(model, name):
    """Return a plain model with the weights that the parametrizations compute."""
    other = noisy(model_of())
    with torch.no_grad():
        for key, parameter in other.named_parameters():
            module, _, weight = key.rpartition(".")
            parameter.copy_(getattr(model.get_submodule(module), weight))
    return other


@pytest.mark.parametrize(("image", "text"), PAIRS)
@pytest.mark.parametrize("kind", ["forward", "pre", "replaced"])
def test_hooks_that_change_values_are_used(kind, image, text):
    """A hook on any module has the effect that it has in the plain form, and so has a replaced `forward`."""
    batch, models = inputs(text), [form(model_of(image, text)) for form in (accelerate, plain)]
    for name in [name for name, _ in models[1].named_modules() if name]:
        results = []
        for model in models:
            module, handles = model.get_submodule(name), []
            if kind == "forward":
                handles.append(module.register_forward_hook(lambda module, args, output: 1.5 * output))
            elif kind == "replaced":
                module.forward = lambda *args, original=module.forward: 1.5 * original(*args)
            elif name not in ("text", "text.tokens", "image"):  # inputs are ids, or images
                handles.append(module.register_forward_pre_hook(lambda module, args: (1.5 * args[0], *args[1:])))
            results.append(embeddings(model, batch))
            for handle in handles:
                handle.remove()
            vars(module).pop("forward", None)
        for value, other in zip(*results, strict=True):
            torch.testing.assert_close(value, other, rtol=1e-9, atol=1e-11, msg=name)
