"""Names that people type for models: they work if they are certain, and get a hint otherwise."""

from pathlib import Path

import numpy as np
import pytest
import torch

from miniclip.config import PRESETS
from miniclip.hub import fresh, load, push_to_hub, save
from miniclip.hub.registry import PRETRAINED, meant
from miniclip.inference.model import CLIPModel


@pytest.fixture(autouse=True)
def _working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def model(toy_config, toy_tokenizer) -> CLIPModel:
    return fresh(toy_config, toy_tokenizer)


NAMES = {
    "ViT-B/32": "vit_b_32",
    "ViT-B/16": "vit_b_16",
    "ViT-L/14": "vit_l_14",
    "ViT-L/14@336px": "vit_l_14_336",
    "ViT-B-32": "vit_b_32",
    "ViT-B-32-quickgelu": "vit_b_32",
    "ViT-L-14-336": "vit_l_14_336",
    "clip-ViT-B-32": "vit_b_32",
    "clip-ViT-L-14": "vit_l_14",
    "clip-vit-base-patch32": "vit_b_32",
    "CLIP ViT-B/16": "vit_b_16",
    "vitb32": "vit_b_32",
    "vit_b32": "vit_b_32",
    "VIT_B_16": "vit_b_16",
    "ViT-B-16-SigLIP": "siglip_b_16",
    "siglip-base-patch16-224": "siglip_b_16",
    "CLIP-ViT-B-32-laion2B-s34B-b79K": "vit_b_32_laion2b",
    "vit-b-32-laion2b": "vit_b_32_laion2b",
    "ViT-H-14": "vit_h_14_laion2b",
    "ViT-bigG-14": "vit_bigg_14_laion2b",
    "SigLIP": "siglip_b_16",
    "RN50": "rn50",
    "RN50x64": "rn50x64",
    "ResNet101": "rn101",
    "resnet50": "rn50",
    "EVA02-B-16": "eva02_b_16",
    "MobileCLIP2-S0": "mobileclip2_s0",
    "./vit_b_32": "vit_b_32",
}


@pytest.mark.parametrize("name", sorted(NAMES))
def test_names_of_other_projects(name):
    with pytest.raises(FileNotFoundError, match=f"did you mean '{NAMES[name]}'") as caught:
        load(name)
    assert str(caught.value).startswith(f"{name}: neither a path nor the name of a model")
    if NAMES[name] in PRESETS:
        with pytest.raises(ValueError, match=f"unknown preset '{name}'; did you mean '{NAMES[name]}'"):
            load(name, pretrained=False)


def test_a_model_is_not_meant_by_the_name_of_another():
    for name, entry in PRETRAINED.items():
        assert meant(name, PRETRAINED) == name
        assert meant(entry.repo.split("/")[1], PRETRAINED) == name
    assert meant("", PRETRAINED) is meant("clip", PRETRAINED) is meant("zzz", PRETRAINED) is None


@pytest.mark.parametrize(
    "name",
    [
        "hf-hub:me/mine",
        "hf://me/mine",
        "https://huggingface.co/me/mine",
        "https://hf.co/me/mine/",
    ],
)
def test_addresses_of_repositories(model, hub_server, name):
    save(model, "model")
    hub_server.repos["me/mine"] = {path.name: path.read_bytes() for path in Path("model").iterdir()}
    assert torch.equal(load(name).log_scale, model.log_scale)


def test_repositories_of_known_models_are_loaded(model, hub_server):
    save(model, "model")
    for repo in ("openai/clip-vit-base-patch32", "laion/CLIP-ViT-B-32-laion2B-s34B-b79K"):
        hub_server.repos[repo] = {path.name: path.read_bytes() for path in Path("model").iterdir()}
        assert torch.equal(load(repo).log_scale, model.log_scale)


def test_missing_repository_with_the_name_of_a_known_model(hub_server):
    with pytest.raises(FileNotFoundError, match=r"as a repository on the Hub: .*did you mean 'vit_b_32_laion2b'"):
        load("ViT-B-32/laion2b_s34b_b79k")


@pytest.mark.parametrize(
    "name", ["https://example.com/model.pt", "s3://bucket/model", "https://huggingface.co/me/mine/tree/main"]
)
def test_other_addresses(name):
    with pytest.raises(FileNotFoundError, match=r"is a URL; pass a repository|neither a path nor the name"):
        load(name)


def test_local_folders(model, tmp_path, monkeypatch):
    save(model, "model")
    assert torch.equal(load("local-dir:model").log_scale, model.log_scale)
    with pytest.raises(FileNotFoundError, match=r"^missing: no such file or directory"):
        load("local-dir:missing")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert torch.equal(load("~/model").log_scale, model.log_scale)
    (tmp_path / "ViT-B").mkdir()
    save(model, "ViT-B/32")
    assert torch.equal(load("ViT-B/32").log_scale, model.log_scale)


WRONG = {
    "no name": ({"name": None}, TypeError, "name: found a NoneType; expected a name of"),
    "number": ({"name": 3}, TypeError, "name: found an int"),
    "empty": ({"name": ""}, ValueError, "name: found an empty string"),
    "open_clip's tag": ({"name": "vit_b_32", "pretrained": "laion2b_s34b_b79k"}, TypeError, "pretrained is 'laion2b"),
    "no pretrained": ({"name": "vit_b_32", "pretrained": None}, TypeError, "pretrained is None"),
    "int8": ({"name": "vit_b_32", "dtype": torch.int8}, ValueError, "dtype torch.int8: expected torch.float32"),
    "bool": ({"name": "vit_b_32", "dtype": torch.bool}, ValueError, "dtype torch.bool"),
    "complex": ({"name": "vit_b_32", "dtype": torch.complex64}, ValueError, "dtype torch.complex64"),
    "float8": ({"name": "vit_b_32", "dtype": torch.float8_e4m3fn}, ValueError, "dtype torch.float8_e4m3fn"),
    "numpy": ({"name": "vit_b_32", "dtype": np.float32}, TypeError, "dtype: found the class float32; expected"),
    "number as dtype": ({"name": "vit_b_32", "dtype": 16}, TypeError, "dtype: found an int"),
    "dtype name": ({"name": "vit_b_32", "dtype": "int8"}, ValueError, "unknown dtype 'int8'"),
    "config as dict": ({"name": "model", "config": {"embed_dim": 8}}, TypeError, "config: found a dict; .*from_dict"),
    "tokenizer": (
        {"name": "bert_vit_tiny", "pretrained": False, "tokenizer": {}}, TypeError, "tokenizer: found a dict",
    ),
    "image size": (
        {"name": "bert_vit_tiny", "pretrained": False, "image_size": "32"}, TypeError, "image_size is '32', a str",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", sorted(WRONG))
def test_wrong_arguments_of_load(model, kind):
    save(model, "model")
    options, error, message = WRONG[kind]
    with pytest.raises(error, match=message):
        load(**options)


def test_wrong_arguments_of_a_model(model):
    with pytest.raises(TypeError, match=r"config: found a str; expected a CLIPConfig: by name, miniclip\.load"):
        CLIPModel("vit_b_16")
    with pytest.raises(TypeError, match=r"config: found a dict; .*CLIPConfig\.from_dict"):
        CLIPModel(model.config.to_dict())
    with pytest.raises(TypeError, match=r"tokenizer: found a str; expected a tokenizer"):
        CLIPModel(model.config, "tokenizer.json")
    with pytest.raises(TypeError, match=r"the configuration is a list; expected a dict"):
        type(model.config).from_dict([1])


def test_numpy_image_size():
    assert load("bert_vit_tiny", pretrained=False, image_size=np.int64(32)).config.image.image_size == 32


@pytest.mark.parametrize("value", ["model", None, {"a": 1}], ids=["path", "None", "dict"])
def test_saving_of_something_else(model, value, tmp_path):
    with pytest.raises(TypeError, match=r"the model is an? .*; expected a CLIPModel"):
        save(value, tmp_path / "saved")
    with pytest.raises(TypeError, match=r"the model is an? .*; expected a CLIPModel"):
        push_to_hub(value, "me/mine")
    assert not (tmp_path / "saved").exists()


def test_saving_of_a_wrapped_model(model, tmp_path):
    save(torch.nn.DataParallel(model), tmp_path / "parallel")
    assert torch.equal(load(tmp_path / "parallel").log_scale, model.log_scale)
