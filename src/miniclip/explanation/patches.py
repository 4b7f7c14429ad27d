"""Relevance of patches as a heat map, and images with some patches removed.

Letters: B images, P patches, G patches per side, S image side.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def to_unit_range(relevance: Tensor) -> Tensor:
    """Scale non-negative relevance (..., n) so that its maximum is 1; zeros stay zeros."""
    return relevance / relevance.amax(dim=-1, keepdim=True).clamp_min(torch.finfo(relevance.dtype).tiny)


def enlarge(patches: Tensor, size: int) -> Tensor:
    """Interpolate a map of patches (G, G) to (S, S), bilinearly."""
    return F.interpolate(patches[None, None].float(), size=(size, size), mode="bilinear", align_corners=False)[0, 0]


def heat_map_of(patches: Tensor, patch_size: int, size: int) -> Tensor:
    """Interpolate a map of patches (G, G) to the image (S, S); pixels that no patch covers are 0."""
    covered = len(patches) * patch_size
    return F.pad(enlarge(patches, covered), (0, size - covered, 0, size - covered))


def top_patches(relevance: Tensor, fraction: float) -> Tensor:
    """Return a mask (B, P) of the most relevant share of the patches (B, P); of equal ones, the first."""
    B, P = relevance.shape
    order = relevance.argsort(dim=1, descending=True, stable=True)
    mask = torch.zeros(B, P, dtype=torch.bool, device=relevance.device)
    return mask.scatter(1, order[:, : round(fraction * P)], True)


def keep_patches(pixels: Tensor, mask: Tensor, patch_size: int, keep: bool) -> Tensor:
    """Paint patches over with the mean color of the training data, which is 0 after normalization.

    The pixels that no patch covers are painted over too: the model does not use them.

    Args:
        pixels: (B, 3, S, S), normalized.
        mask: (B, P) bool.
        patch_size: side of a patch in pixels.
        keep: keep the patches of the mask, and paint over the others; False: the reverse.
    """
    B, P = mask.shape
    G = round(P**0.5)
    grid = (mask if keep else ~mask).view(B, 1, G, G)
    kept = grid.repeat_interleave(patch_size, dim=2).repeat_interleave(patch_size, dim=3)
    rest = pixels.shape[-1] - G * patch_size
    return pixels * F.pad(kept, (0, rest, 0, rest))
