"""Blocks of the similarity matrix, and the embeddings' gradients from the blocks of the logits' gradient.

With unit vectors x_i and y_j, and the logits s = scale * x y^T + bias, a gradient G = dloss/ds gives

    dloss/dx = scale * G y,    dloss/dy = scale * G^T x,    dloss/dscale = sum_i x_i . (G y)_i.

Letters: N images, M texts (as many, if they are pairs), E embedding, C side of a block; x (N, E) and y (M, E) the unit
vectors of images and texts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from miniclip.fast.matmul import addmm_, matmul
from miniclip.losses.reference import l2_normalize

BLOCK_SIDES = {"cpu": 1024, "cuda": 4096}  # 4 MiB fit into a CPU's cache; a GPU needs larger products


class Block(NamedTuple):
    """A block of the similarity matrix, and the unit vectors that it is the product of."""

    rows: slice
    columns: slice  # equal to rows on the diagonal
    x: Tensor  # (C, E)
    y: Tensor  # (C, E)
    logits: Tensor  # (C, C), changed in place by the losses

    @property
    def positives(self) -> Tensor:
        """View of the part of the matrix's diagonal that is in the block; empty off the diagonal."""
        return self.logits.diagonal(self.rows.start - self.columns.start)


def slices(n: int, size: int) -> list[slice]:
    """Cut n rows into slices of a size; the last one may be shorter."""
    return [slice(start, min(start + size, n)) for start in range(0, n, size)]


def logit_blocks(images: Tensor, texts: Tensor, ids: Tensor | None, size: int, scale: Tensor) -> Iterator[Block]:
    """Yield the blocks of scale * x y^T, row by row; -inf for different pairs that share an id."""
    column_parts = slices(len(texts), size)
    y = torch.empty_like(texts, dtype=scale.dtype)
    for part in column_parts:  # not l2_normalize(texts), whose intermediate copies are as large
        y[part] = l2_normalize(texts[part])
    for rows in slices(len(images), size):
        x = l2_normalize(images[rows])
        scaled = x * scale
        for columns in column_parts:
            block = Block(rows, columns, x, y[columns], matmul(scaled, y[columns].T))
            if ids is not None:
                duplicates = ids[rows, None] == ids[columns]
                duplicates.diagonal(rows.start - columns.start).fill_(False)
                block.logits.masked_fill_(duplicates, -torch.inf)
            yield block


def input_gradients(
    ctx: Any, block_scale: Tensor, logit_gradient: Callable[[Block], Tensor], factor: Tensor
) -> tuple[Tensor | None, ...]:
    """Return the gradients of images, texts, ids, block size and logit scale, in this order.

    Args:
        ctx: autograd context that saved images, texts, ids and logit scale first, and has `block_size`.
        block_scale: () factor of the logits that `logit_gradient` expects.
        logit_gradient: G / factor of a block (C, C).
        factor: ().
    """
    images, texts, ids, scale, *_ = ctx.saved_tensors
    needs_images, needs_texts, *_ = ctx.needs_input_grad
    grad_x = torch.zeros_like(images, dtype=scale.dtype) if needs_images or not needs_texts else None
    grad_y_t = scale.new_zeros(texts.shape[::-1]) if needs_texts else None  # (E, M): x^T G is faster than G^T x
    with torch.autocast(images.device.type, enabled=False):
        for block in logit_blocks(images, texts, ids, ctx.block_size, block_scale):
            g = logit_gradient(block)
            if grad_x is not None:
                addmm_(grad_x[block.rows], g, block.y)
            if grad_y_t is not None:
                if block.columns.start == 0:  # the first block of these rows
                    x_t = block.x.T.contiguous()
                addmm_(grad_y_t[:, block.columns], x_t, g)
        grad_y = None if grad_y_t is None else grad_y_t.T.contiguous()
        del grad_y_t
        sides = [(side, grad) for side, grad in ((images, grad_x), (texts, grad_y)) if grad is not None]
        dots = [_normalize_backward_(side, grad, ctx.block_size, scale * factor) for side, grad in sides]
    grad_images = grad_x.to(images.dtype) if needs_images and grad_x is not None else None
    grad_texts = grad_y.to(texts.dtype) if grad_y is not None else None
    return grad_images, grad_texts, None, None, dots[0] * factor  # sum_i x_i . (G y)_i equals sum_j y_j . (G^T x)_j


def _normalize_backward_(embeddings: Tensor, gradient: Tensor, size: int, factor: Tensor) -> Tensor:
    """Turn the gradient (N, E) of unit vectors into factor times the gradient of the embeddings, in place.

    Normalisation removes the component along the vector and divides by its length.

    Returns:
        The sum over all unit vectors u of u . gradient.
    """
    total = torch.zeros_like(factor)
    for part in slices(len(embeddings), size):
        unit, grad = l2_normalize(embeddings[part]), gradient[part]
        radial = (unit * grad).sum(dim=1, keepdim=True)
        length = (unit * embeddings[part]).sum(dim=1, keepdim=True)
        grad.addcmul_(unit, radial, value=-1).mul_(factor / torch.where(length > 0, length, 0.5))  # see l2_normalize
        total += radial.sum()
    return total
