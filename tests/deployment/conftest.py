"""Exported towers of every kind, each exported once for all tests."""

import itertools

import pytest
import torch

from miniclip.config import CLIPConfig, ImageConfig, TextConfig
from miniclip.inference.model import CLIPModel

IMAGES = {
    "class": {"activation": "quickgelu"},
    "mean": {"pooling": "mean", "norm_before": False},
    "attention": {"pooling": "attention", "class_token": False, "patch_bias": True, "projection": "none"},
}
TEXTS = {
    "causal": {"causal": True, "pooling": "end", "activation": "quickgelu"},
    "masked": {},
    "siglip": {"padding": "attended", "pooling": "last", "projection": "bias"},
}
PAIRS = list(zip(IMAGES, TEXTS, strict=True))


def build(image, text, tokenizer):
    """A model of one layer per tower whose biases and gains all affect the result."""
    config = CLIPConfig(
        ImageConfig(16, 8, 16, 1, 2, **IMAGES[image]),
        TextConfig(12, tokenizer.vocab_size, 16, 1, 2, **TEXTS[text]),
        16,
    )
    torch.manual_seed(0)
    model = CLIPModel(config, tokenizer).initialise().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return model


@pytest.fixture(scope="package")
def models(toy_tokenizer):
    """A model for each kind of pooling and of text tower."""
    return {pair: build(*pair, toy_tokenizer) for pair in PAIRS}


@pytest.fixture(scope="package")
def exported(models, tmp_path_factory):
    """The folders of the layout "onnx" of all models."""
    import miniclip

    pytest.importorskip("onnxruntime")
    folders = {pair: tmp_path_factory.mktemp("exported") / "-".join(pair) for pair in PAIRS}
    for pair, folder in folders.items():
        miniclip.export(models[pair], folder, layout="onnx")
    return folders


def captions(count):
    """Captions of several lengths."""
    return list(itertools.islice(itertools.cycle(["a dog", "a red circle above a blue square", "", "square"]), count))
