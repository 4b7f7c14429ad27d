"""Exported towers of every kind give the model's embeddings, for any batch and caption length."""

import numpy as np
import pytest
import torch

from miniclip.deployment.towers import sample_images, sample_pixels, sample_tokens
from tests.deployment.conftest import run, unit

pytest.importorskip("onnxruntime")

IMAGE_FILES = {  # layout: file, name of the input
    "immich": ("visual/model.onnx", "image"),
    "transformers.js": ("onnx/vision_model.onnx", "pixel_values"),
}
TEXT_FILES = {
    "onnx": ("textual.onnx", "text", torch.int64),
    "immich": ("textual/model.onnx", "text", torch.int32),
    "transformers.js": ("onnx/text_model.onnx", "input_ids", torch.int64),
}
BATCHES = (1, 2, 7)


@pytest.mark.parametrize("layout", IMAGE_FILES)
@pytest.mark.parametrize("batch", BATCHES)
def test_images(layout, batch, models, exported):
    file, name = IMAGE_FILES[layout]
    pixels = sample_pixels(models[layout].config, batch, seed=batch + 10)
    (embeddings,) = run(exported(layout) / file, **{name: pixels.numpy()})
    np.testing.assert_allclose(unit(embeddings), models[layout].encode_image(pixels), rtol=0, atol=1e-5)


@pytest.mark.parametrize("batch", BATCHES)
def test_images_with_preprocessing_inside(batch, models, exported):
    """Pixels that need no resize are exact; the others differ by single grey levels."""
    model = models["onnx"]
    exact = np.random.default_rng(batch).integers(0, 256, (batch, 16, 16, 3), np.uint8)
    for images, limit in ((exact, 1e-5), (sample_images(model.config, batch, seed=batch + 10), 2e-3)):
        (embeddings,) = run(exported("onnx") / "visual.onnx", image=images)
        np.testing.assert_allclose(embeddings, model.encode_image(images), rtol=0, atol=limit)


@pytest.mark.parametrize("layout", TEXT_FILES)
@pytest.mark.parametrize("batch", BATCHES)
def test_texts(layout, batch, models, exported):
    file, name, dtype = TEXT_FILES[layout]
    for length in (12,) if layout == "immich" else (12, 11, 5, 1):
        tokens = sample_tokens(models[layout].config, batch, seed=batch + 10, length=length)
        inputs = {name: tokens.to(dtype).numpy()}
        if layout == "transformers.js":
            inputs["attention_mask"] = np.ones_like(inputs[name])
        (embeddings,) = run(exported(layout) / file, **inputs)
        np.testing.assert_allclose(unit(embeddings), models[layout].encode_text(tokens), rtol=0, atol=1e-5)
