"""Patch embeddings by a reshape and a linear layer, which is what a convolution with its kernel as stride computes.

On an H200 in bfloat16, cuDNN computed the first convolution of a ViT-B/16 in a kernel for float32, in 4 of a step's
152 ms. On two cores of a Xeon, forward and backward take 0.5 to 1 of the convolution's time in float32, and 0.03 to
0.25 in bfloat16, whose backward oneDNN computes slowly.
Letters: B batch, S image side, p patch side, P patches, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from miniclip.fast.matmul import linear
from miniclip.fast.private import has_global_hooks, has_hooks, is_transformed

COLORS = 3
DEVICES = ("cpu", "cuda")  # measured: on these types of device the linear layer is faster


class FastPatches(nn.Conv2d):
    """Convolution that is a linear layer of patches, if its kernel is its stride."""

    def forward(self, input: Tensor) -> Tensor:
        """(B, 3, S, S) to (B, D, S / p, S / p)."""
        if not self._is_linear(input):
            return super().forward(input)
        B, C, height, width = input.shape
        p = self.kernel_size[0]
        rows, columns = height // p, width // p
        patches = input[:, :, : rows * p, : columns * p].reshape(B, C, rows, p, columns, p)
        patches = patches.permute(0, 2, 4, 1, 3, 5).reshape(B, rows * columns, C * p * p)
        x = linear(patches, self.weight.flatten(1), self.bias)  # (B, P, D)
        return x.transpose(1, 2).view(B, self.out_channels, rows, columns)

    def _is_linear(self, input: Tensor) -> bool:
        """Whether the linear layer is exact and faster here."""
        return (
            input.device.type in DEVICES
            and input.dim() == 4
            and self.in_channels == COLORS  # in a ResNet or ConvNeXt, other convolutions have such kernels too
            and self.kernel_size == self.stride
            and self.kernel_size[0] == self.kernel_size[1]
            and self.padding == (0, 0)
            and self.dilation == (1, 1)
            and self.groups == 1
            and not has_hooks(self)
            and not has_global_hooks()
            and (torch.compiler.is_compiling() or not is_transformed())
            and not torch.compiler.is_exporting()
        )
