"""Image tower: a vision transformer (Dosovitskiy et al. 2021) with CLIP's norm before the blocks.

Pooling: the class token (CLIP), the mean of the patches (CLIPA) or a learned query (SigLIP).
Letters: B batch, S image side, P patches, K kept patches, T tokens, D width, E embedding.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from miniclip.config import ImageConfig
from miniclip.models.layers import AttentionPool, Transformer, projection
from miniclip.models.stem import ConvStem


class VisionTransformer(nn.Module):
    """Images to embeddings: patches, positions, blocks, pooling, projection."""

    class_token: nn.Parameter | None

    def __init__(self, config: ImageConfig, embed_dim: int) -> None:
        super().__init__()
        self.config = config
        width, patch, bias = config.width, config.patch_size, config.patch_bias
        self.patches = ConvStem(config) if config.stem == "conv" else nn.Conv2d(3, width, patch, patch, bias=bias)
        self.register_parameter("class_token", nn.Parameter(torch.zeros(width)) if config.class_token else None)
        self.positions = nn.Parameter(torch.zeros(config.class_token + config.patches, width))
        self.norm_before = nn.LayerNorm(width, config.norm_eps) if config.norm_before else nn.Identity()
        self.blocks = Transformer(config)
        self.norm_after = nn.LayerNorm(width, config.norm_eps)
        self.pool = AttentionPool(config) if config.pooling == "attention" else None
        self.projection = projection(width, embed_dim, config.projection)

    def forward(self, pixels: Tensor, patch_indices: Tensor | None = None) -> Tensor:
        """Embed images.

        Args:
            pixels: (B, 3, S, S), normalized with `CLIPConfig.mean` and `std`.
            patch_indices: (B, K) indices of the patches to use, for patch dropout (`draw_patches`); None: all patches.

        Returns:
            (B, E), not normalized.

        Raises:
            ValueError: the images do not have the tower's size.
        """
        x = self.norm_before(self.embed(pixels, patch_indices))
        return self.projection(self.encode(x))  # type: ignore[no-any-return]

    def embed(self, pixels: Tensor, patch_indices: Tensor | None) -> Tensor:
        """Patch embeddings with positions, after the class token if the tower has one: (B, T, D)."""
        S, P = self.config.image_size, self.config.patches
        if pixels.shape[1:] != (3, S, S):
            raise ValueError(f"pixels have the shape {tuple(pixels.shape)}, not (B, 3, {S}, {S}): use encode_image")
        x: Tensor = self.patches(pixels).flatten(2).transpose(1, 2) + self.positions[-P:]  # (B, P, D)
        if patch_indices is not None:
            x = x.gather(1, patch_indices[:, :, None].expand(-1, -1, x.shape[2]))  # (B, K, D)
        if self.class_token is None:
            return x
        first = (self.class_token + self.positions[0]).to(x.dtype).expand(x.shape[0], 1, -1)
        return torch.cat([first, x], dim=1)

    def encode(self, x: Tensor) -> Tensor:
        """Blocks, pooling and norm: (B, T, D) to (B, D)."""
        x = self.blocks(x)
        if self.pool is not None:
            return self.pool(self.norm_after(x))  # type: ignore[no-any-return]
        x = x[:, 0] if self.config.pooling == "class" else x[:, int(self.config.class_token) :].mean(dim=1)
        return self.norm_after(x)  # type: ignore[no-any-return]


def draw_patches(batch: int, patches: int, dropout: float, generator: torch.Generator) -> Tensor:
    """Draw the patches to keep, independently for each image (patch dropout: FLIP, Li et al. 2023).

    Returns:
        (B, K) distinct indices in 0..P-1, K = P * (1 - dropout) rounded, at least 1. Dropout is in [0, 1).
    """
    keep = max(1, round(patches * (1 - dropout)))
    return torch.rand(batch, patches, generator=generator).argsort(dim=1)[:, :keep]
