"""ResNets and timm's image towers in a model: saving, training mode, exports, and refusals."""

import dataclasses
import json

import pytest
import torch

import miniclip
from miniclip.config import CLIPConfig, TextConfig
from miniclip.evaluation.features import image_features, project
from miniclip.explanation import explain
from miniclip.finetuning import add_lora
from miniclip.hub import fresh
from miniclip.inference.model import CLIPModel
from miniclip.runtime.flops import pair_flops
from miniclip.runtime.memory import checkpoint_blocks
from miniclip.tower_config import ResNetConfig, TimmConfig
from miniclip.train import TrainConfig
from miniclip.train.requirements import require_trainable
from miniclip.train.variants.rates import lr_scales
from miniclip.train.variants.stochastic_depth import set_stochastic_depth

RESNET = ResNetConfig(64, (1, 2, 1, 1), channels=8, pool_heads=4)
CONFIG = CLIPConfig(RESNET, TextConfig(77, 600, 32, 1, 2), 16)


@pytest.fixture
def resnet(tokenizer):
    """A ResNet with random weights and statistics."""
    torch.manual_seed(0)
    model = CLIPModel(CONFIG, tokenizer).eval()
    for name, value in model.image.state_dict().items():
        value.uniform_(0.5, 1.5) if name.endswith("running_var") else value.normal_(std=0.3)
    return model


@pytest.fixture
def pixels():
    return torch.randn(4, 3, 64, 64) + 2 * torch.randn(4, 3, 1, 1)


def test_saves_and_loads(resnet, pixels, tmp_path):
    miniclip.save(resnet, tmp_path / "model")
    values = json.loads((tmp_path / "model" / "config.json").read_text())
    assert values["image"] == {
        "image_size": 64,
        "blocks": [1, 2, 1, 1],
        "channels": 8,
        "pool_heads": 4,
        "kind": "resnet",
    }
    model = miniclip.load(tmp_path / "model")
    assert model.config == CONFIG
    assert torch.equal(model.encode_image(pixels), resnet.encode_image(pixels))
    assert torch.equal(model.encode_text("a red ring"), resnet.encode_text("a red ring"))
    half = miniclip.load(tmp_path / "model", dtype="bfloat16")
    assert {value.dtype for value in half.state_dict().values()} == {torch.bfloat16}
    assert float((half.encode_image(pixels) * model.encode_image(pixels)).sum(1).min()) > 0.99


def test_configurations_from_json():
    timm = CLIPConfig(TimmConfig(64, "convnext_atto", "avg", None), CONFIG.text, 16)
    for config in (CONFIG, timm):
        assert CLIPConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
        assert hash(config) == hash(CLIPConfig.from_dict(config.to_dict()))
    with pytest.raises(ValueError, match=r"image\.kind is 'vgg'; expected one of resnet, timm, or none"):
        CLIPConfig.from_dict({**CONFIG.to_dict(), "image": {"kind": "vgg"}})
    with pytest.raises(ValueError, match="expected a multiple of 32"):
        dataclasses.replace(RESNET, image_size=50)
    with pytest.raises(ValueError, match="expected a divisor of 256"):
        dataclasses.replace(RESNET, pool_heads=3)


def test_statistics_stay_in_training(resnet, pixels):
    """A step must not depend on how a batch is divided, nor evaluation on the steps' batches."""
    before = {name: value.clone() for name, value in resnet.named_buffers()}
    whole = resnet.train().image(pixels)
    assert resnet.image.training
    torch.testing.assert_close(torch.cat([resnet.image(part) for part in pixels.split(2)]), whole, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(resnet.eval().image(pixels), whole)
    assert len(before) == 44
    assert all(torch.equal(value, before[name]) for name, value in resnet.named_buffers())


def test_features_are_embeddings(resnet, pixels):
    features = image_features(resnet, pixels)
    assert torch.equal(features, resnet.encode_image(pixels, normalize=False))
    assert torch.equal(project(resnet, features), resnet.encode_image(pixels))


def test_unknown_architectures():
    with pytest.raises(ValueError, match="has no architecture 'convnext_zeta': a newer version may have it"):
        CLIPModel(CLIPConfig(TimmConfig(64, "convnext_zeta", "", "linear"), CONFIG.text, 16))


def lora(model):
    add_lora(model, towers=["image"])


REFUSED = [
    (lambda model: model.image(torch.zeros(1, 3, 32, 32)), r"\(1, 3, 32, 32\), not \(B, 3, 64, 64\)"),
    (lambda model: model.image(torch.zeros(1, 3, 64, 64), torch.zeros(1, 1)), "a ResNet, without patches to leave out"),
    (lambda model: model.config.image.patches, "a ResNet, without 'patches': this works only with vision transformers"),
    (lambda model: explain(model, torch.zeros(3, 64, 64, dtype=torch.uint8), "a ring"), "a ResNet, without 'grid'"),
    (lambda model: lr_scales(model, TrainConfig(layer_decay=0.9)), r"layer_decay is 0.9, .* without miniclip's blocks"),
    (lambda model: lr_scales(model, TrainConfig(projection_lr_scale=2)), "without miniclip's projection: use 1"),
    (lambda model: set_stochastic_depth(model, 0.1), "stochastic_depth: the image tower has none of miniclip's blocks"),
    (lambda model: checkpoint_blocks(model), "gradient_checkpointing: the image tower has no blocks"),
    (lora, "LoRA: the image tower has no blocks to adapt"),
    (lambda model: model.initialise(), "ResNet: the table has no fresh weights for it"),
    (lambda model: fresh(model.config), "a ResNet, which miniclip trains from pretrained weights only"),
]


@pytest.mark.parametrize(("use", "message"), REFUSED)
def test_refuses_what_needs_a_vision_transformer(use, message, resnet):
    with pytest.raises(ValueError, match=message):
        use(resnet)


@pytest.mark.parametrize(
    ("setting", "value"), [("patch_dropout", 0.5), ("stochastic_depth", 0.1), ("gradient_checkpointing", True)]
)
def test_settings_for_parts_of_a_vision_transformer_are_refused_before_a_run(setting, value, resnet, train_data):
    """`miniclip train --check` has this check too."""
    with pytest.raises(ValueError, match=f"{setting} is {value}, and the image tower is a ResNet, without"):
        require_trainable(resnet, train_data, None, TrainConfig(**{setting: value}))


@pytest.mark.parametrize("layout", ["transformers", "onnx"])
def test_layouts_without_resnets(layout, resnet, tmp_path):
    if layout == "onnx":
        with pytest.raises(ValueError, match="int8: the image tower is a ResNet, which has no int8 form"):
            miniclip.export(resnet, tmp_path / "out", layout=layout, int8=True)
    else:
        with pytest.raises(ValueError, match="transformers' CLIPModel cannot have this image tower, a ResNet"):
            miniclip.export(resnet, tmp_path / "out", layout=layout)
    assert not (tmp_path / "out").exists() or not any((tmp_path / "out").iterdir())


def test_settings_without_an_effect_are_allowed(resnet):
    assert pair_flops(resnet, 8) is None
    assert set(lr_scales(resnet, TrainConfig()).values()) == {1.0}
    resnet.image.requires_grad_(False)  # then the settings are for the text tower
    scales = lr_scales(resnet, TrainConfig(layer_decay=0.5, projection_lr_scale=2))
    assert {scales[id(parameter)] for parameter in resnet.text.parameters()} == {0.25, 0.5, 1.0, 2.0}
    set_stochastic_depth(resnet, 0.0)
    checkpoint_blocks(resnet, enabled=False)
