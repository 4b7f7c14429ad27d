"""The losses of a batch that is split over ranks: value and gradient of one process, in a part of its memory.

Rank p holds n_p of the N pairs. Each rank computes the rows of its images against all texts,

    s_ij = scale * x_i . y_j,   i of this rank, j of any rank.

The ranks broadcast their texts in turn, and each rank holds C columns of the logits at a time. So it needs memory
O(n (E + C)), and a few vectors of length N. Each column's log-sum-exp is reduced over the ranks, and so are the
gradients of the texts:

    r_i = log sum_j exp s_ij               rows of this rank: complete
    c_j = log sum_p exp c_j^p              c_j^p over the rows of rank p
    dloss/dx_i = scale * sum_j G_ij y_j    complete
    dloss/dy_j = scale * sum_p sum_{i of p} G_ij x_i,   G = dloss/ds

Every rank returns the loss of the whole batch. Backward returns R times the rank's share of the gradient: that of its
own rows, and its rows' part of the gradients of scale and bias. DistributedDataParallel, FSDP and `average_gradients`
then take the mean over the ranks, which is the gradient of the loss.

Letters: R ranks, N pairs of the batch, n of this rank, E embedding, C columns of a block.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from miniclip.fast.matmul import addmm_, matmul
from miniclip.losses.inputs import EXPECTED_SHAPES, LossInputs, dtype_name, precision
from miniclip.losses.reference import l2_normalize
from miniclip.runtime.distributed import all_gather, all_gather_ints, all_reduce, rank, world_size

BLOCK_BYTES = {"cpu": 4 << 20, "cuda": 64 << 20}  # bytes of logits: they fit into a CPU's cache, or keep a GPU busy
MIN_COLUMNS = 64  # narrower products are inefficient


def loss(inputs: LossInputs) -> Tensor:
    """Return the reference loss of the rows of all ranks; every rank must call it.

    The gradient is this rank's share times R, to be averaged over the ranks. It can be differentiated once.

    Raises:
        ValueError: the shapes do not match, here or between the ranks, or chunk_size is below 1.
    """
    sizes, _ = exchange_sizes(inputs)
    with torch.autocast(inputs.images.device.type, enabled=False):
        x, y = l2_normalize(inputs.images), l2_normalize(inputs.texts)
    ids = None if inputs.pair_ids is None else all_gather(inputs.pair_ids)
    batch = GlobalBatch(sizes, ids, inputs.chunk_size or column_count(x))
    function = _Contrastive if inputs.logit_bias is None else _Sigmoid
    return function.apply(x, y, batch, *inputs.scalars)  # type: ignore[no-any-return]


def exchange_sizes(inputs: LossInputs) -> tuple[list[int], list[int]]:
    """Return the number of images and of texts of each rank; a mistake of one rank raises on every rank.

    Raises:
        ValueError: on any rank the shapes do not match, or chunk_size is below 1; or the ranks' widths, precisions, ids
            or label smoothing differ.
    """
    images, texts, ids, chunk_size = inputs.images, inputs.texts, inputs.ids, inputs.chunk_size
    matching = inputs.has_matching_shapes()
    valid = matching and (chunk_size is None or chunk_size >= 1)
    shape = (len(images), len(texts), images.shape[1]) if matching else (0, 0, 0)
    ids_of_image = -1 if ids is None else ids.shape[1] if ids.dim() == 2 else 0
    options = inputs.text_ids is not None, round(1e9 * inputs.label_smoothing)
    ranks = all_gather_ints([valid, *shape, precision(images).itemsize, ids_of_image, *options])
    all_valid, image_sizes, text_sizes, *kinds = map(list, zip(*ranks, strict=True))
    if not (all(all_valid) and any(image_sizes) and any(text_sizes)) or any(len(set(values)) > 1 for values in kinds):
        raise ValueError(
            f"rank {rank()}: {inputs.shapes()}, {dtype_name(images)}, label_smoothing {inputs.label_smoothing}, "
            f"chunk_size {chunk_size}; {EXPECTED_SHAPES}. Every rank needs the same E and L, float64 on all ranks or "
            "on none, ids too, the same label_smoothing, chunk_size at least 1 or None, and some rank needs a row"
        )
    return image_sizes, text_sizes


def column_count(x: Tensor) -> int:
    """C for embeddings (n, E) if the caller does not choose it."""
    column_bytes = max(1, len(x)) * x.element_size()
    return max(MIN_COLUMNS, BLOCK_BYTES.get(x.device.type, BLOCK_BYTES["cpu"]) // column_bytes)


class GlobalBatch(NamedTuple):
    """Sizes and ids of all ranks' texts."""

    sizes: list[int]  # number of texts of every rank
    ids: Tensor | None  # (N,) of pairs
    columns: int  # C

    def rows(self, p: int) -> slice:
        """Rows of rank p in the batch."""
        start = sum(self.sizes[:p])
        return slice(start, start + self.sizes[p])


class LogitRows(NamedTuple):
    """Rows of the logit matrix: this rank's images against all texts."""

    x: Tensor  # (n, E), unit vectors of this rank's images
    y: Tensor  # (n, E), those of its texts
    batch: GlobalBatch
    scale: Tensor
    bias: Tensor | float = 0.0


class Block(NamedTuple):
    """Logits of this rank's images with some texts of one rank."""

    texts: Tensor  # (C, E)
    local: slice  # columns among the texts of their rank
    columns: slice  # columns in the batch
    logits: Tensor  # (n, C), -inf for different rows that share an id; changed in place by the losses
    positives: Tensor  # view of the logits of matching pairs, `local` rows; empty for texts of another rank


def _broadcast_texts(y: Tensor, sizes: list[int]) -> Iterator[tuple[int, Tensor]]:
    """Yield each rank p and its texts (n_p, E), in the same order on all ranks; the next broadcast overlaps."""

    def start_broadcast(p: int) -> tuple[Tensor, Any]:
        texts = y.contiguous() if p == rank() else y.new_empty(sizes[p], y.shape[1])
        return texts, dist.broadcast(texts, src=p, async_op=True)

    sources = [p for p, n in enumerate(sizes) if n]
    pending = start_broadcast(sources[0])
    for p, following in zip(sources, [*sources[1:], None], strict=True):
        texts, work = pending
        work.wait()
        if following is not None:
            pending = start_broadcast(following)
        yield p, texts


def _logit_blocks(matrix: LogitRows, p: int, texts: Tensor) -> Iterator[Block]:
    """Yield the logits of this rank's images with rank p's texts (n_p, E), C columns at a time."""
    x, _, batch, scale, bias = matrix
    rows, first = batch.rows(rank()), batch.rows(p).start
    for start in range(0, len(texts), batch.columns):
        local = slice(start, min(start + batch.columns, len(texts)))
        columns = slice(first + local.start, first + local.stop)
        logits = matmul(x, texts[local].T).mul_(scale).add_(bias)
        if batch.ids is not None:
            duplicates = batch.ids[rows, None] == batch.ids[columns]
            if p == rank():
                duplicates.diagonal(-start).fill_(False)  # a row is not a duplicate of itself
            logits.masked_fill_(duplicates, -torch.inf)
        positives = logits.diagonal(-start) if p == rank() else logits.new_empty(0)
        yield Block(texts[local], local, columns, logits, positives)


def all_blocks(matrix: LogitRows) -> Iterator[Block]:
    """Yield the logits of this rank's images with all texts; every rank must exhaust it."""
    for p, texts in _broadcast_texts(matrix.y, matrix.batch.sizes):
        yield from _logit_blocks(matrix, p, texts)


class _Contrastive(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, batch: GlobalBatch, scale: Tensor) -> Tensor:
        row_lse, column_lse = x.new_full((len(x),), -torch.inf), x.new_empty(sum(batch.sizes))
        positives = x.new_empty(len(x))
        with torch.autocast(x.device.type, enabled=False):  # bfloat16 similarities would lose small margins
            for block in all_blocks(LogitRows(x, y, batch, scale)):
                row_lse = torch.logaddexp(row_lse, block.logits.logsumexp(dim=1))
                column_lse[block.columns] = block.logits.logsumexp(dim=0)  # over this rank's rows
                if block.positives.numel():
                    positives[block.local] = block.positives
            column_lse = logsumexp_over_ranks(column_lse)
        ctx.save_for_backward(x, y, scale, row_lse, column_lse)
        ctx.batch = batch
        return all_reduce((row_lse + column_lse[batch.rows(rank())] - 2 * positives).sum()) / (2 * sum(batch.sizes))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, y, scale, row_lse, column_lse = ctx.saved_tensors

        def logit_gradient(block: Block) -> Tensor:
            column_softmax = (block.logits - column_lse[block.columns]).exp_()
            g: Tensor = block.logits.sub_(row_lse[:, None]).exp_().add_(column_softmax)
            block.positives.sub_(2)
            return g

        factor = gradient / (2 * sum(ctx.batch.sizes))
        return input_gradients(LogitRows(x, y, ctx.batch, scale), logit_gradient, factor)


class _Sigmoid(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, batch: GlobalBatch, scale: Tensor, bias: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            value = torch.zeros_like(scale)
            for block in all_blocks(LogitRows(x, y, batch, scale, bias)):
                block.positives.neg_()  # each logit has the sign of a mistake, so that a loss near 0 stays exact
                value += F.softplus(block.logits, threshold=50).sum()  # the default 20 is coarse in float64
        ctx.save_for_backward(x, y, scale, bias)
        ctx.batch = batch
        return all_reduce(value) / sum(batch.sizes)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, y, scale, bias = ctx.saved_tensors
        grad_bias = torch.zeros_like(bias)

        def logit_gradient(block: Block) -> Tensor:
            block.positives.neg_()
            g = block.logits.sigmoid_()
            block.positives.neg_()
            grad_bias.add_(g.sum())
            return g

        factor = gradient / sum(ctx.batch.sizes)
        gradients = input_gradients(LogitRows(x, y, ctx.batch, scale, bias), logit_gradient, factor)
        return *gradients, grad_bias * factor * world_size()


def logsumexp_over_ranks(local: Tensor) -> Tensor:
    """Log-sum-exp over the ranks of each rank's vector (N,), which is -inf where a rank has no term."""
    maxima = local.clone()
    dist.all_reduce(maxima, op=dist.ReduceOp.MAX)  # finite: a text's own image is on some rank
    return all_reduce((local - maxima).exp_()).log_() + maxima


def input_gradients(
    matrix: LogitRows, logit_gradient: Callable[[Block], Tensor], factor: Tensor
) -> tuple[Tensor | None, ...]:
    """Return R times this rank's share of the gradients of x, y, batch and scale.

    Args:
        matrix: this rank's rows of the logits.
        logit_gradient: G / factor of a block (n, C).
        factor: ().
    """
    x, y, batch, scale, _ = matrix
    grad_x, grad_y, x_t = torch.zeros_like(x), torch.zeros_like(y), x.T.contiguous()  # x^T G is faster than G^T x
    with torch.autocast(x.device.type, enabled=False):
        for p, texts in _broadcast_texts(y, batch.sizes):
            grad_texts = torch.empty_like(texts)
            for block in _logit_blocks(matrix, p, texts):
                g = logit_gradient(block)
                addmm_(grad_x, g, block.texts)
                grad_texts[block.local] = matmul(x_t, g).T
            dist.reduce(grad_texts, dst=p)
            if p == rank():
                grad_y += grad_texts
        factor = factor * world_size()
        grad_scale = (x * grad_x).sum() * factor
        return grad_x.mul_(scale * factor), grad_y.mul_(scale * factor), None, grad_scale
