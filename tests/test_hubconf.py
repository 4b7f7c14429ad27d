"""torch.hub's entry points: one for each preset, loaded from a directory as torch.hub does it."""

import runpy
from pathlib import Path

import pytest
import torch

import miniclip

ROOT = Path(__file__).parents[1]


def test_there_is_a_documented_entry_for_each_preset():
    hubconf = runpy.run_path(str(ROOT / "hubconf.py"))
    entries = {name for name, value in hubconf.items() if callable(value) and value.__module__ == "<run_path>"}
    assert entries == set(miniclip.list_models())
    assert all(hubconf[name].__doc__ for name in entries)


def test_an_entry_gives_a_fresh_model():
    model = torch.hub.load(str(ROOT), "bert_vit_tiny", source="local")
    assert model.config == miniclip.load("bert_vit_tiny", pretrained=False).config


def test_weights_that_cannot_be_fetched_are_an_error():
    with pytest.raises(ValueError, match="pretrained=False"):
        torch.hub.load(str(ROOT), "vit_b_16", pretrained=True, source="local")
