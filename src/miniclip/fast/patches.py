"""Patch embeddings by a reshape and a linear layer, which is what a convolution with its kernel as stride computes.

On an H200 in bfloat16, cuDNN computed the first convolution of a ViT-B/16 in a kernel for float32, in 4 of a step's
152 ms. On a CPU oneDNN computes the convolution's gradient slowly, in bfloat16 most of all.
Letters: B batch, S image side, p patch side, P patches, D width.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

from miniclip.fast.matmul import linear
from miniclip.fast.private import has_global_hooks, has_hooks, is_transformed

COLORS = 3
DEVICES = ("cpu", "cuda")  # types of device on which the linear layer is faster


def cut(pixels: Tensor, p: int) -> Tensor:
    """Pixels of each patch: (B, 3, S, S) to (B, P, 3 p^2), without the rest of a side that p does not divide."""
    B, C, height, width = pixels.shape
    rows, columns = height // p, width // p
    patches = pixels[:, :, : rows * p, : columns * p].reshape(B, C, rows, p, columns, p)
    return patches.permute(0, 2, 4, 1, 3, 5).reshape(B, rows * columns, C * p * p)


def _cut_again_in_backward(pixels: Tensor, patches: Tensor, p: int) -> AbstractContextManager[object]:
    """Context in which autograd keeps the pixels in place of their patches, which would be a copy in memory."""
    if not torch.is_grad_enabled() or torch.compiler.is_compiling() or pixels.is_inference() or not len(pixels):
        return nullcontext()
    address, version = patches.data_ptr(), pixels._version

    def pack(saved: Tensor) -> Tensor | torch.Size:
        return saved.shape if saved.data_ptr() == address else saved

    def unpack(saved: Tensor | torch.Size) -> Tensor:
        if isinstance(saved, Tensor):
            return saved
        if pixels._version != version:
            raise RuntimeError("the pixels were modified in place before backward: pass a copy to the model")
        return cut(pixels.detach(), p).view(saved)

    return torch.autograd.graph.saved_tensors_hooks(pack, unpack)


class FastPatches(nn.Conv2d):
    """Convolution that is a linear layer of patches, if its kernel is its stride."""

    def forward(self, input: Tensor) -> Tensor:
        """(B, 3, S, S) to (B, D, S / p, S / p)."""
        if not self._is_linear(input):
            return super().forward(input)
        device, p = input.device.type, self.kernel_size[0]
        autocast = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
        if autocast and input.dtype == torch.float32:
            input = input.to(torch.get_autocast_dtype(device))  # before the cut, which then copies half the bytes
        patches = cut(input, p)
        with _cut_again_in_backward(input, patches, p):
            x = linear(patches, self.weight.flatten(1), self.bias)  # (B, P, D)
        return x.transpose(1, 2).view(len(input), self.out_channels, input.shape[2] // p, input.shape[3] // p)

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
