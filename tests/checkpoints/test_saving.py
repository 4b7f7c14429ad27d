"""Models that were changed after they were built: saved so that they open again, or refused."""

import copy
import warnings

import pytest
import torch
from torch import nn

from miniclip.checkpoints.native import save_checkpoint
from miniclip.config import CLIPConfig, ImageConfig, TextConfig
from miniclip.hub import load
from miniclip.inference.model import CLIPModel
from miniclip.models.layers import Attention

CONFIG = CLIPConfig(ImageConfig(16, 8, 32, 2, 2), TextConfig(8, 50, 32, 2, 2, causal=True, pooling="end"), 16)
PIXELS, TOKENS = torch.randn(2, 3, 16, 16), torch.tensor([[1, 4, 49, 0], [3, 5, 6, 49]])


@pytest.fixture
def model():
    return CLIPModel(CONFIG).initialise().eval()


@torch.no_grad()
def outputs(model):
    return model(PIXELS, TOKENS)[:2]


def parametrize_weights(model):
    nn.utils.parametrizations.weight_norm(model.image.blocks[1].attention.qkv)
    nn.utils.parametrizations.spectral_norm(model.text.blocks[0].mlp.up)
    nn.utils.parametrizations.orthogonal(model.text.projection)


def parametrize_a_tower(model):
    nn.utils.parametrize.register_parametrization(model.text, "positions", Scaled())
    nn.utils.parametrize.register_parametrization(model.image.patches, "weight", Scaled())
    nn.utils.parametrize.register_parametrization(model, "log_scale", Scaled())


class Scaled(nn.Module):
    def forward(self, x):
        return 1.5 * x


@pytest.mark.parametrize("change", [parametrize_weights, parametrize_a_tower])
def test_parametrized_weights_are_saved_as_computed(change, model, tmp_path):
    change(model)
    expected = outputs(model)
    save_checkpoint(model, tmp_path)
    for value, other in zip(outputs(load(tmp_path)), expected, strict=True):
        torch.testing.assert_close(value, other, rtol=1e-5, atol=1e-6)


def compile_blocks(model):
    model.image.blocks[0] = torch.compile(model.image.blocks[0], backend="eager")
    model.text = torch.compile(model.text, backend="eager")


def wrap_for_checkpointing(model):
    from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

    model.image.blocks[1] = checkpoint_wrapper(model.image.blocks[1])


def wrap_in_data_parallel(model):
    model.image = nn.DataParallel(model.image)
    model.text.blocks[0].mlp = nn.DataParallel(model.text.blocks[0].mlp)


def replace_by_a_subclass(model):
    class Logged(Attention):
        pass

    attention = Logged(32, 2)
    attention.load_state_dict(model.text.blocks[0].attention.state_dict())
    model.text.blocks[0].attention = attention


@pytest.mark.parametrize(
    "change", [compile_blocks, wrap_for_checkpointing, wrap_in_data_parallel, replace_by_a_subclass]
)
def test_wrapped_parts_are_saved_under_plain_names(change, model, tmp_path):
    expected = outputs(model)
    change(model)
    save_checkpoint(model, tmp_path)
    for value, other in zip(outputs(load(tmp_path)), expected, strict=True):
        torch.testing.assert_close(value, other, rtol=1e-5, atol=1e-6)


def quantize(model):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, inplace=True)


def norm_weights_in_a_hook(model):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        nn.utils.weight_norm(model.text.blocks[0].attention.qkv)


def prune_weights(model):
    from torch.nn.utils import prune

    prune.l1_unstructured(model.image.projection, "weight", 0.5)


def replace_an_activation(model):
    model.text.blocks[1].mlp.activation = nn.ReLU()


def add_a_head(model):
    model.head = nn.Linear(16, 3)


def inject_lora(model):
    peft = pytest.importorskip("peft")
    peft.inject_adapter_in_model(peft.LoraConfig(target_modules=["qkv"]), model)


CHANGES = {
    "quantized": (quantize, r"attention\.out is a torch\.ao\.nn\.quantized\.dynamic\.modules\.linear\.Linear"),
    "weight norm": (norm_weights_in_a_hook, r"text\.blocks\.0\.attention\.qkv\.weight_g"),
    "pruned": (prune_weights, r"image\.projection\.weight_mask"),
    "activation": (
        replace_an_activation,
        r"text\.blocks\.1\.mlp\.activation is a torch\.nn\.modules\.activation\.ReLU",
    ),
    "head": (add_a_head, r"head\.bias, head\.weight"),
    "adapter": (inject_lora, r"attention\.qkv is a peft\.tuners\.lora\.layer\.Linear"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_other_changes_are_refused(change, model, tmp_path, one_line):
    function, problem = CHANGES[change]
    function(model)
    with pytest.raises(ValueError, match=rf"the model is not that of its configuration.*{problem}") as caught:
        save_checkpoint(model, tmp_path / "model")
    one_line(caught, "merge_and_unload()")
    assert not (tmp_path / "model").exists()


def test_a_parametrized_model_is_not_changed(model, tmp_path):
    parametrize_weights(model)
    names, before = list(model.state_dict()), copy.deepcopy(model.state_dict())
    save_checkpoint(model, tmp_path)
    assert list(model.state_dict()) == names
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
