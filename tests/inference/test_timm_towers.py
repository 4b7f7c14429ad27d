"""Image towers of timm, and ResNets, in all that a model goes through: buffers, precisions, runs, averages, exports."""

import copy
import json
import pickle

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import miniclip
from miniclip.data import Shapes
from miniclip.deployment.layouts import immich
from miniclip.deployment.layouts.transformers_files import write_settings
from miniclip.deployment.options import Options
from miniclip.finetuning.interpolation import soup
from miniclip.hub.model_card import model_card
from miniclip.inference.image_towers import fill_buffers, other_tower
from miniclip.inference.model import CLIPModel
from miniclip.tower_config import TimmConfig
from miniclip.train import TrainConfig, Trainer
from tests.toys import StopAt, make_model

pytest.importorskip("timm")

from tests.timm_toys import TOWERS, tower_model, tower_pixels

RELPOS = TimmConfig(32, "relpos_toy", "token", None)


@pytest.fixture
def model(request, tokenizer):
    """A model with a tower of `TOWERS`; EVA without a parameter."""
    return tower_model(TOWERS[getattr(request, "param", "eva")], tokenizer)


def saved(model, folder):
    miniclip.save(model, folder)
    return folder


def test_buffers_without_a_place_in_checkpoints_come_back(model, tmp_path):
    pixels = tower_pixels(model)
    expected = model.encode_image(pixels)
    folder = saved(model, tmp_path / "model")
    for changes in ({}, {"context_length": 8}):
        assert torch.equal(miniclip.load(folder, **changes).encode_image(pixels), expected)
    mean = soup([model, copy.deepcopy(model)])
    torch.testing.assert_close(mean.encode_image(pixels), expected)


@pytest.mark.parametrize("image", [TOWERS["eva"], RELPOS], ids=["eva", "relpos"])
def test_precision_of_a_load_is_that_of_a_conversion(image, tokenizer, tmp_path):
    model = tower_model(image, tokenizer)
    pixels = tower_pixels(model)
    loaded = miniclip.load(saved(model, tmp_path / "model"), dtype="bfloat16")
    assert torch.equal(loaded.encode_image(pixels), model.to(torch.bfloat16).encode_image(pixels))


def test_buffers_are_computed_without_memory_for_weights(model, monkeypatch):
    with torch.device("meta"):
        empty = CLIPModel(model.config)
    weights = []
    monkeypatch.setattr(torch.nn.Linear, "reset_parameters", lambda layer: weights.append(layer.weight.device.type))
    state = torch.get_rng_state()
    fill_buffers(empty.image, 16)
    assert set(weights) == {"meta"}
    assert torch.equal(torch.get_rng_state(), state)
    buffers = dict(model.image.named_buffers())
    assert buffers
    assert all(torch.equal(value, buffers[name]) for name, value in empty.image.named_buffers())


class SetValues(TorchDispatchMode):
    """Recorder of operations that set values in place."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.__name__.partition(".")[0]
        self.names += [name] if name.endswith("_") and name != "detach_" else []
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", ["convnext", "fastvit", "eva"])
def test_towers_without_memory_are_built_without_values(name):
    """Torch needs a millisecond for each change of values on the meta device; a large tower took a second."""
    with SetValues() as setting, torch.device("meta"):
        assert len(list(other_tower(TOWERS[name], 16).parameters())) > 20
    assert {"erfinv_", "clamp_", "normal_", "uniform_"}.isdisjoint(setting.names)


@pytest.mark.parametrize("model", TOWERS, indirect=True)
def test_copies_and_pickles(model):
    pixels = tower_pixels(model)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(other.encode_image(pixels), model.encode_image(pixels))
        assert other.config == model.config


def test_tower_in_another_precision(model):
    model.image.bfloat16()
    assert model.encode_image(tower_pixels(model)).dtype == torch.float32


@pytest.mark.parametrize("model", ["resnet", "eva"], indirect=True)
def test_resumes_bit_for_bit(model, tmp_path):
    data = Shapes("train", 8, image_size=model.config.image.image_size)
    config = TrainConfig(epochs=2, batch_size=4, ema_decay=0.5, precision="float32", log_every=1, num_workers=0)
    whole = Trainer(copy.deepcopy(model), data, data, config=config, run_dir=tmp_path / "whole", callbacks=[])
    whole.fit()
    part = Trainer(model, data, data, config=config, run_dir=tmp_path / "part", callbacks=[StopAt(3)])
    with pytest.raises(KeyboardInterrupt):
        part.fit()
    rest = Trainer.resume(tmp_path / "part", data, data, callbacks=[])
    rest.fit()
    pixels = tower_pixels(model)
    assert torch.equal(rest.model.encode_image(pixels), whole.model.encode_image(pixels))
    for folder in ("last", "best"):
        a, b = (miniclip.load(tmp_path / run / folder).state_dict() for run in ("whole", "part"))
        assert all(torch.equal(value, b[name]) for name, value in a.items())


def test_averages_of_other_statistics_are_warned_of(tokenizer):
    a, b = (tower_model(TOWERS["resnet"], tokenizer) for _ in range(2))
    soup([a, b])
    b.image.layer2[0].bn1.running_var.mul_(1.1)
    with pytest.warns(UserWarning, match=r"statistics of batch normalization \(image.layer2.0.bn1.running_var\)"):
        soup([a, b])


def test_averages_of_other_towers_are_refused(model, tokenizer):
    resnet = tower_model(TOWERS["resnet"], tokenizer)
    for other, name in ((resnet, "a ResNet"), (make_model(tokenizer), "a vision transformer")):
        with pytest.raises(ValueError, match=rf"they differ in the image tower \(timm's eva_toy and {name}\)"):
            soup([model, other])


def test_settings_of_applications(tokenizer, tmp_path, monkeypatch):
    """immich, transformers.js and optimum read ONNX files, in which any image tower works."""
    model = tower_model(TOWERS["resnet"], tokenizer)
    for writer in ("write_image_encoder", "write_text_encoder"):
        monkeypatch.setattr(immich, writer, lambda *_: None)
    immich.write(model, tmp_path, Options())
    assert json.loads((tmp_path / "config.json").read_text())["vision_cfg"] == {"image_size": 64}
    write_settings(model, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["vision_config"] == {"model_type": "clip_vision_model", "image_size": 64, "projection_dim": 16}


def test_card_of_a_model_with_a_tower_of_timm(model):
    card = model_card("org/name", model.config.to_dict())
    assert 'The image tower needs `pip install "miniclip[timm]"`.' in card
    assert r"| architecture in timm | eva\_toy |" in card
    assert "miniclip[timm]" not in model_card("org/name", {**model.config.to_dict(), "image": {"kind": "resnet"}})
