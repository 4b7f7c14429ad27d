"""Both towers in one ONNX file, as transformers' CLIPModel and SiglipModel: similarities of images and texts.

Letters: N images, M texts, S image side, T tokens, E embedding.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from miniclip.deployment import Precision, onnx_files
from miniclip.deployment.options import DTYPES
from miniclip.deployment.towers import (
    ImageEmbedder,
    TextEmbedder,
    image_embedder,
    row_end,
    sample_pixels,
    sample_tokens,
    text_embedder,
)
from miniclip.deployment.verification import limit_of, verify
from miniclip.inference.model import CLIPModel

OUTPUTS = ("logits_per_image", "logits_per_text", "text_embeds", "image_embeds")
SIZES = ((1, 1), (2, 7), (7, 2))  # images and texts of the check


class Similarities(nn.Module):
    """Token ids (M, T), pixels (N, 3, S, S) and, for masked padding, an attention mask (M, T), to `OUTPUTS`.

    Attributes:
        scale, bias: of the cosine similarities.
    """

    def __init__(self, images: ImageEmbedder, texts: TextEmbedder, scale: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.images, self.texts = images, texts
        self.register_buffer("scale", scale)
        self.register_buffer("bias", torch.zeros_like(scale) if bias is None else bias)

    def forward(
        self, input_ids: Tensor, pixel_values: Tensor, attention_mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Logits (N, M) and (M, N), and unit vectors (M, E) and (N, E)."""
        texts, images = self.texts(input_ids, attention_mask), self.images(pixel_values)
        logits = texts @ images.T * self.scale + self.bias
        return logits.T, logits, texts, images


def write_joint(model: CLIPModel, path: Path, precision: Precision = "float32", external: str | None = None) -> None:
    """Write both towers to one file, with the inputs `input_ids`, `pixel_values` and perhaps `attention_mask`.

    A model that attends to its padding has no `attention_mask`, and takes rows of the context length.

    Raises:
        CheckpointError: onnxruntime does not give the model's similarities and embeddings.
    """
    text = model.config.text
    module, axes = _similarities(model, precision), {"pixel_values": {0: "images"}, "input_ids": {0: "texts"}}
    if text.padding == "masked":
        axes |= {"input_ids": {0: "texts", 1: "length"}, "attention_mask": {0: "texts", 1: "length"}}
    graph = onnx_files.trace(module, _inputs(model, 2, 3), OUTPUTS, axes, longest=text.context_length)
    onnx_files.save(graph, path, external)
    reference = _similarities(model, "float32")
    with torch.no_grad():
        cases = [
            ({name: value.numpy() for name, value in inputs.items()}, [out.numpy() for out in reference(**inputs)])
            for inputs in (_inputs(model, *sizes) for sizes in SIZES)
        ]
    verify(path, cases, limit_of(precision))


def _similarities(model: CLIPModel, precision: Precision) -> Similarities:
    dtype = DTYPES[precision]
    bias = None if model.logit_bias is None else model.logit_bias.detach().cpu().float()
    scale = model.log_scale.detach().cpu().float().exp()
    texts = text_embedder(model, dtype, row_end=row_end(model))
    return Similarities(image_embedder(model, dtype), texts, scale, bias).eval()


def _inputs(model: CLIPModel, images: int, texts: int) -> dict[str, Tensor]:
    """Inputs in the order of the file."""
    tokens = sample_tokens(model.config, texts, seed=texts)
    inputs = {"input_ids": tokens, "pixel_values": sample_pixels(model.config, images, seed=images)}
    if model.config.text.padding == "masked":
        inputs["attention_mask"] = torch.ones_like(tokens)
    return inputs
