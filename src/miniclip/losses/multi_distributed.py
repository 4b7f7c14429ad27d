"""The losses of `multi_positive.py` for a batch that is split over ranks, with the broadcasts of `distributed.py`.

Rank p holds n_p images and m_p texts, any numbers. The sums over a text's positives are reduced over the ranks, as its
log-sum-exp is. The value is the same on every rank, and the gradient is R times the rank's share.

Letters: R ranks, N images and M texts of the batch, n and m of this rank, E embedding, C columns of a block.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from miniclip.losses.distributed import (
    Block,
    GlobalBatch,
    LogitRows,
    all_blocks,
    column_count,
    exchange_sizes,
    input_gradients,
    logsumexp_over_ranks,
)
from miniclip.losses.inputs import LossInputs
from miniclip.losses.reference import l2_normalize
from miniclip.losses.targets import Labels, TargetSums, sigmoid_gradient, sigmoid_sum
from miniclip.runtime.distributed import all_gather, all_reduce, rank, world_size


def loss(inputs: LossInputs) -> Tensor:
    """Return the plain loss of the rows of all ranks, with R times this rank's share of the gradient.

    Raises:
        ValueError: as in `distributed.loss`.
    """
    image_sizes, text_sizes = exchange_sizes(inputs)
    with torch.autocast(inputs.images.device.type, enabled=False):
        x, y = l2_normalize(inputs.images), l2_normalize(inputs.texts)
    ids = None if inputs.pair_ids is None else all_gather(inputs.pair_ids)
    batch = GlobalBatch(text_sizes, ids, inputs.chunk_size or column_count(x))
    image_labels, text_labels = inputs.labels()
    first = sum(image_sizes[: rank()]) if inputs.text_ids is None else 0  # pairs are labelled by their row
    labels = Labels(image_labels + first, all_gather(text_labels + first))
    function = _Contrastive if inputs.logit_bias is None else _Sigmoid
    return function.apply(x, y, batch, *inputs.scalars, labels, inputs.label_smoothing)  # type: ignore[no-any-return]


class _Contrastive(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, y: Tensor, batch: GlobalBatch, scale: Tensor, labels: Labels, smoothing: float
    ) -> Tensor:
        n, m = len(x), sum(batch.sizes)
        log_sums = torch.cat([x.new_full((n,), -torch.inf), x.new_empty(m)])
        targets = TargetSums(x.new_zeros(4, n + m), smoothing, has_left_out=batch.ids is not None)
        rows = slice(n)
        with torch.autocast(x.device.type, enabled=False):
            for block in all_blocks(LogitRows(x, y, batch, scale)):
                columns = slice(n + block.columns.start, n + block.columns.stop)
                targets.add(block.logits, labels.mask(rows, block.columns), rows, columns)
                log_sums[rows] = torch.logaddexp(log_sums[rows], block.logits.logsumexp(dim=1))
                log_sums[columns] = block.logits.logsumexp(dim=0)  # over this rank's rows
            log_sums[n:] = logsumexp_over_ranks(log_sums[n:])
            targets.sums[:, n:] = all_reduce(targets.sums[:, n:].contiguous())
        weights = targets.weights(n, lambda rows: all_reduce(rows.sum()))
        ctx.save_for_backward(x, y, scale, log_sums, weights, *targets.gradients(weights))
        ctx.batch, ctx.labels, ctx.smoothing = batch, labels, smoothing
        losses = weights * (log_sums - targets.means())
        value: Tensor = (all_reduce(losses[:n].sum()) + losses[n:].sum()) / 2
        return value

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, y, scale, log_sums, weights, of_positives, of_all = ctx.saved_tensors
        n, rows = len(x), slice(len(x))

        def logit_gradient(block: Block) -> Tensor:
            columns = slice(n + block.columns.start, n + block.columns.stop)
            left_out = block.logits.isneginf() if ctx.smoothing else None
            g: Tensor = (block.logits - log_sums[columns]).exp_().mul_(weights[columns])
            g.add_(block.logits.sub_(log_sums[rows, None]).exp_().mul_(weights[rows, None]))
            mask = ctx.labels.mask(rows, block.columns)
            if mask is not None:
                g.sub_((of_positives[rows, None] + of_positives[columns]).mul_(mask))
            if left_out is not None:
                g.sub_((of_all[rows, None] + of_all[columns]).masked_fill_(left_out, 0.0))
            return g

        return *input_gradients(LogitRows(x, y, ctx.batch, scale), logit_gradient, gradient / 2), None, None


class _Sigmoid(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        y: Tensor,
        batch: GlobalBatch,
        scale: Tensor,
        bias: Tensor,
        labels: Labels,
        smoothing: float,
    ) -> Tensor:
        total, positives = torch.zeros_like(scale), torch.zeros_like(scale)
        with torch.autocast(x.device.type, enabled=False):
            for block in all_blocks(LogitRows(x, y, batch, scale, bias)):
                mask = labels.mask(slice(len(x)), block.columns)
                positives += 0 if mask is None else mask.sum()
                total += sigmoid_sum(block.logits, mask, smoothing)
        positives = all_reduce(positives)
        ctx.save_for_backward(x, y, scale, bias, positives)
        ctx.batch, ctx.labels, ctx.smoothing = batch, labels, smoothing
        return all_reduce(total) / positives

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, y, scale, bias, positives = ctx.saved_tensors
        factor, grad_bias = gradient / positives, torch.zeros_like(bias)

        def logit_gradient(block: Block) -> Tensor:
            g = sigmoid_gradient(block.logits, ctx.labels.mask(slice(len(x)), block.columns), ctx.smoothing)
            grad_bias.add_(g.sum())
            return g

        gradients = input_gradients(LogitRows(x, y, ctx.batch, scale, bias), logit_gradient, factor)
        return *gradients, grad_bias * factor * world_size(), None, None
