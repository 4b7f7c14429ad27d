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
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from miniclip.losses import on_gpu
from miniclip.losses.blocks import BLOCK_SIDES, Block, input_gradients, logit_blocks
from miniclip.losses.inputs import LossInputs
from miniclip.losses.reference import check_shapes

LOG_2 = math.log(2)


def loss(inputs: LossInputs) -> Tensor:
    """Return the value of the reference loss, with the same gradient; it can be differentiated once.

    Raises:
        ValueError: the shapes do not match, or chunk_size is below 1.
    """
    images, texts, ids = inputs.images, inputs.texts, inputs.pair_ids
    check_shapes(images, texts, ids)
    size = block_size(inputs)
    on_a_gpu = images.device.type == "cuda" and images.dtype != torch.float64
    contrastive, sigmoid = (on_gpu.Contrastive, on_gpu.Sigmoid) if on_a_gpu else (_Contrastive, _Sigmoid)
    apply = (contrastive if inputs.logit_bias is None else sigmoid).apply
    if torch.compiler.is_compiling():
        apply = torch.compiler.disable(apply)  # type: ignore[no-untyped-call]  # or it unrolls the loop over blocks
    with torch.autocast(images.device.type, enabled=False):
        return apply(images, texts, ids, size, *inputs.scalars)  # type: ignore[no-any-return]


def block_size(inputs: LossInputs) -> int:
    """Return the side of a block.

    Raises:
        ValueError: chunk_size is below 1.
    """
    if inputs.chunk_size is not None and inputs.chunk_size < 1:
        raise ValueError(f"chunk_size is {inputs.chunk_size}; expected at least 1, or None")
    return inputs.chunk_size or BLOCK_SIDES.get(inputs.images.device.type, BLOCK_SIDES["cpu"])


class _Contrastive(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, images: Tensor, texts: Tensor, ids: Tensor | None, size: int, scale: Tensor) -> Tensor:
        positives = scale.new_empty(len(images))

        def keep_positives(block: Block) -> None:
            if block.rows == block.columns:
                positives[block.rows] = block.positives

        offset, sums = sums_of_powers(images, texts, ids, size, scale / LOG_2, keep_positives)
        ctx.save_for_backward(images, texts, ids, scale, offset, sums)
        ctx.block_size = size
        return (sums.log2() + (offset - positives.repeat(2))).sum() * LOG_2 / (2 * len(images))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        *_, scale, offset, sums = ctx.saved_tensors
        n, inverse_sums = len(sums) // 2, 1 / sums

        def logit_gradient(block: Block) -> Tensor:
            g = both_softmaxes(block, n, offset, inverse_sums)
            block.positives.sub_(2)
            return g

        return input_gradients(ctx, scale / LOG_2, logit_gradient, gradient / len(sums))


class SumsOfPowers(NamedTuple):
    """Sums of 2^(s - offset) over the rows and over the columns of the logits s, in bits."""

    offset: Tensor  # () for the whole matrix, or (N + M,) for each row, then each column
    sums: Tensor  # (N + M,), of the rows, then of the columns


def sums_of_powers(
    images: Tensor,
    texts: Tensor,
    ids: Tensor | None,
    size: int,
    scale: Tensor,
    visit: Callable[[Block], None],
) -> SumsOfPowers:
    """Sum over the blocks, in the faster way if the sums stay in the range of the type.

    Args:
        images: (N, E).
        texts: (M, E), M = N if there are ids.
        ids: (N,), or None.
        size: side of a block.
        scale: factor on the cosine similarities, in bits.
        visit: called with each block before its powers are taken; with all blocks again, from the first on, if the sums
            left the range. It must not change the logits.
    """
    matrix = images, texts, ids, size, scale, visit
    return sums_with_fixed_offset(*matrix) or sums_with_running_max(*matrix)


def sums_with_fixed_offset(
    images: Tensor, texts: Tensor, ids: Tensor | None, size: int, scale: Tensor, visit: Callable[[Block], None]
) -> SumsOfPowers | None:
    """Sum with one offset that is known in advance; the arguments are those of `sums_of_powers`.

    Returns:
        None if a sum leaves the range of the type, and on a GPU, which would have to be synchronised for this check.
    """
    if images.device.type != "cpu":
        return None
    range_bits = -math.log2(torch.finfo(scale.dtype).tiny) - 40  # 40 are spare: for precision, and for long sums
    offset = (scale.abs() - range_bits).clamp(min=0)
    sums = scale.new_zeros(len(images) + len(texts))
    for block in logit_blocks(images, texts, ids, size, scale):
        visit(block)
        if offset:
            block.logits.sub_(offset)
        powers = block.logits.exp2_()
        sums[block.rows].add_(powers.sum(dim=1))
        sums[shifted(block.columns, len(images))].add_(powers.sum(dim=0))
    return SumsOfPowers(offset, sums) if sums.amin() > 2.0**-range_bits else None


def sums_with_running_max(
    images: Tensor, texts: Tensor, ids: Tensor | None, size: int, scale: Tensor, visit: Callable[[Block], None]
) -> SumsOfPowers:
    """Sum by online softmax: the offset is the maximum of each row and of each column, so that any scale works."""
    sums = scale.new_zeros(len(images) + len(texts))
    maxima = torch.full_like(sums, torch.finfo(sums.dtype).min)  # not -inf: a whole block may be masked
    for block in logit_blocks(images, texts, ids, size, scale):
        visit(block)
        for part, dim in (block.rows, 1), (shifted(block.columns, len(images)), 0):
            new_maxima = torch.maximum(maxima[part], block.logits.amax(dim))
            sums[part] *= (maxima[part] - new_maxima).exp2_()
            sums[part] += (block.logits - new_maxima.unsqueeze(dim)).exp2_().sum(dim)
            maxima[part] = new_maxima
    return SumsOfPowers(maxima, sums)


def both_softmaxes(block: Block, n: int, offset: Tensor, inverse_sums: Tensor) -> Tensor:
    """Return the softmax over the rows plus the softmax over the columns of a block, which is changed in place.

    Args:
        block: of the logits in bits.
        n: number of images, N.
        offset: as in `SumsOfPowers`.
        inverse_sums: (N + M,), the inverses of the sums, or multiples of them for weighted rows and columns.
    """
    columns = shifted(block.columns, n)
    if offset.dim() == 0:
        if offset:  # on a CPU, where this check does not synchronise
            block.logits.sub_(offset)
        return block.logits.exp2_().mul_(inverse_sums[block.rows, None] + inverse_sums[columns])
    column_softmax = (block.logits - offset[columns]).exp2_().mul_(inverse_sums[columns])
    return block.logits.sub_(offset[block.rows, None]).exp2_().mul_(inverse_sums[block.rows, None]).add_(column_softmax)


def shifted(part: slice, by: int) -> slice:
    """Return a slice of later elements: a block's columns in a vector (N + M,) are shifted by N."""
    return slice(part.start + by, part.stop + by)


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
