"""The image tower: a vision transformer (Dosovitskiy et al. 2021), by default with CLIP's norm before the blocks.

It is pooled at its class token (CLIP), by the mean of its patches (CLIPA) or by a learned query (SigLIP).

Letters: B batch, S picture side, P patches, D width, E embedding.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from miniclip.config import ImageConfig
from miniclip.models.layers import AttentionPool, Transformer, projection


class VisionTransformer(nn.Module):
    """Pictures to embeddings: patches, positions, blocks, pooling, projection."""

    class_token: nn.Parameter | None

    def __init__(self, config: ImageConfig, embed_dim: int) -> None:
        super().__init__()
        self.config = config
        width, patch = config.width, config.patch_size
        self.patches = nn.Conv2d(3, width, kernel_size=patch, stride=patch, bias=config.patch_bias)
        self.register_parameter("class_token", nn.Parameter(torch.zeros(width)) if config.class_token else None)
        self.positions = nn.Parameter(torch.zeros(config.class_token + config.patches, width))
        self.norm_before = nn.LayerNorm(width, config.norm_eps) if config.norm_before else nn.Identity()
        self.blocks = Transformer(config)
        self.norm_after = nn.LayerNorm(width, config.norm_eps)
        self.pool = AttentionPool(config) if config.pooling == "attention" else None
        self.projection = projection(width, embed_dim, config.projection)

    def forward(self, pixels: Tensor, kept: Tensor | None = None) -> Tensor:
        """Embed normalised pictures.

        Args:
            pixels: (B, 3, S, S), normalised as `CLIPConfig.mean` and `std` say.
            kept: (B, K) indices in 0..P-1 of the patches to look at, row by row, in training (`draw_patches`); None:
                all of them.

        Returns:
            (B, E), not normalised.

        Raises:
            ValueError: the pictures have another size than the tower's.
        """
        if pixels.shape[1:] != (3, self.config.image_size, self.config.image_size):
            raise ValueError(
                f"pixels have the shape {tuple(pixels.shape)}; this model takes (B, 3, {self.config.image_size}, "
                f"{self.config.image_size}): use model.preprocess, or encode_image"
            )
        x = self.patches(pixels).flatten(2).transpose(1, 2)  # (B, P, D)
        x = x + self.positions[-x.shape[1] :]
        if kept is not None:
            x = x.gather(1, kept[:, :, None].expand(-1, -1, x.shape[2]))  # (B, K, D)
        if self.class_token is not None:
            first = (self.class_token + self.positions[0]).to(x.dtype).expand(len(x), 1, -1)
            x = torch.cat([first, x], dim=1)  # (B, 1 + P, D)
        return self.projection(self._pooled(self.norm_before(x)))  # type: ignore[no-any-return]

    def _pooled(self, x: Tensor) -> Tensor:
        """Through the blocks, (B, T, D), and pooled to (B, D), normalised."""
        if self.pool is not None:
            return self.pool(self.norm_after(self.blocks(x)))  # type: ignore[no-any-return]
        if self.config.pooling == "mean":
            mean = self.blocks(x)[:, int(self.config.class_token) :].mean(dim=1)
            return self.norm_after(mean)  # type: ignore[no-any-return]
        first = torch.zeros(len(x), dtype=torch.int64, device=x.device)
        return self.norm_after(self.blocks(x, at=first))  # type: ignore[no-any-return]


def draw_patches(batch: int, patches: int, dropout: float, generator: torch.Generator) -> Tensor:
    """Which patches to keep, another set for each picture (patch dropout: Li et al. 2023, FLIP).

    Args:
        batch: B.
        patches: P.
        dropout: the share to leave out, in [0, 1).
        generator: on the CPU.

    Returns:
        (B, K) indices in 0..P-1, without repeats in a row; K is at least 1.
    """
    keep = max(1, round(patches * (1 - dropout)))
    return torch.rand(batch, patches, generator=generator).argsort(dim=1)[:, :keep]
