"""Weights in the files of training scripts: prefixes, heads beside the model, wrappers, adapters, lone towers."""

import argparse
import datetime
import warnings
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from miniclip.checkpoints.export import export
from miniclip.checkpoints.formats.safetensors import read_tensors, write_tensors
from miniclip.checkpoints.native import save_checkpoint
from miniclip.config import CLIPConfig, ImageConfig, TextConfig
from miniclip.errors import CheckpointError
from miniclip.hub import load
from miniclip.inference.model import CLIPModel

CONFIG = CLIPConfig(
    ImageConfig(16, 8, 64, 1, 1, activation="quickgelu"),
    TextConfig(8, 50, 64, 1, 1, activation="quickgelu", causal=True, pooling="end"),
    16,
    crop_rounding="floored",
)
LAYOUTS = ["miniclip", "openai", "open_clip", "transformers"]


@pytest.fixture
def written(tmp_path):
    """Return the weights of a random model in a layout, by name, and the model."""

    def written(layout):
        model, folder = CLIPModel(CONFIG).initialise().eval(), tmp_path / layout
        if layout == "miniclip":
            save_checkpoint(model, folder)
        else:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # the warning of the crop's rounding
                export(model, folder, layout=layout)
        if layout == "openai":
            return torch.load(folder / "model.pt"), model
        file = next(folder.glob("*.safetensors"))
        return read_tensors(file)[0], model

    return written


def same(model, other):
    state, expected = model.state_dict(), other.state_dict()
    return state.keys() == expected.keys() and all(torch.equal(state[key], expected[key]) for key in state)


def renamed(tensors, prefix):
    return {prefix + key: value for key, value in tensors.items()}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("prefix", ["model.", "clipmodel.", "model.module.", "net.clip."])
def test_finds_the_prefix_of_a_training_script(layout, prefix, written, tmp_path):
    tensors, model = written(layout)
    torch.save({"state_dict": renamed(tensors, prefix), "epoch": 3}, tmp_path / "epoch=3.ckpt")
    write_tensors(tmp_path / "w.safetensors", renamed(tensors, prefix))
    for file in ("epoch=3.ckpt", "w.safetensors"):
        assert same(load(tmp_path / file, config=CONFIG), model)
        assert same(load(tmp_path / file, config=CONFIG, prefix=prefix.removesuffix(".")), model)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("head", ["head.weight", "model.classifier.0.bias", "criterion.queue", "ln.weight"])
def test_leaves_out_a_head_with_a_warning(layout, head, written, tmp_path):
    tensors, model = written(layout)
    torch.save({"state_dict": {**renamed(tensors, "model."), head: torch.ones(3)}}, tmp_path / "last.ckpt")
    with pytest.warns(
        UserWarning, match=rf"last\.ckpt: left out, since a CLIP has no such weights: {head[-9:]}|{head}"
    ):
        assert same(load(tmp_path / "last.ckpt", config=CONFIG), model)


def test_leaves_out_a_head_beside_plain_names(written, tmp_path):
    tensors, model = written("miniclip")
    write_tensors(tmp_path / "w.safetensors", {**tensors, "head.weight": torch.ones(3)})
    with pytest.warns(UserWarning, match=r"left out, since a CLIP has no such weights: head\.weight") as caught:
        assert same(load(tmp_path / "w.safetensors", config=CONFIG), model)
    assert Path(caught[0].filename) == Path(__file__)


def test_still_refuses_unknown_weights_of_a_tower(written, tmp_path):
    tensors, _ = written("open_clip")
    for name in ("visual.other.weight", "logit_bias"):
        write_tensors(tmp_path / "w.safetensors", {**tensors, name: torch.ones(3)})
        with pytest.raises(CheckpointError, match=f"{name} is unknown"):
            load(tmp_path / "w.safetensors", config=CONFIG)


def test_several_models_need_a_prefix(written, tmp_path, one_line):
    tensors, model = written("open_clip")
    copy = {key: value + 1 for key, value in tensors.items()}
    file = tmp_path / "w.ckpt"
    torch.save({"state_dict": {**renamed(tensors, "student."), **renamed(copy, "teacher.")}}, file)
    with pytest.raises(CheckpointError, match=r"several models, under the prefixes 'student\.', 'teacher\.'") as caught:
        load(file, config=CONFIG)
    one_line(caught, file, "prefix='teacher.'")
    assert same(load(file, config=CONFIG, prefix="student."), model)
    assert not same(load(file, config=CONFIG, prefix="teacher"), model)
    torch.save({**tensors, **renamed(copy, "ema.")}, file)
    with pytest.raises(CheckpointError, match=r"prefixes '', 'ema\.'"):
        load(file, config=CONFIG)
    with pytest.warns(UserWarning, match=r"left out.*: ema\.ln_final\.bias"):
        assert same(load(file, config=CONFIG, prefix=""), model)


def test_a_wrong_prefix_is_named(written, tmp_path, one_line):
    tensors, _ = written("open_clip")
    write_tensors(tmp_path / "w.safetensors", tensors)
    with pytest.raises(
        CheckpointError, match=r"no name begins with the prefix 'model\.'; found ln_final\.bias"
    ) as caught:
        load(tmp_path / "w.safetensors", config=CONFIG, prefix="model")
    one_line(caught, tmp_path / "w.safetensors")


def test_nested_dicts_without_a_usual_key(written, tmp_path):
    tensors, model = written("openai")
    file = tmp_path / "w.pt"
    optimizer = {"state": {0: {"exp_avg": torch.ones(2)}}, "param_groups": [{"lr": 0.1}]}
    for saved in (
        {"net": tensors, "optimizer": optimizer},
        {"module": tensors, "callbacks": {"best": {"score": torch.tensor(1.0), "path": "best.ckpt"}}},
        {"trainer": {"clip": tensors}, "step": 3},
    ):
        torch.save(saved, file)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            assert same(load(file), model)
    torch.save({"net": tensors, "ema": {key: value + 1 for key, value in tensors.items()}}, file)
    with pytest.raises(CheckpointError, match=r"several models, under the prefixes 'ema\.', 'net\.'"):
        load(file)
    assert same(load(file, prefix="net"), model)


HARMLESS = {
    "namespace": argparse.Namespace(lr=1e-3, betas=(0.9, 0.999), inner=argparse.Namespace(a=[1, {"b": None}])),
    "numpy scalar": np.float64(0.5),
    "numpy integers": [np.int64(3), np.float32(1), np.bool_(True)],
    "numpy array": np.arange(6.0).reshape(2, 3),
    "numpy random state": np.random.RandomState(0).get_state(),
    "path": Path("runs/best.ckpt"),
    "time": {"start": datetime.datetime(2024, 1, 2), "took": datetime.timedelta(seconds=3)},
    "default dict": defaultdict(list, {"loss": [1.0, 2.0]}),
    "range": range(3),
    "set": {1, 2},
}


@pytest.mark.parametrize("name", HARMLESS)
@pytest.mark.parametrize("kind", ["zip", "legacy"])
def test_harmless_values_beside_the_weights(name, kind, written, tmp_path):
    tensors, model = written("openai")
    saved = {
        "state_dict": renamed(tensors, "model."),
        "hyper_parameters": {"args": HARMLESS[name]},
        "best": HARMLESS[name],
    }
    torch.save(saved, tmp_path / "last.ckpt", _use_new_zipfile_serialization=kind == "zip")
    before = set(torch.serialization.get_safe_globals())
    assert same(load(tmp_path / "last.ckpt"), model)
    assert set(torch.serialization.get_safe_globals()) == before


class Settings:
    """Class of a training script, which another process cannot import."""


def test_other_classes_are_refused_with_advice(written, tmp_path, one_line):
    tensors, _ = written("openai")
    torch.save({"state_dict": tensors, "args": Settings(), "other": argparse.Namespace()}, tmp_path / "last.ckpt")
    with pytest.raises(CheckpointError, match="Settings, which plain weights never need") as caught:
        load(tmp_path / "last.ckpt")
    one_line(caught, "the model's state_dict(), in the program that wrote it")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_wrappers_at_any_depth(layout, written, tmp_path):
    """Only some names have the part of a wrapper, as after `model.visual = torch.compile(model.visual)`."""
    tensors, model = written(layout)
    for part in ("_orig_mod", "module", "_fsdp_wrapped_module", "module._orig_mod"):
        names = {key: key.replace(".", f".{part}.", 1) if "ln_" in key or "blocks" in key else key for key in tensors}
        write_tensors(tmp_path / "w.safetensors", {names[key]: value for key, value in tensors.items()})
        torch.save({names[key]: value for key, value in tensors.items()}, tmp_path / "w.pt")
        for file in ("w.safetensors", "w.pt"):
            assert same(load(tmp_path / file, config=CONFIG), model)


@pytest.mark.parametrize("name", [
    "base_model.model.visual.transformer.resblocks.0.attn.out_proj.lora_A.weight", "visual.conv1.base_layer.weight",
    "adapter.fc.0.weight", "prompt_learner.prompts", "image_adapter.weight",
])  # fmt: skip
def test_refuses_adapters(name, written, tmp_path, one_line):
    tensors, _ = written("open_clip")
    write_tensors(tmp_path / "w.safetensors", {**tensors, name: torch.ones(3)})
    with pytest.raises(CheckpointError, match="weights of an adapter") as caught:
        load(tmp_path / "w.safetensors", config=CONFIG)
    one_line(caught, tmp_path / "w.safetensors", name, "merge_and_unload()")


@pytest.mark.peer
@pytest.mark.parametrize("whole", [False, True])
def test_refuses_the_state_dict_of_a_peft_model(whole, tmp_path):
    peft = pytest.importorskip("peft")
    lora = peft.get_peft_model(CLIPModel(CONFIG), peft.LoraConfig(target_modules=["qkv"]))
    tensors = lora.state_dict() if whole else peft.get_peft_model_state_dict(lora)
    write_tensors(tmp_path / "w.safetensors", tensors)
    with pytest.raises(CheckpointError, match="weights of an adapter"):
        load(tmp_path / "w.safetensors", config=CONFIG)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("prefix", ["", "model."])
def test_names_a_lone_tower(layout, prefix, written, tmp_path, one_line):
    tensors, _ = written(layout)
    starts = ("image.", "visual.", "vision_model.", "visual_projection.")
    is_image = {key: key.startswith(starts) for key in tensors}
    for image, found in ((True, "only an image tower"), (False, "only a text tower")):
        part = {key: value for key, value in tensors.items() if is_image[key] == image}
        write_tensors(tmp_path / "w.safetensors", renamed(part, prefix))
        with pytest.raises(CheckpointError, match=found) as caught:
            load(tmp_path / "w.safetensors", config=CONFIG)
        one_line(caught, tmp_path / "w.safetensors", "load a checkpoint with both")


@pytest.mark.parametrize("tower", ["image", "text"])
def test_names_the_state_dict_of_a_tower(tower, tmp_path):
    model = CLIPModel(CONFIG)
    write_tensors(tmp_path / "w.safetensors", getattr(model, tower).state_dict())
    with pytest.raises(CheckpointError, match=f"only an? {tower} tower"):
        load(tmp_path / "w.safetensors", config=CONFIG)


@pytest.mark.peer
@pytest.mark.parametrize("kind", [
    "CLIPTextModel", "CLIPVisionModel", "CLIPTextModelWithProjection", "CLIPVisionModelWithProjection",
    "SiglipTextModel", "SiglipVisionModel",
])  # fmt: skip
def test_names_the_lone_towers_of_transformers(kind, tmp_path, one_line):
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision = {**sizes, "image_size": 16, "patch_size": 8}
    options = {**sizes, "vocab_size": 99, "bos_token_id": 1, "eos_token_id": 2} if "Text" in kind else vision
    model = getattr(transformers, kind)
    model(model.config_class(**options)).save_pretrained(tmp_path / "text_encoder")
    with pytest.raises(
        CheckpointError, match="only a text tower" if "Text" in kind else "only an image tower"
    ) as caught:
        load(tmp_path, subfolder="text_encoder")
    one_line(caught, tmp_path / "text_encoder")


def test_a_head_of_a_lightning_module(tmp_path):
    """A module as Lightning's users write it."""

    class Classifier(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = CLIPModel(CONFIG).initialise()
            self.head = nn.Linear(16, 3)

    module = Classifier()
    checkpoint = {
        "epoch": 1, "global_step": 10, "pytorch-lightning_version": "2.4.0", "state_dict": module.state_dict(),
        "loops": {"fit_loop": {"state_dict": {}, "epoch_progress": {"total": {"ready": 2}}}}, "lr_schedulers": [],
        "callbacks": {"ModelCheckpoint{}": {"best_model_score": torch.tensor(0.5), "best_model_path": "x.ckpt"}},
        "optimizer_states": [{"state": {0: {"step": torch.tensor(1.0)}}, "param_groups": [{"params": [0]}]}],
        "hyper_parameters": {"args": argparse.Namespace(lr=1e-3), "best": np.float64(0.5)},
    }  # fmt: skip
    torch.save(checkpoint, tmp_path / "last.ckpt")
    with pytest.warns(UserWarning, match=r"left out.*: head\.bias, head\.weight"):
        assert same(load(tmp_path / "last.ckpt", config=CONFIG), module.model)
