"""CLIP: an image tower and a text tower that share one embedding space (Radford et al. 2021).

Letters: B batch, S image side, K kept patches, T tokens, E embedding.
"""

from __future__ import annotations

import math
from typing import NamedTuple, Self

import torch
from torch import Tensor, nn

from miniclip.config import CLIPConfig
from miniclip.models.init import initialise
from miniclip.models.text import TextTransformer
from miniclip.models.vision import VisionTransformer


class CLIPOutput(NamedTuple):
    """Inputs of a loss."""

    image_embeddings: Tensor  # (B, E), not normalized
    text_embeddings: Tensor  # (B, E), not normalized
    logit_scale: Tensor  # scalar, the factor on the cosine similarities (not its logarithm)
    logit_bias: Tensor | None  # scalar, added to the scaled similarities; None without a bias


class CLIP(nn.Module):
    """The two towers and the scale of their cosine similarities.

    Attributes:
        image: image tower, pixels (B, 3, S, S) to (B, E).
        text: text tower, token ids (B, T) to (B, E).
        log_scale: logarithm of the logit scale, a scalar parameter. The logarithm keeps the scale positive.
        logit_bias: SigLIP's bias, a scalar parameter; None in CLIP.
    """

    logit_bias: nn.Parameter | None

    def __init__(self, config: CLIPConfig, image: VisionTransformer | None = None) -> None:
        super().__init__()
        self.config = config
        self.image = image or VisionTransformer(config.image, config.embed_dim)  # type: ignore[arg-type]  # raises
        self.text = TextTransformer(config.text, config.embed_dim)
        self.log_scale = nn.Parameter(torch.tensor(math.log(config.logit_scale)))
        bias = config.logit_bias
        self.register_parameter("logit_bias", None if bias is None else nn.Parameter(torch.tensor(float(bias))))

    def initialise(self) -> Self:
        """Draw fresh weights from torch's global generator (`models/init.py`)."""
        initialise(self.image)
        initialise(self.text)
        return self

    def forward(self, pixels: Tensor, tokens: Tensor, patch_indices: Tensor | None = None) -> CLIPOutput:
        """Embed matching images and texts.

        Args:
            pixels: (B, 3, S, S), normalized by the model's preprocessing.
            tokens: (B, T) integer.
            patch_indices: (B, K) patches to use; None: all.
        """
        image_embeddings, text_embeddings = self.image(pixels, patch_indices), self.text(tokens)
        return CLIPOutput(image_embeddings, text_embeddings, self.log_scale.exp(), self.logit_bias)
