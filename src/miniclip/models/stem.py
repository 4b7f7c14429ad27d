"""Convolutional stem in place of the patch embedding (Xiao et al. 2021, https://arxiv.org/abs/2106.14881).

It begins with a convolution of 7 x 7 pixels and stride 4, whose patches overlap (CvT, Wu et al. 2021,
https://arxiv.org/abs/2103.15808), and halves the side with convolutions of 3 x 3 pixels and stride 2. Each has a norm
and GELU, and one of 1 x 1 pixels ends the stem. The channels double from layer to layer up to the width, as in
Xiao et al., who begin with two convolutions of 3 x 3 pixels and stride 2.
The norm is a layer norm over the channels of each position (ConvNeXt, Liu et al. 2022), where they have batch norm, so
that the images of a batch stay independent.

Letters: B batch, S image side, C channels, D width, G patches per side.
"""

from __future__ import annotations

from torch import Tensor, nn

from miniclip.config import ImageConfig

FIRST_STRIDE = 4


class StemLayer(nn.Module):
    """Convolution that divides the side, norm, GELU: (B, C, S, S) to (B, C', S / stride, S / stride)."""

    def __init__(self, channels: int, out_channels: int, stride: int, norm_eps: float) -> None:
        super().__init__()
        size = 2 * stride - 1  # neighbours overlap
        self.conv = nn.Conv2d(channels, out_channels, size, stride, padding=stride - 1, bias=False)
        self.norm = nn.LayerNorm(out_channels, norm_eps)
        self.activation = nn.GELU()

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, S, S) to (B, C', S / stride, S / stride)."""
        x = self.norm(self.conv(x).permute(0, 2, 3, 1))
        return self.activation(x).permute(0, 3, 1, 2)  # type: ignore[no-any-return]


class ConvStem(nn.Conv2d):
    """Images to patch embeddings: the layers, then this module's own convolution of 1 x 1 pixels."""

    def __init__(self, config: ImageConfig) -> None:
        super().__init__(config.width, config.width, kernel_size=1, bias=config.patch_bias)
        layers, channels = [], 3
        for out_channels, stride in layer_sizes(config):
            layers.append(StemLayer(channels, out_channels, stride, config.norm_eps))
            channels = out_channels
        self.layers = nn.Sequential(*layers)

    def forward(self, pixels: Tensor) -> Tensor:
        """(B, 3, S, S) to (B, D, G, G)."""
        return super().forward(self.layers(pixels))


def layer_sizes(config: ImageConfig) -> list[tuple[int, int]]:
    """Return channels and stride of each layer; for patches of 16 px these are D / 4, D / 2 and D with 4, 2 and 2."""
    count = config.patch_size.bit_length() - FIRST_STRIDE.bit_length() + 1
    return [(config.width >> (count - 1 - layer), 2 if layer else FIRST_STRIDE) for layer in range(count)]
