"""Preprocessing inside an ONNX file equals `Preprocess`, up to single grey levels."""

import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image

from miniclip.data.preprocess import Preprocess
from miniclip.deployment import onnx_files
from miniclip.deployment.preprocessing import prepend_preprocessing
from tests.deployment.conftest import run
from tests.toys import CONFIG

onnx_ir = pytest.importorskip("onnx_ir")
pytest.importorskip("onnxruntime")

SETTINGS = [
    {},
    {"crop_rounding": "floored"},
    {"resize": "squash"},
    {"interpolation": "bilinear", "mean": (0.5, 0.4, 0.3), "std": (0.2, 0.5, 1.0)},
]
SIZES = [(16, 16), (17, 16), (19, 16), (16, 21), (5, 7), (90, 47), (33, 300), (400, 300), (16, 23)]


def identity():
    """A model whose output is its input, pixels (B, 3, 16, 16)."""
    pixels = onnx_ir.Value(
        name="image", type=onnx_ir.TensorType(onnx_ir.DataType.FLOAT), shape=onnx_ir.Shape(["batch", 3, 16, 16])
    )
    node = onnx_ir.node("Identity", [pixels])
    node.outputs[0].name = "pixels"
    node.outputs[0].type = pixels.type
    graph = onnx_ir.Graph([pixels], node.outputs, nodes=[node], opset_imports={"": onnx_files.OPSET}, name="identity")
    return onnx_ir.Model(graph, ir_version=10)


@pytest.mark.parametrize("settings", SETTINGS)
def test_pixels_equal_those_of_the_library(settings, tmp_path):
    config = dataclasses.replace(CONFIG, **settings)
    model, preprocess = identity(), Preprocess(config)
    prepend_preprocessing(model, config)
    (file,) = onnx_files.save(model, tmp_path / "preprocessing.onnx")
    generator = np.random.default_rng(0)
    for width, height in SIZES:
        images = generator.integers(0, 256, (2, height, width, 3), np.uint8)
        (pixels,) = run(file, image=images)
        assert pixels.shape == (2, 3, 16, 16)
        expected = torch.stack([preprocess(Image.fromarray(image)) for image in images]).numpy()
        grey = np.abs(pixels - expected) * np.array(config.std).reshape(3, 1, 1) * 255
        assert grey.max() < 4.01, (width, height)  # another filter differs by tens
        assert grey.mean() < 0.25, (width, height)
