"""Towers in the form that is exported (`forms.py`): on a CPU, in one precision, with embeddings of length 1.

Letters: B batch, S image side, T tokens, E embedding.
"""

from __future__ import annotations

import copy
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from miniclip.config import CLIPConfig
from miniclip.deployment.forms import to_export_form
from miniclip.fast import plain
from miniclip.inference.model import CLIPModel
from miniclip.losses.reference import l2_normalize
from miniclip.models.clip import CLIP
from miniclip.models.text import TextTransformer
from miniclip.models.vision import VisionTransformer

Tower = TypeVar("Tower", VisionTransformer, TextTransformer)


class ImageEmbedder(nn.Module):
    """Pixels (B, 3, S, S) of float32, normalized by the model's preprocessing, to embeddings (B, E) of float32."""

    def __init__(self, tower: VisionTransformer, normalize: bool = True) -> None:
        super().__init__()
        self.tower, self.normalize = tower, normalize

    def forward(self, pixels: Tensor) -> Tensor:
        """(B, 3, S, S) to (B, E)."""
        embeddings = self.tower(pixels.to(next(self.tower.parameters()).dtype)).float()
        return l2_normalize(embeddings) if self.normalize else embeddings


class TextEmbedder(nn.Module):
    """Token ids (B, T) of int32 or int64 to embeddings (B, E) of float32.

    Args:
        tower: the text tower.
        normalize: return unit vectors.
        row_end: id that ends rows, to repair the rows of tokenizers that pad and cut in their own way. Ids that the
            attention mask excludes become this id, and so does the last one of a row that does not have it. None: ids
            stay as they are, and an attention mask has no effect.
    """

    def __init__(self, tower: TextTransformer, normalize: bool = True, row_end: int | None = None) -> None:
        super().__init__()
        self.tower, self.normalize, self.row_end = tower, normalize, row_end

    def forward(self, tokens: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """(B, T), and a mask (B, T) that is positive for tokens and 0 for padding, to (B, E)."""
        if self.row_end is not None:
            tokens = end_rows(tokens, attention_mask, self.row_end)
        embeddings = self.tower(tokens).float()
        return l2_normalize(embeddings) if self.normalize else embeddings


def end_rows(tokens: Tensor, attention_mask: Tensor | None, end_id: int) -> Tensor:
    """Replace masked ids by the end id, and the last id of each row without an end: (B, T) to (B, T)."""
    if attention_mask is not None:
        tokens = torch.where(attention_mask > 0, tokens, end_id)
    lacks_end = (tokens != end_id).all(dim=1, keepdim=True)
    is_last = torch.arange(tokens.shape[1], device=tokens.device) == tokens.shape[1] - 1
    return torch.where(lacks_end & is_last, end_id, tokens)


def image_embedder(model: CLIP, dtype: torch.dtype = torch.float32, normalize: bool = True) -> ImageEmbedder:
    """Return a copy of a model's image tower to export."""
    return ImageEmbedder(_copy(model.image, dtype), normalize).eval()


def text_embedder(
    model: CLIP, dtype: torch.dtype = torch.float32, normalize: bool = True, row_end: int | None = None
) -> TextEmbedder:
    """Return a copy of a model's text tower to export."""
    return TextEmbedder(_copy(model.text, dtype), normalize, row_end).eval()


def row_end(model: CLIPModel) -> int | None:
    """Return the id that ends the rows of a model's tokenizer, or None if its rows have no end token."""
    tokenizer = model.tokenizer
    ends = tuple(getattr(tokenizer, "after", ()))
    return tokenizer.end_id if tokenizer is not None and ends[-1:] == (tokenizer.end_id,) else None


def sample_pixels(config: CLIPConfig, batch: int, seed: int = 0) -> Tensor:
    """Draw normalized pixels, (B, 3, S, S) float32."""
    size = config.image.image_size
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(seed), device="cpu")


def sample_images(config: CLIPConfig, batch: int, seed: int = 0) -> npt.NDArray[np.uint8]:
    """Draw images of noise in coarse blocks, (B, H, W, 3) uint8; the shape of the images depends on the seed."""
    generator = np.random.default_rng(seed)
    height, width = (int(side) for side in generator.integers(8, 2 * config.image.image_size, 2))
    blocks = generator.integers(0, 256, (batch, height // 4 + 1, width // 4 + 1, 3), dtype=np.uint8)
    return blocks.repeat(4, axis=1).repeat(4, axis=2)[:, :height, :width]


def sample_tokens(config: CLIPConfig, batch: int, seed: int = 0, length: int | None = None) -> Tensor:
    """Draw rows of token ids that end at different places, (B, T) int64; T is `length`, or the context length."""
    text = config.text
    length = length or text.context_length
    generator = torch.Generator().manual_seed(seed)
    end = text.vocab_size - 1 if text.end_id is None else text.end_id
    tokens = torch.randint(0, text.vocab_size, (batch, length), generator=generator, device="cpu")
    tokens[tokens == end] = 0 if end else 1
    ends = torch.randint(0, length, (batch,), generator=generator, device="cpu")
    tokens[torch.arange(batch, device="cpu"), ends] = end
    tokens[torch.arange(length, device="cpu") > ends[:, None]] = 0
    return tokens


def _copy(tower: Tower, dtype: torch.dtype) -> Tower:
    copied = plain(copy.deepcopy(tower)).to("cpu", dtype)
    to_export_form(copied)
    return copied.requires_grad_(False)
