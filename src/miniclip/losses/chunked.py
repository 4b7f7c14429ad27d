"""The losses flat in memory: the N x N similarities pass by in blocks of rows and are never held.

The loss needs of the matrix s only the logarithm of the summed exponentials of each row and of each column,

    r_i = log sum_j exp s_ij,    c_j = log sum_i exp s_ij,    loss = 1/(2N) sum_i [ r_i + c_i - 2 s_ii ],

and a column's sum can be carried from block to block with its maximum so far (Milakov and Gimelshein 2018, "Online
normalizer calculation for softmax"). The gradient, exp(s - r) + exp(s - c) less 2 on the diagonal, is made block by
block again from r and c, as FlashAttention does it (Dao et al. 2022). So memory grows with N and not with its square,
for one more product of the embeddings than the plain form needs.

Letters: N pairs, E embedding, C rows of a block; x (N, E) and y (N, E) unit vectors of both sides.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from miniclip.losses.reference import check_pairs, unit

BLOCK_BYTES = {
    "cpu": 4 << 20,
    "cuda": 64 << 20,
}  # a block stays in a processor's cache; a GPU wants more work at a time
LEAST_ROWS = 64  # products of fewer rows waste the processor


def rows_of_a_block(x: Tensor) -> int:
    """C for embeddings (N, E) where the caller has no wish."""
    row_bytes = len(x) * max(4, x.element_size())
    return max(LEAST_ROWS, BLOCK_BYTES.get(x.device.type, BLOCK_BYTES["cpu"]) // row_bytes)


def contrastive_loss(
    image_embeddings: Tensor,
    text_embeddings: Tensor,
    logit_scale: Tensor | float,
    ids: Tensor | None = None,
    chunk_size: int | None = None,
) -> Tensor:
    """`reference.contrastive_loss` in blocks of rows: the same value and gradient, memory O(C N) instead of O(N^2).

    Args:
        image_embeddings: (N, E), any length: they are normalised here.
        text_embeddings: (N, E).
        logit_scale: the factor on the cosine similarities, at least 0.
        ids: (N,) integers; rows that share an id are not negatives of each other.
        chunk_size: C, rows at a time; None: as many as suit the device.

    Returns:
        A scalar, at least in float32. It can be differentiated once.

    Raises:
        ValueError: the shapes do not fit, or chunk_size is below 1.
    """
    return _Contrastive.apply(*_prepare(image_embeddings, text_embeddings, ids, chunk_size, logit_scale))  # type: ignore[no-any-return]


def sigmoid_loss(
    image_embeddings: Tensor,
    text_embeddings: Tensor,
    logit_scale: Tensor | float,
    logit_bias: Tensor | float,
    ids: Tensor | None = None,
    chunk_size: int | None = None,
) -> Tensor:
    """`reference.sigmoid_loss` in blocks of rows: the same value and gradient, memory O(C N) instead of O(N^2).

    Args:
        image_embeddings: (N, E), any length: they are normalised here.
        text_embeddings: (N, E).
        logit_scale: the factor on the cosine similarities, at least 0.
        logit_bias: added to every logit.
        ids: (N,) integers; pairs of different rows that share an id count neither as right nor as wrong.
        chunk_size: C, rows at a time; None: as many as suit the device.

    Returns:
        A scalar, at least in float32. It can be differentiated once.

    Raises:
        ValueError: the shapes do not fit, or chunk_size is below 1.
    """
    x, y, ids, rows, scale = _prepare(image_embeddings, text_embeddings, ids, chunk_size, logit_scale)
    return _Sigmoid.apply(x, y, ids, rows, scale, torch.as_tensor(logit_bias, dtype=x.dtype, device=x.device))  # type: ignore[no-any-return]


def _prepare(
    images: Tensor, texts: Tensor, ids: Tensor | None, chunk_size: int | None, scale: Tensor | float
) -> tuple[Tensor, Tensor, Tensor | None, int, Tensor]:
    check_pairs(images, texts, ids)
    if chunk_size is not None and chunk_size < 1:
        raise ValueError(f"chunk_size is {chunk_size}; expected at least 1, or None")
    with torch.autocast(images.device.type, enabled=False):
        x, y = unit(images), unit(texts)
    rows = min(len(x), chunk_size or rows_of_a_block(x))
    return x, y, ids, rows, torch.as_tensor(scale, dtype=x.dtype, device=x.device)


def _blocks(
    x: Tensor, y: Tensor, ids: Tensor | None, rows: int, scale: Tensor, bias: Tensor | float = 0.0
) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Blocks of scale * x @ y.T + bias, in one buffer (C, N) that is used again and again.

    Yields:
        Which rows; their logits, -inf where different rows share an id; and a second buffer of that size to work in.
    """
    buffer, work = x.new_empty(2, rows, len(y)).unbind()
    for start in range(0, len(x), rows):
        where = slice(start, min(start + rows, len(x)))
        size = where.stop - start
        block = torch.mm(x[where], y.T, out=buffer[:size]).mul_(scale).add_(bias)
        if ids is not None:
            repeats = ids[where, None] == ids
            repeats[torch.arange(size), torch.arange(start, where.stop)] = False
            block.masked_fill_(repeats, -torch.inf)
        yield where, block, work[:size]


class _Contrastive(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, ids: Tensor | None, rows: int, scale: Tensor) -> Tensor:
        by_row, greatest, total = x.new_empty(len(x)), x.new_full((len(x),), -torch.inf), x.new_zeros(len(x))
        with torch.autocast(x.device.type, enabled=False):
            for where, s, work in _blocks(x, y, ids, rows, scale):
                top = s.amax(dim=1, keepdim=True)
                by_row[where] = torch.sub(s, top, out=work).exp_().sum(dim=1).log_() + top[:, 0]
                higher = torch.maximum(greatest, s.amax(dim=0))
                offset = higher.masked_fill(higher == -torch.inf, 0.0)  # a column masked so far: no inf - inf
                total.mul_((greatest - offset).exp_()).add_(torch.sub(s, offset, out=work).exp_().sum(dim=0))
                greatest = higher
            by_column = total.log_() + greatest
            own = (x * y).sum(dim=1) * scale
        ctx.save_for_backward(x, y, ids, scale, by_row, by_column)
        ctx.rows = rows
        return (by_row + by_column - 2 * own).sum() / (2 * len(x))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, y, ids, scale, by_row, by_column = ctx.saved_tensors
        with torch.autocast(x.device.type, enabled=False):
            to_x, to_y = torch.empty_like(x), torch.zeros_like(y)
            for where, s, work in _blocks(x, y, ids, ctx.rows, scale):
                torch.sub(s, by_column, out=work).exp_()
                work.add_(s.sub_(by_row[where, None]).exp_())
                to_x[where] = work @ y
                to_y.addmm_(work.T, x[where])
            return _gradients(x, y, to_x.sub_(2 * y), to_y.sub_(2 * x), scale, gradient / (2 * len(x)))


class _Sigmoid(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, ids: Tensor | None, rows: int, scale: Tensor, bias: Tensor) -> Tensor:
        loss = x.new_zeros(())
        with torch.autocast(x.device.type, enabled=False):
            for _, s, _ in _blocks(x, y, ids, rows, scale, bias):
                loss += F.softplus(s).sum()
            own = (x * y).sum(dim=1) * scale + bias
            loss -= own.sum()  # log sigmoid of the right ones: softplus(-z) = softplus(z) - z
        ctx.save_for_backward(x, y, ids, scale, bias)
        ctx.rows = rows
        return loss / len(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, y, ids, scale, bias = ctx.saved_tensors
        with torch.autocast(x.device.type, enabled=False):
            to_x, to_y, to_bias = torch.empty_like(x), torch.zeros_like(y), -x.new_tensor(float(len(x)))
            for where, s, _ in _blocks(x, y, ids, ctx.rows, scale, bias):
                s.sigmoid_()
                to_x[where] = s @ y
                to_y.addmm_(s.T, x[where])
                to_bias += s.sum()
            gradient = gradient / len(x)
            return *_gradients(x, y, to_x.sub_(y), to_y.sub_(x), scale, gradient), to_bias * gradient


def _gradients(
    x: Tensor, y: Tensor, to_x: Tensor, to_y: Tensor, scale: Tensor, factor: Tensor
) -> tuple[Tensor | None, ...]:
    """Gradients of x, y, ids, rows and scale, from those of the cosines times y and x: the scale's is x . (G y)."""
    to_scale = (x * to_x).sum() * factor
    return to_x.mul_(scale * factor), to_y.mul_(scale * factor), None, None, to_scale
