"""Entry points of torch.hub, loaded from the local directory."""

import runpy
from pathlib import Path

import pytest
import torch

import miniclip
from miniclip.config import PRESETS

ROOT = Path(__file__).parents[1]


def test_every_preset_has_a_documented_entry():
    hubconf = runpy.run_path(str(ROOT / "hubconf.py"))
    entries = {name for name, value in hubconf.items() if callable(value) and value.__module__ == "<run_path>"}
    assert entries == {*PRESETS, "clip"}
    assert all(hubconf[name].__doc__ for name in entries)
    assert "ViT-B/16" in hubconf["vit_b_16"].__doc__  # printed by torch.hub.help


def test_fresh_model():
    model = torch.hub.load(str(ROOT), "bert_vit_tiny", source="local")
    assert model.config == miniclip.load("bert_vit_tiny", pretrained=False).config


def test_openai_architecture_without_weights():
    model = torch.hub.load(str(ROOT), "vit_b_16", pretrained=False, source="local", device="meta")
    assert model.config == PRESETS["vit_b_16"][1]


def test_checkpoint_by_path(tmp_path):
    model = miniclip.load("bert_vit_tiny", pretrained=False)
    miniclip.save(model, tmp_path / "mine")
    loaded = torch.hub.load(str(ROOT), "clip", str(tmp_path / "mine"), source="local")
    assert torch.equal(loaded.image.positions, model.image.positions)


def test_preset_without_published_weights():
    with pytest.raises(ValueError, match="pretrained=False"):
        torch.hub.load(str(ROOT), "bert_vit_b_16", pretrained=True, source="local")
