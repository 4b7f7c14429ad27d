"""The two towers as ONNX files, each checked in onnxruntime against the model.

Letters: B batch, S image side, T tokens, E embedding.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from miniclip.deployment import Precision, onnx_files
from miniclip.deployment.options import DTYPES
from miniclip.deployment.preprocessing import prepend_preprocessing
from miniclip.deployment.towers import image_embedder, sample_images, sample_pixels, sample_tokens, text_embedder
from miniclip.deployment.verification import MAX_RAW_ERROR, limit_of, verify
from miniclip.inference.model import CLIPModel

BATCHES = (1, 2, 7)  # batch sizes in the check


@dataclass(frozen=True)
class Signature:
    """Names and types of a tower's file.

    Attributes:
        input: name of the pixels or token ids.
        output: name of the embeddings.
        ids: type of token ids.
        padded: rows of token ids always have the context length.
        normalize: embeddings have length 1.
        mask: name of the attention mask of token ids; None: the file has none.
        row_end: id that `TextEmbedder` ends rows with, or None.
        external: name of the file of weights that do not fit in the file; None: the file's name with `.data`.
    """

    input: str
    output: str = "embedding"
    ids: torch.dtype = torch.int64
    padded: bool = False
    normalize: bool = True
    mask: str | None = None
    row_end: int | None = None
    external: str | None = None


def write_image_encoder(
    model: CLIPModel, path: Path, signature: Signature, precision: Precision = "float32", raw: bool = False
) -> None:
    """Write an image tower: images to embeddings (B, E) of float32.

    Args:
        model: the model.
        path: the file.
        signature: names in the file.
        precision: of the weights.
        raw: take RGB images (B, H, W, 3) of uint8, whose one size is any, and preprocess them inside. Else take
            pixels (B, 3, S, S) of float32, from the model's preprocessing.

    Raises:
        CheckpointError: onnxruntime does not give the model's embeddings.
    """
    module = image_embedder(model, DTYPES[precision], signature.normalize)
    axes = {signature.input: {0: "batch"}}
    graph = onnx_files.trace(module, {signature.input: sample_pixels(model.config, 2)}, [signature.output], axes)
    if raw:
        prepend_preprocessing(graph, model.config)
    onnx_files.save(graph, path, signature.external)
    embed, limit = _reference(model, signature), limit_of(precision)
    if raw:
        images = (sample_images(model.config, batch, seed=batch) for batch in BATCHES)
        cases = (({signature.input: batch}, embed(_preprocess(model, batch)).numpy()) for batch in images)
        verify(path, cases, max(limit, MAX_RAW_ERROR))
    else:
        batches = (sample_pixels(model.config, batch, seed=batch) for batch in BATCHES)
        verify(path, (({signature.input: batch.numpy()}, embed(batch).numpy()) for batch in batches), limit)


def write_text_encoder(model: CLIPModel, path: Path, signature: Signature, precision: Precision = "float32") -> None:
    """Write a text tower: token ids (B, T) to embeddings (B, E) of float32.

    T is the context length if the model attends to padding, or the signature is padded; else 1 to the context length.

    Raises:
        CheckpointError: onnxruntime does not give the model's embeddings.
    """
    text = model.config.text
    context = text.context_length
    fixed = signature.padded or text.padding == "attended"
    module = text_embedder(model, DTYPES[precision], signature.normalize, signature.row_end)
    inputs = _text_inputs(sample_tokens(model.config, 2), signature)
    axes = dict.fromkeys(inputs, {0: "batch"} if fixed else {0: "batch", 1: "length"})
    graph = onnx_files.trace(module, inputs, [signature.output], axes, 0 if fixed else context)
    onnx_files.save(graph, path, signature.external)
    lengths = (context,) if fixed else (context, max(1, context // 2), 1)
    batches = [sample_tokens(model.config, batch, seed=batch, length=length) for batch in BATCHES for length in lengths]
    embed = _reference(model, signature)
    cases = (
        ({name: value.numpy() for name, value in _text_inputs(tokens, signature).items()}, embed(tokens).numpy())
        for tokens in batches
    )
    verify(path, cases, limit_of(precision))


def _text_inputs(tokens: Tensor, signature: Signature) -> dict[str, Tensor]:
    """Return the inputs of a text tower's file for token ids (B, T) without padding to hide."""
    inputs = {signature.input: tokens.to(signature.ids)}
    return inputs if signature.mask is None else inputs | {signature.mask: torch.ones_like(inputs[signature.input])}


def _preprocess(model: CLIPModel, images: npt.NDArray[np.uint8]) -> Tensor:
    return torch.stack([model.preprocess(image) for image in images])


def _reference(model: CLIPModel, signature: Signature) -> Callable[[Tensor], Tensor]:
    """Return the function of pixels or token ids that a file must equal.

    It is the model itself; for a model on a GPU or in another precision, its weights in float32 on the CPU.
    """
    images: Callable[..., Tensor] = partial(model.encode_image, normalize=signature.normalize)
    texts: Callable[..., Tensor] = partial(model.encode_text, normalize=signature.normalize)
    if model.device.type != "cpu" or model.log_scale.dtype != torch.float32:
        images, texts = (make(model, normalize=signature.normalize) for make in (image_embedder, text_embedder))
    return lambda batch: (images if batch.is_floating_point() else texts)(batch)
