"""Inputs of the losses: wrong types get one sentence that names the argument, in one piece and in blocks."""

import numpy as np
import pytest
import torch

import miniclip
from miniclip.losses.inputs import LossInputs

GENERATOR = torch.Generator().manual_seed(0)
IMAGES, TEXTS = torch.randn(4, 8, generator=GENERATOR), torch.randn(4, 8, generator=GENERATOR)
IDS = torch.tensor([0, 1, 0, 2])


def contrastive(*, images=IMAGES, texts=TEXTS, logit_scale=10.0, **options):
    return miniclip.contrastive_loss(images, texts, logit_scale, **options)


def sigmoid(*, images=IMAGES, texts=TEXTS, logit_scale=10.0, logit_bias=-10.0, **options):
    return miniclip.sigmoid_loss(images, texts, logit_scale, logit_bias, **options)


WRONG = {
    "numpy images": (
        {"images": IMAGES.numpy()},
        TypeError,
        r"image_embeddings: found an array .*torch\.",
    ),
    "numpy texts": ({"texts": TEXTS.numpy()}, TypeError, "text_embeddings: found an array"),
    "lists": ({"images": IMAGES.tolist()}, TypeError, "image_embeddings: found a list"),
    "integers": ({"images": IMAGES.long()}, TypeError, r"image_embeddings: found a Tensor \(4, 8\) of int64"),
    "meta": ({"texts": TEXTS.to("meta")}, ValueError, "image_embeddings are on cpu, text_embeddings on meta"),
    "scale as text": ({"logit_scale": "10"}, TypeError, "logit_scale is '10'"),
    "no scale": ({"logit_scale": None}, TypeError, "logit_scale is None"),
    "scales": ({"logit_scale": torch.ones(4)}, ValueError, r"logit_scale: found a Tensor \(4,\) .*a single number"),
    "negative scale": ({"logit_scale": -1.0}, ValueError, "logit_scale is -1.0; expected a finite number, at least 0"),
    "NaN scale": ({"logit_scale": float("nan")}, ValueError, "logit_scale is nan"),
    "ids in a list": ({"ids": [0, 1, 0, 2]}, TypeError, "ids: found a list; expected a tensor .*torch.as_tensor"),
    "ids of numpy": ({"ids": IDS.numpy()}, TypeError, "ids: found an array"),
    "float ids": ({"ids": IDS.float()}, TypeError, r"ids: found a Tensor \(4,\) of float32"),
    "bool ids": ({"ids": IDS.bool()}, TypeError, "ids: found a Tensor .* of bool"),
    "text ids": ({"ids": ["a", "b", "a", "c"]}, TypeError, "ids: found a list"),
    "chunk as text": ({"chunk_size": "2"}, TypeError, "chunk_size is '2'"),
    "chunk as float": ({"chunk_size": 2.0}, TypeError, "chunk_size is 2.0"),
    "chunk as bool": ({"chunk_size": True}, TypeError, "chunk_size is True"),
    "chunk of 0": ({"chunk_size": 0}, ValueError, "chunk_size is 0"),
    "shapes": ({"images": IMAGES[:3]}, ValueError, "expected two of the same shape"),
    "numbers": ({"images": IMAGES[0, 0], "texts": TEXTS[0, 0]}, ValueError, "expected two of the same shape"),
    "numbers and ids": (
        {"images": IMAGES[0, 0], "texts": TEXTS[0, 0], "ids": IDS},
        ValueError,
        "expected two of the same shape",
    ),
}


@pytest.mark.parametrize("kind", sorted(WRONG))
@pytest.mark.parametrize("loss", [contrastive, sigmoid], ids=["contrastive", "sigmoid"])
def test_wrong_inputs(loss, kind):
    options, error, message = WRONG[kind]
    with pytest.raises(error, match=message):
        loss(**options)
    if "chunk" not in kind:
        with pytest.raises(error, match=message):
            loss(**options, chunk_size=2)


@pytest.mark.parametrize(
    "bias", ["-10", None, torch.ones(2), float("inf"), True], ids=["str", "None", "two", "inf", "bool"]
)
def test_wrong_bias(bias):
    for chunk_size in (None, 2):
        with pytest.raises((TypeError, ValueError), match=r"logit_bias"):
            sigmoid(logit_bias=bias, chunk_size=chunk_size)


@pytest.mark.parametrize("loss", [contrastive, sigmoid], ids=["contrastive", "sigmoid"])
def test_numbers_of_every_kind_are_taken(loss):
    expected = loss()
    tensors = [torch.tensor(10.0), torch.tensor([10.0]), torch.tensor([10.0]).double(), torch.tensor([[[10.0]]])]
    for scale in (10, np.float32(10), np.int64(10), *tensors):
        torch.testing.assert_close(loss(logit_scale=scale), expected)
    torch.testing.assert_close(loss(chunk_size=np.int64(2)), expected)
    for dtype in (torch.int32, torch.uint8):
        torch.testing.assert_close(loss(ids=IDS.to(dtype)), loss(ids=IDS))


def test_ids_are_taken_from_any_device_and_type():
    inputs = LossInputs(IMAGES.to("meta"), TEXTS.to("meta"), 10.0, ids=IDS.to(torch.int16))
    labelled = inputs._replace(text_ids=IDS)
    assert labelled.pair_ids is None
    for ids in (inputs.pair_ids, *labelled.labels()):
        assert ids.is_meta
        assert ids.dtype == torch.int64


@pytest.mark.parametrize("options", [{}, {"chunk_size": 2}, {"label_smoothing": 0.1}])
@pytest.mark.parametrize("wide", ["images", "texts"])
def test_embeddings_of_two_precisions_are_refused(wide, options):
    images, texts = torch.randn(3, 4), torch.randn(3, 4)
    pair = (images.double(), texts) if wide == "images" else (images, texts.double())
    names = ("float64", "float32") if wide == "images" else ("float32", "float64")
    with pytest.raises(TypeError, match=rf"image_embeddings are {names[0]}, text_embeddings {names[1]}; .* convert"):
        miniclip.contrastive_loss(*pair, 10.0, **options)
    with pytest.raises(TypeError, match=rf"image_embeddings are {names[0]}"):
        miniclip.sigmoid_loss(*pair, 10.0, -10.0, **options)


def test_bfloat16_and_float32_are_one_precision():
    images, texts = torch.randn(3, 4), torch.randn(3, 4)
    expected = miniclip.contrastive_loss(images.bfloat16().float(), texts, 10.0)
    assert torch.equal(miniclip.contrastive_loss(images.bfloat16(), texts, 10.0), expected)
