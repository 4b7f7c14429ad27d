"""The losses with memory O(N E + C^2): the N x N similarity matrix is computed in blocks and never stored.

The contrastive loss needs only the diagonal of the matrix s, and the sums of exponentials of each row and column,

    R_i = sum_j exp s_ij,    C_j = sum_i exp s_ij,    loss = 1/(2N) sum_i [ log R_i + log C_i - 2 s_ii ],

which are summed over the blocks. The gradient recomputes the blocks, as FlashAttention does (Dao et al. 2022,
https://arxiv.org/abs/2205.14135): four matrix products instead of three, and memory that does not grow with N^2. It is

    dloss/ds_ij = 1/(2N) [ exp(s_ij) (1/R_i + 1/C_j) - 2 (i = j) ].

An offset m is subtracted from s, since exponentials overflow and underflow. Unit vectors give |s| <= scale. So one
offset for the whole matrix suffices if all sums stay in the range of the type: one exponential an element. A sum leaves
it for a row that is far from every column at a scale of 100. Then the online softmax keeps a running maximum of each
row and column, and rescales the sums when it rises (Milakov and Gimelshein 2018, https://arxiv.org/abs/1805.02867): two
exponentials an element. Powers of 2 are cheaper than powers of e, so s is computed with scale / log 2, in bits.

Letters: N pairs, E embedding, C side of a block.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from miniclip.losses.blocks import BLOCK_SIDES, Block, input_gradients, logit_blocks
from miniclip.losses.inputs import LossInputs
from miniclip.losses.reference import check_shapes

LOG_2 = math.log(2)


def loss(inputs: LossInputs) -> Tensor:
    """Return the value of the reference loss, with the same gradient; it can be differentiated once.

    Raises:
        ValueError: the shapes do not match, or chunk_size is below 1.
    """
    images, texts, ids, chunk_size = inputs.images, inputs.texts, inputs.ids, inputs.chunk_size
    check_shapes(images, texts, ids)
    if chunk_size is not None and chunk_size < 1:
        raise ValueError(f"chunk_size is {chunk_size}; expected at least 1, or None")
    size = chunk_size or BLOCK_SIDES.get(images.device.type, BLOCK_SIDES["cpu"])
    apply = (_Contrastive if inputs.logit_bias is None else _Sigmoid).apply
    if torch.compiler.is_compiling():
        apply = torch.compiler.disable(apply)  # type: ignore[no-untyped-call]  # or it unrolls the loop over blocks
    with torch.autocast(images.device.type, enabled=False):
        return apply(images, texts, ids, size, *inputs.scalars)  # type: ignore[no-any-return]


class _Contrastive(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, images: Tensor, texts: Tensor, ids: Tensor | None, size: int, scale: Tensor) -> Tensor:
        matrix = images, texts, ids, size, scale / LOG_2
        offset, sums, positives = sums_with_fixed_offset(*matrix) or sums_with_running_max(*matrix)
        ctx.save_for_backward(images, texts, ids, scale, offset, sums)
        ctx.block_size = size
        return (sums.log2() + (offset - positives)).sum() * LOG_2 / (2 * len(images))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        *_, scale, offset, sums = ctx.saved_tensors
        logit_gradient = partial(_both_softmaxes, offset=offset, inverse_sums=1 / sums)
        return input_gradients(ctx, scale / LOG_2, logit_gradient, gradient / (2 * sums.shape[1]))


class SumsOfPowers(NamedTuple):
    """Sums of 2^(s - offset) over the rows and over the columns of the logits s, in bits."""

    offset: Tensor  # () for the whole matrix, or (2, N) for each row and each column
    sums: Tensor  # (2, N), of the rows and of the columns
    positives: Tensor  # (N,), the diagonal of s


def sums_with_fixed_offset(
    images: Tensor, texts: Tensor, ids: Tensor | None, size: int, scale: Tensor
) -> SumsOfPowers | None:
    """Sum with one offset that is known in advance.

    Args:
        images: (N, E).
        texts: (N, E).
        ids: (N,), or None.
        size: side of a block.
        scale: factor on the cosine similarities, in bits.

    Returns:
        None if a sum leaves the range of the type, and on a GPU, which would have to be synchronised for this check.
    """
    if images.device.type != "cpu":
        return None
    range_bits = -math.log2(torch.finfo(scale.dtype).tiny) - 40  # 40 are spare: for precision, and for long sums
    offset = (scale.abs() - range_bits).clamp(min=0)
    sums, positives = scale.new_zeros(2, len(images)), scale.new_empty(len(images))
    for block in logit_blocks(images, texts, ids, size, scale):
        if block.rows == block.columns:
            positives[block.rows] = block.positives
        if offset:
            block.logits.sub_(offset)
        powers = block.logits.exp2_()
        sums[0, block.rows].add_(powers.sum(dim=1))
        sums[1, block.columns].add_(powers.sum(dim=0))
    return SumsOfPowers(offset, sums, positives) if sums.amin() > 2.0**-range_bits else None


def sums_with_running_max(images: Tensor, texts: Tensor, ids: Tensor | None, size: int, scale: Tensor) -> SumsOfPowers:
    """Sum by online softmax: the offset is the maximum of each row and of each column, so that any scale works.

    Args:
        images: as in `sums_with_fixed_offset`, and so are the others.
        texts: as in `sums_with_fixed_offset`.
        ids: as in `sums_with_fixed_offset`.
        size: as in `sums_with_fixed_offset`.
        scale: as in `sums_with_fixed_offset`.
    """
    sums, positives = scale.new_zeros(2, len(images)), scale.new_empty(len(images))
    maxima = torch.full_like(sums, torch.finfo(sums.dtype).min)  # not -inf: a whole block may be masked
    for block in logit_blocks(images, texts, ids, size, scale):
        if block.rows == block.columns:
            positives[block.rows] = block.positives
        for index, dim in ((0, block.rows), 1), ((1, block.columns), 0):
            new_maxima = torch.maximum(maxima[index], block.logits.amax(dim))
            sums[index] *= (maxima[index] - new_maxima).exp2_()
            sums[index] += (block.logits - new_maxima.unsqueeze(dim)).exp2_().sum(dim)
            maxima[index] = new_maxima
    return SumsOfPowers(maxima, sums, positives)


def _both_softmaxes(block: Block, offset: Tensor, inverse_sums: Tensor) -> Tensor:
    """2N dloss/ds of a block: softmax over its row plus softmax over its column, minus 2 on the diagonal."""
    row_inverse, column_inverse = inverse_sums[0, block.rows, None], inverse_sums[1, block.columns]
    if offset.dim() == 0:
        if offset:  # on a CPU, where this check does not synchronise
            block.logits.sub_(offset)
        g = block.logits.exp2_().mul_(row_inverse + column_inverse)
    else:
        column_softmax = (block.logits - offset[1, block.columns]).exp2_().mul_(column_inverse)
        g = block.logits.sub_(offset[0, block.rows, None]).exp2_().mul_(row_inverse).add_(column_softmax)
    block.positives.sub_(2)
    return g


class _Sigmoid(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, images: Tensor, texts: Tensor, ids: Tensor | None, size: int, scale: Tensor, bias: Tensor
    ) -> Tensor:
        ctx.save_for_backward(images, texts, ids, scale, bias)
        ctx.block_size = size
        total = torch.zeros_like(scale)
        for block in logit_blocks(images, texts, ids, size, scale):
            total += F.softplus(_signed_logits(block, bias), threshold=50).sum()  # the default 20 is coarse in float64
        return total / len(images)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        images, *_, scale, bias = ctx.saved_tensors
        factor, grad_bias = gradient / len(images), torch.zeros_like(bias)

        def logit_gradient(block: Block) -> Tensor:
            g = _signed_logits(block, bias).sigmoid_()
            block.positives.neg_()
            grad_bias.add_(g.sum())
            return g

        return *input_gradients(ctx, scale, logit_gradient, factor), grad_bias * factor


def _signed_logits(block: Block, bias: Tensor) -> Tensor:
    """Logits of a block with the sign of a mistake, in place: negated for positives, as they are for negatives."""
    logits = block.logits.add_(bias)
    block.positives.neg_()
    return logits
