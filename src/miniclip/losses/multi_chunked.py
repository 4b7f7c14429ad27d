"""The losses of `multi_positive.py` in blocks: memory O((N + M) E + C^2), as in `chunked.py`.

Both losses are a sum that does not depend on the labels, and a sum of logits with weights, t_ij of `multi_positive.py`.
The log-sum-exp of rows and columns, and their gradient, are those of `chunked.py`. The second sum is taken row by row
and column by column from the same blocks, so that a loss near 0 stays exact. Let u_i be 1 / (number of images that have
a positive), and 0 for an image without one. Let v_j be the same for the texts. The gradient of the contrastive loss is

    2 dloss/ds_ij = u_i exp(s_ij) / R_i + v_j exp(s_ij) / C_j - u_i t_ij - v_j t'_ij,

where t' are the targets of the texts.

Letters: N images, M texts, E embedding, C side of a block, e label smoothing.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from miniclip.losses.blocks import Block, input_gradients, logit_blocks
from miniclip.losses.chunked import (
    LOG_2,
    block_size,
    both_softmaxes,
    shifted,
    sums_with_fixed_offset,
    sums_with_running_max,
)
from miniclip.losses.inputs import LossInputs
from miniclip.losses.targets import Labels, TargetSums, sigmoid_gradient, sigmoid_sum


def loss(inputs: LossInputs) -> Tensor:
    """Return the value of the plain loss, with the same gradient; it can be differentiated once."""
    images, texts = inputs.images, inputs.texts
    size = block_size(inputs)
    apply = (_Contrastive if inputs.logit_bias is None else _Sigmoid).apply
    if torch.compiler.is_compiling():
        apply = torch.compiler.disable(apply)  # type: ignore[no-untyped-call]  # or it unrolls the loop over blocks
    with torch.autocast(images.device.type, enabled=False):
        return apply(  # type: ignore[no-any-return]
            images, texts, inputs.pair_ids, size, *inputs.scalars, Labels(*inputs.labels()), inputs.label_smoothing
        )


class _Contrastive(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        images: Tensor,
        texts: Tensor,
        ids: Tensor | None,
        size: int,
        scale: Tensor,
        labels: Labels,
        smoothing: float,
    ) -> Tensor:
        n, m = len(images), len(texts)
        for sums_of_powers in (sums_with_fixed_offset, sums_with_running_max):
            targets = TargetSums(scale.new_zeros(4, n + m), smoothing, has_left_out=ids is not None)

            def add(block: Block, targets: TargetSums = targets) -> None:
                targets.add(block.logits, labels.mask(block.rows, block.columns), block.rows, shifted(block.columns, n))

            result = sums_of_powers(images, texts, ids, size, scale / LOG_2, add)
            if result is not None:
                break
        assert result is not None
        offset, sums = result
        weights = targets.weights(n)  # (N + M,), u and v
        ctx.save_for_backward(images, texts, ids, scale, offset, weights / sums, *targets.gradients(weights))
        ctx.block_size, ctx.labels, ctx.smoothing = size, labels, smoothing
        return (weights * (sums.log2() + (offset - targets.means()))).sum() * LOG_2 / 2

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        images, _, ids, scale, offset, weighted_inverse_sums, of_positives, of_all = ctx.saved_tensors
        n = len(images)

        def logit_gradient(block: Block) -> Tensor:
            rows, columns = block.rows, shifted(block.columns, n)
            left_out = block.logits.isneginf() if ctx.smoothing and ids is not None else None
            g = both_softmaxes(block, n, offset, weighted_inverse_sums)
            mask = ctx.labels.mask(block.rows, block.columns)
            if mask is not None:
                g.sub_((of_positives[rows, None] + of_positives[columns]).mul_(mask))
            if ctx.smoothing:
                from_all = of_all[rows, None] + of_all[columns]
                g.sub_(from_all if left_out is None else from_all.masked_fill_(left_out, 0.0))
            return g

        return *input_gradients(ctx, scale / LOG_2, logit_gradient, gradient / 2), None, None


class _Sigmoid(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        images: Tensor,
        texts: Tensor,
        ids: Tensor | None,
        size: int,
        scale: Tensor,
        bias: Tensor,
        labels: Labels,
        smoothing: float,
    ) -> Tensor:
        total, positives = torch.zeros_like(scale), torch.zeros_like(scale)
        for block in logit_blocks(images, texts, ids, size, scale):
            mask = labels.mask(block.rows, block.columns)
            positives += 0 if mask is None else mask.sum()
            total += sigmoid_sum(block.logits.add_(bias), mask, smoothing)
        ctx.save_for_backward(images, texts, ids, scale, bias, positives)
        ctx.block_size, ctx.labels, ctx.smoothing = size, labels, smoothing
        return total / positives

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        *_, scale, bias, positives = ctx.saved_tensors
        factor, grad_bias = gradient / positives, torch.zeros_like(bias)

        def logit_gradient(block: Block) -> Tensor:
            g = sigmoid_gradient(block.logits.add_(bias), ctx.labels.mask(block.rows, block.columns), ctx.smoothing)
            grad_bias.add_(g.sum())
            return g

        return *input_gradients(ctx, scale, logit_gradient, factor), grad_bias * factor, None, None
