"""One exported folder for each layout, each of another kind of model: an export takes seconds."""

import functools
import json
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from filelock import FileLock

import miniclip
from miniclip.config import CLIPConfig, ImageConfig, TextConfig
from miniclip.deployment.layouts import bare
from miniclip.inference.model import CLIPModel
from tests.toys import IMAGE_KINDS, TEXT_KINDS, make_model

KINDS = {
    "onnx": ("conv", "causal", {"preprocessing": True}),
    "immich": ("attention", "siglip", {}),
    "transformers.js": ("quickgelu", "bert", {"forms": ("fp32", "q8", "q4")}),
    "optimum": ("quickgelu", "causal", {}),
    "rclip": ("quickgelu", "causal", {"precision": "float16"}),
}
LAYOUTS = tuple(KINDS)
CAPTIONS = ["a dog", "a red circle above a blue square", "", "A green  triangle!", "a dog " * 90]


def build(image, text, tokenizer, layout="onnx"):
    """A small model whose biases and gains all affect the result."""
    layers = 2 if layout == "onnx" else 1
    size, context, width = (256, 77, 512) if layout == "rclip" else (16, 12, 16)
    config = CLIPConfig(
        ImageConfig(size, size // 2, 16, layers, 2, **IMAGE_KINDS[image]),
        TextConfig(context, tokenizer.vocab_size, 16, layers, 2, **TEXT_KINDS[text]),
        width,
        logit_bias=-1.0 if text == "siglip" else None,
    )
    torch.manual_seed(0)
    model = CLIPModel(config, tokenizer).initialise().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return model


@pytest.fixture(scope="package")
def models(toy_tokenizer):
    return {layout: build(image, text, toy_tokenizer, layout) for layout, (image, text, _) in KINDS.items()}


@pytest.fixture(scope="package", autouse=True)
def _one_registry():
    """Let torch's exporter read its table of operators once: it reads the same sources again for every file."""
    try:
        from torch.onnx._internal.exporter._registration import ONNXRegistry

        read = functools.cache(ONNXRegistry.from_torchlib)
    except (ImportError, AttributeError):  # onnxscript is not installed, or torch has changed its private part
        yield
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ONNXRegistry, "from_torchlib", staticmethod(read))
        yield


@pytest.fixture(scope="package")
def export_once(tmp_path_factory):
    """Return a function that exports a model to a folder of a name, or gives the folder that exists."""
    for library in ("onnx", "onnxscript", "onnxruntime", "tokenizers"):
        pytest.importorskip(library)
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:  # the processes of pytest-xdist share the folders
        folder = folder.parent

    def export(name, model, **options):
        with FileLock(folder / f"{name}.lock"):
            if not (folder / name).exists():  # it appears when it is complete
                miniclip.export(model, folder / name, **options)
        return folder / name

    return export


@pytest.fixture(scope="package")
def exported(models, export_once):
    """Return the function of a layout that gives the folder which was exported for it, once."""
    return lambda layout: export_once(layout, models[layout], layout=layout, **KINDS[layout][2])


@pytest.fixture(scope="package")
def towers(tokenizer, export_once):
    """The float32 files of the fixture `model`, traced once."""
    return export_once("float32", make_model(tokenizer), layout="onnx")


@pytest.fixture
def traced(towers, monkeypatch):
    """Let exports of the fixture `model` copy the traced files."""
    for writer in ("write_image_encoder", "write_text_encoder"):
        monkeypatch.setattr(bare, writer, lambda model, path, *_, **__: shutil.copy(towers / path.name, path))


def run(file, **inputs):
    """Outputs of an ONNX file in onnxruntime."""
    import onnxruntime

    return onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"]).run(None, inputs)


def unit(rows):
    rows = np.asarray(rows)
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def output_of(command, **variables):
    """Run a program, without this package on its path; return the JSON of its last line."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"HF_HUB_OFFLINE": "1", **variables}
    result = subprocess.run([str(part) for part in command], env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout.splitlines()[-1])


def tool(variable):
    """Path in an environment variable that .ci/run sets; without it, the test is skipped."""
    if variable not in os.environ:
        pytest.skip(f"{variable} is not set: .ci/run installs the application and sets it")
    return Path(os.environ[variable])
