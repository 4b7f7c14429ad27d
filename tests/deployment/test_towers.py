"""Exported towers give the model's embeddings, for any batch and caption length: ONNX, torch.export and torch.jit."""

import json

import numpy as np
import pytest
import torch

from miniclip.deployment.towers import sample_pixels, sample_tokens
from tests.deployment.conftest import PAIRS, captions

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")


def run(file, name, array):
    (output,) = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"]).run(None, {name: array})
    return output


def names_and_shapes(values):
    return [(value.name, value.type, value.shape) for value in values]


@pytest.mark.parametrize("pair", PAIRS)
@pytest.mark.parametrize("batch", [1, 2, 7])
def test_onnx_files_give_the_models_embeddings(pair, batch, models, exported):
    model, folder = models[pair], exported[pair]
    pixels = sample_pixels(model.config, batch, seed=batch + 10)
    expected = model.encode_image(pixels)
    np.testing.assert_allclose(run(folder / "visual.onnx", "image", pixels.numpy()), expected, atol=1e-5)
    tokens = model.tokenizer(captions(batch), 12, pad=True)
    longest = [12] if "siglip" in pair else [12, 11, 2]
    for length in longest:
        rows = tokens[:, :length].contiguous()
        expected = model.encode_text(rows)
        np.testing.assert_allclose(run(folder / "textual.onnx", "text", rows.numpy()), expected, atol=1e-5)


@pytest.mark.parametrize("pair", PAIRS)
def test_the_files_name_their_inputs_and_dimensions(pair, exported):
    import onnx

    visual, textual = (
        onnxruntime.InferenceSession(str(exported[pair] / file), providers=["CPUExecutionProvider"])
        for file in ("visual.onnx", "textual.onnx")
    )
    length = 12 if "siglip" in pair else "length"
    assert names_and_shapes(visual.get_inputs()) == [("image", "tensor(float)", ["batch", 3, 16, 16])]
    assert names_and_shapes(textual.get_inputs()) == [("text", "tensor(int64)", ["batch", length])]
    for session in (visual, textual):
        assert names_and_shapes(session.get_outputs()) == [("embedding", "tensor(float)", ["batch", 16])]
    file = onnx.load(exported[pair] / "visual.onnx", load_external_data=False)
    assert [(item.domain, item.version) for item in file.opset_import if item.domain == ""] == [("", 18)]
    assert json.loads((exported[pair] / "config.json").read_text())["opset"] == 18
    assert file.producer_name == "miniclip"


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("pair", PAIRS)
@torch.no_grad()
def test_fast_towers_go_through_torch_export_and_jit(pair, models):
    """The caller need not exchange the fast forms."""
    model = models[pair]
    batch, length = torch.export.Dim("batch"), torch.export.Dim("length", min=1, max=12)
    lengths = [12] if "siglip" in pair else [12, 11, 2]
    cases = (
        (model.image, {0: batch}, [sample_pixels(model.config, size, seed=size) for size in (2, 1, 7)]),
        (
            model.text,
            {0: batch} if "siglip" in pair else {0: batch, 1: length},
            [sample_tokens(model.config, size, size, columns) for size in (2, 1, 7) for columns in lengths],
        ),
    )
    for tower, dims, (example, *others) in cases:
        exported = torch.export.export(tower, (example,), dynamic_shapes=(dims,)).module()
        traced = torch.jit.trace(tower, (example,))
        for other in others:
            torch.testing.assert_close(exported(other), tower(other), rtol=0, atol=1e-5)
            torch.testing.assert_close(traced(other), tower(other), rtol=0, atol=1e-5)
