"""Configurations for weights without one: names of presets and of open_clip, and files of every project."""

import dataclasses
import json
import warnings

import pytest
import torch

from miniclip.checkpoints import given_config
from miniclip.checkpoints.export import export
from miniclip.checkpoints.formats.open_clip import model_config
from miniclip.checkpoints.given_config import given_plan, open_clip_models
from miniclip.config import PRESETS, CLIPConfig, ImageConfig, TextConfig
from miniclip.errors import CheckpointError
from miniclip.hub import load
from miniclip.inference.model import CLIPModel

TOY = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "patch_size": 8, "width": 64, "layers": 1},
    "text_cfg": {"context_length": 12, "vocab_size": 99, "width": 64, "heads": 2, "layers": 1},
}
OPENAI = CLIPConfig(
    ImageConfig(16, 8, 64, 1, 1, activation="quickgelu"),
    TextConfig(8, 50, 64, 1, 1, activation="quickgelu", causal=True, pooling="end", end_id=None),
    16,
)


@pytest.mark.parametrize("name", PRESETS)
def test_presets_by_name(name):
    assert given_plan(name).config == PRESETS[name][1]


@pytest.mark.parametrize(("name", "activation"), [("ViT-B-32", "gelu"), ("ViT-B-32-quickgelu", "quickgelu")])
def test_names_of_open_clip_have_its_activation(name, activation):
    config = given_plan(name).config
    assert config.image.activation == config.text.activation == activation
    assert (
        dataclasses.replace(
            config.replace_image(activation="quickgelu").replace_text(activation="quickgelu"), logit_scale=1 / 0.07
        )
        == PRESETS["vit_b_32"][1]
    )


@pytest.mark.peer
def test_the_table_is_open_clips():
    open_clip = pytest.importorskip("open_clip")
    assert open_clip_models() == {name: open_clip.get_model_config(name) for name in open_clip.list_models()}


@pytest.mark.filterwarnings("ignore:config ")
def test_every_name_gives_its_configuration_or_the_reason():
    reasons = 0
    for name, values in open_clip_models().items():
        results = []
        for read in (lambda values=values: model_config(values, {}), lambda name=name: given_plan(name).config):
            try:
                results.append(read())
            except ValueError as error:
                results.append(str(error).removeprefix(f"open_clip's {name}: "))
        assert results[0] == results[1]
        reasons += isinstance(results[0], str)
    assert 10 < reasons < 20


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("vit_b_33", r"unknown preset or configuration 'vit_b_33'; did you mean 'vit_b_32'\?"),
        ("ViT-B-33", r"did you mean 'ViT-B-32'\?"),
        ("ViT-B/32", "'ViT-B-32' is open_clip's configuration, with GELU, and 'ViT-B-32-quickgelu' is OpenAI's"),
        ("coca_ViT-B-32", "multimodal_cfg is set"),
    ],
)
def test_names_that_are_refused(name, message):
    with pytest.raises(ValueError, match=message):
        given_plan(name)


@pytest.mark.parametrize(("name", "warned"), [("ViT-L-14", False), ("ViT-B-16-SigLIP", True), ("ViT-L-14-CLIPA", True)])
def test_warns_of_preprocessing_that_the_name_does_not_give(name, warned):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        given_plan(name)
    assert [str(warning.message).startswith(f"config {name}: images get OpenAI's mean") for warning in caught] == (
        [True] if warned else []
    )


def test_names_of_open_clip_have_its_tokenizer():
    assert given_plan("ViT-B-32").tokenizer_options == {"clean": "lower"}
    assert given_plan("ViT-B-32").tokenizer_repo is None
    with pytest.warns(UserWarning, match="OpenAI's mean"):
        plan = given_plan("ViT-B-16-SigLIP")
    assert plan.tokenizer_options == {"clean": "canonicalize"}
    assert plan.tokenizer_repo == "timm/ViT-B-16-SigLIP"


@pytest.mark.peer
@pytest.mark.parametrize("quick_gelu", [False, True])
def test_open_clips_names_and_files_give_its_numbers(
    quick_gelu, tmp_path, monkeypatch, randomise, captions, compare, differences
):
    open_clip = pytest.importorskip("open_clip")
    factory = pytest.importorskip("open_clip.factory")
    config = {**TOY, **({"quick_gelu": True} if quick_gelu else {})}
    name = "ViT-Toy-quickgelu" if quick_gelu else "ViT-Toy"
    (tmp_path / f"{name}.json").write_text(json.dumps(config))
    monkeypatch.setitem(factory._MODEL_CONFIGS, name, config)
    monkeypatch.setattr(given_config, "open_clip_models", lambda: {name: config})
    torch.save(
        {"epoch": 1, "state_dict": randomise(open_clip.create_model(name)).state_dict()}, tmp_path / "epoch_1.pt"
    )
    peer = open_clip.create_model(name, pretrained=str(tmp_path / "epoch_1.pt")).eval()
    pixels, ids = torch.randn(3, 3, 32, 32), captions(12, 99, 98)
    with torch.no_grad():
        expected = peer.encode_image(pixels, normalize=True), peer.encode_text(ids, normalize=True)
        expected = (*expected, peer.get_logits(pixels, ids)[0])
    for given in (name, tmp_path / f"{name}.json"):
        compare(load(tmp_path / "epoch_1.pt", config=given), pixels, ids, expected)
    other = model_config({**config, "quick_gelu": not quick_gelu}, {})
    off = differences(load(tmp_path / "epoch_1.pt", config=other), pixels, ids, expected)
    assert min(off["image"], off["text"]) > 1e-4  # the activation matters


def test_files_of_every_project(tmp_path):
    model = CLIPModel(dataclasses.replace(OPENAI, crop_rounding="floored")).initialise().eval()
    for layout, name in (("open_clip", "open_clip_config.json"), ("transformers", "config.json")):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the warning of the crop's rounding
            export(model, tmp_path / layout, layout=layout)
        weights = next((tmp_path / layout).glob("*.safetensors")).rename(tmp_path / f"{layout}.safetensors")
        loaded = load(weights, config=tmp_path / layout / name)
        assert loaded.config.text == model.config.text
        assert torch.equal(loaded.encode_image(torch.ones(1, 3, 16, 16)), model.encode_image(torch.ones(1, 3, 16, 16)))
        assert loaded.config.mean == model.config.mean


@pytest.mark.parametrize(
    "content",
    [
        "{", "[]", "{}", '{"model_cfg": {"vision_cfg": {"ls_init_value": 1}}}', '{"model_type": "bert"}',
        '{"embed_dim": 16, "vision_cfg": 3, "text_cfg": {}}', '{"embed_dim": 16, "vision_cfg": {}, "text_cfg": 3}',
        '{"embed_dim": null, "vision_cfg": {}, "text_cfg": {}}',
    ],
)  # fmt: skip
def test_refuses_damaged_files(content, tmp_path, one_line):
    (tmp_path / "given.json").write_text(content)
    with pytest.raises(CheckpointError) as caught:
        given_plan(tmp_path / "given.json")
    one_line(caught, tmp_path / "given.json")


def test_openais_own_weights_refuse_another_activation(tmp_path, one_line):
    model = CLIPModel(OPENAI).initialise().eval()
    export(model, tmp_path, layout="openai")
    with pytest.raises(
        CheckpointError, match="OpenAI's own weights, which have QuickGELU; the configuration has gelu"
    ) as e:
        load(tmp_path / "model.pt", config=OPENAI.replace_image(activation="gelu").replace_text(activation="gelu"))
    one_line(e, tmp_path / "model.pt", "remove config=")
    assert load(tmp_path / "model.pt", config=OPENAI).config == OPENAI


@pytest.mark.peer
def test_an_archive_of_open_clip_needs_a_configuration(tmp_path, randomise):
    """Only OpenAI's archives have the three integers; others may have another activation."""
    open_clip = pytest.importorskip("open_clip")
    peer = randomise(open_clip.CLIP(**TOY))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.trace(peer, (torch.randn(1, 3, 32, 32), torch.ones(1, 12).int())), tmp_path / "w.pt")
    with pytest.raises(CheckpointError, match=r"without open_clip_config\.json beside them"):
        load(tmp_path / "w.pt")
    (tmp_path / "toy.json").write_text(json.dumps(TOY))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loaded = load(tmp_path / "w.pt", config=tmp_path / "toy.json")
    pixels = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected = peer.encode_image(pixels, normalize=True)
    torch.testing.assert_close(loaded.encode_image(pixels), expected, atol=2e-5, rtol=0)
