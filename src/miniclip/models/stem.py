"""Convolutional stem in place of the patch embedding (Xiao et al. 2021, https://arxiv.org/abs/2106.14881).

It begins with a convolution of 7 x 7 pixels and stride 4, whose patches overlap (CvT, Wu et al. 2021,
https://arxiv.org/abs/2103.15808), and halves the side with convolutions of 3 x 3 pixels and stride 2. Each has a norm
and GELU, and one of 1 x 1 pixels ends the stem. The channels double from layer to layer up to the width, as in
Xiao et al., who begin with two convolutions of 3 x 3 pixels and stride 2. Residual layers of 3 x 3 pixels and stride 1
may follow each of them (He et al. 2015, https://arxiv.org/abs/1512.03385).

The norm is over all channels and positions of an image (group norm with one group, Wu and He 2018,
https://arxiv.org/abs/1803.08494), where they have batch norm. The images of a batch stay independent, and a plain
background stays weak: a layer norm of each position would amplify it.

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
        size = kernel_size(stride)
        self.conv = nn.Conv2d(channels, out_channels, size, stride, padding=size // 2, bias=False)
        self.group_norm = nn.GroupNorm(1, out_channels, norm_eps)  # not `norm`: stems with a layer norm had that name
        self.activation = nn.GELU()

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, S, S) to (B, C', S / stride, S / stride)."""
        return self.activation(self.group_norm(self.conv(x)))  # type: ignore[no-any-return]


class ResidualLayer(StemLayer):
    """Layer of stride 1 whose input is added to its output: (B, C, S, S) to the same shape."""

    def __init__(self, channels: int, norm_eps: float) -> None:
        super().__init__(channels, channels, 1, norm_eps)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, S, S) to (B, C, S, S)."""
        return x + super().forward(x)


class ConvStem(nn.Conv2d):
    """Images to patch embeddings: the layers, then this module's own convolution of 1 x 1 pixels."""

    def __init__(self, config: ImageConfig) -> None:
        super().__init__(config.width, config.width, kernel_size=1, bias=config.patch_bias)
        layers, channels = [], 3
        for out_channels, stride in layer_sizes(config):
            layers.append(StemLayer(channels, out_channels, stride, config.norm_eps))
            layers += [ResidualLayer(out_channels, config.norm_eps) for _ in range(config.stem_residual_layers)]
            channels = out_channels
        self.layers = nn.Sequential(*layers)

    def forward(self, pixels: Tensor) -> Tensor:
        """(B, 3, S, S) to (B, D, G, G)."""
        return super().forward(self.layers(pixels))


def layer_sizes(config: ImageConfig) -> list[tuple[int, int]]:
    """Return channels and stride of each layer that divides; for patches of 16 px D / 4, D / 2, D with 4, 2, 2."""
    count = config.patch_size.bit_length() - FIRST_STRIDE.bit_length() + 1
    return [(config.width >> (count - 1 - layer), 2 if layer else FIRST_STRIDE) for layer in range(count)]


def kernel_size(stride: int) -> int:
    """Return the side of a layer's kernel, in pixels: neighbours overlap."""
    return max(3, 2 * stride - 1)
