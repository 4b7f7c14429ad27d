"""Embeddings do not depend on torch's default dtype and device."""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from PIL import Image

import miniclip
from miniclip.evaluation import linear_probe, retrieval, zero_shot
from miniclip.hub import fresh

CAPTIONS = ["a dog", "a red circle above a blue square", "a dog", ""]


@contextmanager
def defaults(dtype: torch.dtype, device: str) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    torch.set_default_device(device)
    try:
        yield
    finally:
        torch.set_default_device(None)
        torch.set_default_dtype(before)


class Data:
    captions = ([*CAPTIONS[:2]], [CAPTIONS[2]], [CAPTIONS[3]])

    def __init__(self, arrays) -> None:
        self.arrays = arrays

    def __len__(self) -> int:
        return len(self.arrays)

    def __getitem__(self, index):
        return Image.fromarray(self.arrays[index]), list(self.captions[index])


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.filterwarnings("ignore:1 of 4 images")
def test_results_are_those_without_defaults(toy_config, toy_tokenizer, tmp_path, dtype, device, causal):
    config = toy_config.replace_text(causal=causal, pooling="end" if causal else "first")
    model = fresh(config, toy_tokenizer).eval()
    miniclip.save(model, tmp_path / "model")
    arrays = np.random.default_rng(0).integers(0, 256, (3, 20, 30, 3), dtype=np.uint8)
    labels = ["dog", "red circle"]

    def results(model):
        pixels = torch.stack([model.preprocess(array) for array in arrays])
        return [
            pixels,
            model.encode_text(CAPTIONS),
            model.encode_text([]),
            model.encode_image(arrays),
            model.encode_image([]),
            model.encode_image([*arrays, "missing.png"], on_error="skip")[:3],
            model.encode_image(pixels),
            model.classify(arrays, labels, ["a {}", "the {}"]),
        ]

    expected, recalls = results(model), retrieval(model, Data(arrays))
    with defaults(dtype, device):
        for other in (model, miniclip.load(tmp_path / "model")):
            for value, plain in zip(results(other), expected, strict=True):
                assert value.dtype == torch.float32
                assert value.device.type == "cpu"
                torch.testing.assert_close(value, plain, rtol=0, atol=1e-6)
        assert retrieval(model, Data(arrays)) == recalls


class Labelled(list):
    """Images with one of two classes."""

    class_names = ("dark", "bright")


def test_evaluations_do_not_depend_on_defaults(toy_config, toy_tokenizer):
    model = fresh(toy_config, toy_tokenizer).eval()
    data = Labelled((np.full((16, 16, 3), 200 * (i % 2), dtype=np.uint8), i % 2) for i in range(6))

    def results():
        probe = linear_probe(model, data, data, protocol="adamw", shots=2)
        return {
            name: value
            for name, value in {**probe, **zero_shot(model, data, templates=["{}"])}.items()
            if name != "top5"
        }  # NaN

    expected = results()
    for context in (defaults(torch.float64, "cpu"), defaults(torch.float32, "meta"), torch.inference_mode()):
        with context:
            assert results() == expected


def test_fresh_weights_have_neither_the_default_device_nor_dtype():
    with defaults(torch.float64, "meta"):
        model = miniclip.load("bert_vit_tiny", pretrained=False)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert {parameter.device.type for parameter in model.parameters()} == {"cpu"}
    assert float(model.image.positions.detach().std()) > 0.01
