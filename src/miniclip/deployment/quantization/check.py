"""Check of int8 towers beside the float32 model: cosines of embeddings, and recall on the user's data.

Letters: N items, E embedding.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from miniclip.checkpoints.native import write_json
from miniclip.deployment import INT8_CHECK
from miniclip.deployment.quantization.graph import quantize_file
from miniclip.deployment.towers import sample_pixels, sample_tokens
from miniclip.deployment.verification import session
from miniclip.errors import CheckpointError
from miniclip.evaluation.retrieval import retrieval
from miniclip.inference.image_items import image_items
from miniclip.inference.images import ImageReader
from miniclip.inference.model import CLIPModel
from miniclip.inference.texts import tokenize
from miniclip.losses.reference import l2_normalize

MIN_COSINE = 0.97  # smallest cosine with the float32 embedding of noise; trained models have more
MAX_LOSS = 0.5  # points of recall that int8 may lose
BATCH = 32


class OnnxEncoder:
    """Two ONNX files of towers, with a model's preprocessing and tokenizer.

    Args:
        model: the model that was exported.
        visual: file of the image tower, from `image` (N, 3, S, S) to `embedding` (N, E).
        textual: file of the text tower, from `text` (N, T) to `embedding` (N, E).
    """

    def __init__(self, model: CLIPModel, visual: Path, textual: Path) -> None:
        self.model = model
        self.visual, self.textual = session(visual), session(textual)

    def encode_image(self, images: Any) -> Tensor:
        """Return unit vectors (N, E) of images, or of pixels (N, 3, S, S)."""
        items = image_items(images)
        if isinstance(items, Tensor):
            return self._embed(self.visual, "image", torch.split(items.float().cpu(), BATCH))
        batches = ImageReader(items, self.model.preprocess, BATCH).batches()
        return self._embed(self.visual, "image", (self.model.preprocess.normalise(batch.pixels) for batch in batches))

    def encode_text(self, texts: Any) -> Tensor:
        """Return unit vectors (N, E) of strings, or of token ids (N, T)."""
        if not isinstance(texts, Tensor):
            texts = tokenize(self.model, self.model.tokenizer, list(texts))
        return self._embed(self.textual, "text", torch.split(texts.cpu(), BATCH))

    def _embed(self, engine: Any, name: str, batches: Iterable[Tensor]) -> Tensor:
        outputs = [torch.from_numpy(engine.run(None, {name: batch.numpy()})[0]) for batch in batches]
        return l2_normalize(torch.cat(outputs))


@torch.no_grad()
def write_int8(model: CLIPModel, visual: Path, textual: Path, data: Any = None) -> None:
    """Write int8 forms of two towers, `NAME_int8.onnx`, and the report of their check, `int8_check.json`.

    The report has the smallest cosines, the limits, and the recalls of both forms or null.

    Args:
        model: the model that the files came from.
        visual: its image tower in float32, without preprocessing inside.
        textual: its text tower in float32.
        data: an image-caption dataset to measure recall on; None: recall is not checked, with a warning.

    Raises:
        CheckpointError: a cosine or a recall is below its limit.
        ValueError: data are given and the model has no tokenizer.
    """
    if data is not None and model.tokenizer is None:
        raise ValueError("the model has no tokenizer, so recall cannot be checked: load it with one, or pass no data")
    files = [path.with_name(f"{path.stem}_int8.onnx") for path in (visual, textual)]
    for source, target in zip((visual, textual), files, strict=True):
        quantize_file(source, target)
    exact, quantized = OnnxEncoder(model, visual, textual), OnnxEncoder(model, *files)
    pixels, tokens = sample_pixels(model.config, 8), sample_tokens(model.config, 8)
    report: dict[str, Any] = {"limits": {"cosine": MIN_COSINE, "recall": MAX_LOSS}}
    report["cosine"] = {
        "image": _cosine(exact.encode_image(pixels), quantized.encode_image(pixels)),
        "text": _cosine(exact.encode_text(tokens), quantized.encode_text(tokens)),
    }
    for tower, cosine in report["cosine"].items():
        if not cosine >= MIN_COSINE:
            raise CheckpointError(
                f"the int8 {tower} tower was checked and refused: the cosine with float32 is {cosine:.4f} on noise; "
                f"the limit is {MIN_COSINE}. Export without int8"
            )
    report["recall"] = None if data is None else _check_recall(exact, quantized, data)
    write_json(visual.with_name(INT8_CHECK), report)
    if data is None:
        cosines = ", ".join(f"{tower} {cosine:.4f}" for tower, cosine in report["cosine"].items())
        warnings.warn(
            f"int8: cosines with float32 on noise: {cosines}. Recall was not checked: pass check_data, captioned "
            "images, to check it",
            stacklevel=2,
        )


def _cosine(a: Tensor, b: Tensor) -> float:
    return float((a * b).sum(dim=1).min())


def _check_recall(exact: OnnxEncoder, quantized: OnnxEncoder, data: Any) -> dict[str, Any]:
    """Return the recalls of both forms in percent.

    Raises:
        CheckpointError: int8 loses more than the limit in one of them.
    """
    before, after = retrieval(exact, data), retrieval(quantized, data)
    for direction, values in before.items():
        for name, value in values.items():
            loss = value - after[direction][name]
            if not loss <= MAX_LOSS + 1e-9:
                raise CheckpointError(
                    f"the int8 towers were checked and refused: {direction} {name} falls from {value:.1f} to "
                    f"{after[direction][name]:.1f} %; the limit is {MAX_LOSS} points. Export without int8, or check "
                    "on more data if one query is more than that"
                )
    return {"float32": before, "int8": after}
