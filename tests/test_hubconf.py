"""Entry points of torch.hub, loaded from the local directory."""

import runpy
import site
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import miniclip
from miniclip.config import PRESETS

ROOT = Path(__file__).parents[1]


def test_every_preset_has_a_documented_entry():
    hubconf = runpy.run_path(str(ROOT / "hubconf.py"))
    entries = {name for name, value in hubconf.items() if callable(value) and name[0] != "_"}  # as in torch.hub.list
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


UNINSTALLED = """
import sys
sys.path.append({site!r})
from importlib import metadata
try:
    raise SystemExit("installed: " + metadata.version("miniclip"))
except metadata.PackageNotFoundError:
    pass
import torch
torch.set_num_threads(1)
model = torch.hub.load({root!r}, "bert_vit_tiny", source="local")
import miniclip
from miniclip import cli
from miniclip.data import Shapes
train, val = Shapes("train", 8), Shapes("val", 4)
tokenizer = miniclip.Tokenizer.train([caption for captions in train.captions for caption in captions], 600)
model = torch.hub.load({root!r}, "bert_vit_tiny", source="local", tokenizer=tokenizer)
config = miniclip.TrainConfig(epochs=1, batch_size=4, num_workers=0, precision="float32")
miniclip.Trainer(model, train, val, config=config, run_dir="run").fit()
assert cli.main(["models", "run"]) == 0
assert cli.main(["convert", "run", "converted"]) == 0
assert cli.main(["train", "--resume", "run", "--data", "shapes"]) == 2  # other data: a message, not a missing version
assert sys.path.count({source!r}) == 1
"""


def test_a_checkout_that_was_never_installed(tmp_path):
    """Way of torch.hub: the folder of the installed packages has everything but miniclip."""
    packages = tmp_path / "site"
    packages.mkdir()
    for folder in map(Path, site.getsitepackages()):
        for entry in folder.iterdir():
            if "miniclip" not in entry.name and entry.suffix != ".pth":
                (packages / entry.name).symlink_to(entry)
    code = UNINSTALLED.format(site=str(packages), root=str(ROOT), source=str(ROOT / "src"))
    command = [sys.executable, "-I", "-S", "-c", code]
    process = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr
    assert "started with" in process.stderr
