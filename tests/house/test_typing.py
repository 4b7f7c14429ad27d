"""Types of the public arguments: mypy refuses wrong kinds and names, and accepts the documented ones."""

import os
import re
import subprocess
import sys

import pytest

from tests.house.source import ROOT

GOOD = """
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
import numpy as np
import torch
from PIL import Image
import miniclip

model = miniclip.load("vit_b_16", dtype="float32")
def frames() -> Iterator[Image.Image]:
    yield Image.new("RGB", (8, 8))
model.encode_image("cat.jpg")
model.encode_image([Path("cat.jpg"), "dog.jpg"])
model.encode_image(Path().glob("*.jpg"))
model.encode_image(frames())
model.encode_image(b"")
with open("cat.jpg", "rb") as file:
    model.encode_image([file, BytesIO()])
model.encode_image(np.zeros((2, 8, 8, 3), np.uint8))
model.encode_image(torch.zeros(2, 3, 8, 8))
model.encode_text(text for text in ["a", "b"])
model.classify("cat.jpg", ["cat"], ["a {}", lambda c: f"the {c}", "{}!".format])
miniclip.encode_image(model, ["cat.jpg"], batch_size=2)
miniclip.export(model, "dir", layout="open_clip")
miniclip.train.TrainConfig(epochs=3, micro_batch_size="auto")
miniclip.data.open_data("photos", "val")
miniclip.Trainer(model, miniclip.data.Shapes("train"))
"""
BAD = [
    "model.encode_image(3.5)",
    "model.encode_image([3.5])",
    "model.encode_image(None)",
    "miniclip.encode_image(model, 3.5)",
    "model.encode_text(3)",
    "model.encode_text([b'a dog'])",
    "model.encode_image('cat.jpg', on_error='ignore')",
    "model.encode_image('cat.jpg', batch_size='32')",
    "model.classify('cat.jpg', [0, 1])",
    "model.classify('cat.jpg', ['cat'], [3])",
    "miniclip.load('vit_b_16', dtype='int8')",
    "miniclip.load('vit_b_16', pretrained='openai')",
    "miniclip.export(model, 'dir', layout='openclip')",
    "miniclip.push_to_hub(model, 'me/mine', layout='onnx')",
    "miniclip.data.open_data('photos', 'trian')",
    "miniclip.data.Shapes('trian')",
    "miniclip.Trainer(model, [])",
    "miniclip.Trainer(model, miniclip.data.Shapes('train'), config={})",
    "miniclip.TrainConfig(loss='softmax')",
    "miniclip.TrainConfig(epoch=3)",
    "miniclip.contrastive_loss(np.zeros((2, 2)), torch.zeros(2, 2), 10.0)",
]


@pytest.mark.slow
def test_mypy_refuses_wrong_arguments(tmp_path):
    """mypy reads torch's types too: seconds with the cache of an earlier run, a minute without."""
    pytest.importorskip("mypy")
    if not (ROOT / ".mypy_cache").is_dir():
        pytest.skip("mypy has not been run here: it would have to read the types of torch first")
    lines = GOOD.splitlines()
    file = tmp_path / "use.py"
    file.write_text("\n".join([*lines, *BAD]) + "\n", encoding="utf-8")
    command = [
        sys.executable,
        "-m",
        "mypy",
        "--config-file",
        str(ROOT / "pyproject.toml"),
        "--no-error-summary",
        str(file),
    ]
    environment = {**os.environ, "MYPYPATH": str(ROOT / "src")}
    output = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False).stdout
    # by the file's name: mypy repeats the errors of its cache under the path of an earlier run
    refused = {int(number) for number in re.findall(r"use\.py:(\d+): error:", output)}
    assert not {line for line in refused if line <= len(lines)}, output
    accepted = [call for number, call in enumerate(BAD, len(lines) + 1) if number not in refused]
    assert not accepted, f"mypy accepts {accepted}\n{output}"
