"""Convolutional stem in place of the patch embedding (Xiao et al. 2021, https://arxiv.org/abs/2106.14881).

It has log2(patch_size) convolutions of 3 x 3 pixels, each with stride 2, a norm and GELU, then one of 1 x 1 pixels. The
channels double from layer to layer up to the width, as in the paper. The norm is a layer norm
over the channels of each position (ConvNeXt, Liu et al. 2022), where the paper has batch norm, so that the images of a
batch stay independent.

Letters: B batch, S image side, C channels, D width, G patches per side.
"""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn

from miniclip.config import ImageConfig


class StemLayer(nn.Module):
    """Convolution with stride 2, norm, GELU: (B, C, S, S) to (B, C', S / 2, S / 2)."""

    def __init__(self, channels: int, out_channels: int, norm_eps: float) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, out_channels, kernel_size=3, stride=2, padding=1, bias=False)
        self.norm = nn.LayerNorm(out_channels, norm_eps)
        self.activation = nn.GELU()

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, S, S) to (B, C', S / 2, S / 2)."""
        x = self.norm(self.conv(x).permute(0, 2, 3, 1))
        return self.activation(x).permute(0, 3, 1, 2)  # type: ignore[no-any-return]


class ConvStem(nn.Conv2d):
    """Images to patch embeddings: the layers, then this module's own convolution of 1 x 1 pixels."""

    def __init__(self, config: ImageConfig) -> None:
        super().__init__(config.width, config.width, kernel_size=1, bias=config.patch_bias)
        count = config.patch_size.bit_length() - 1
        channels = [3, *(config.width >> (count - number) for number in range(1, count + 1))]
        self.layers = nn.Sequential(*(StemLayer(*pair, config.norm_eps) for pair in pairwise(channels)))

    def forward(self, pixels: Tensor) -> Tensor:
        """(B, 3, S, S) to (B, D, G, G)."""
        return super().forward(self.layers(pixels))
