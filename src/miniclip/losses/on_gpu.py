"""The losses on a GPU: few large products of the raw embeddings, each followed by one fused pass over a block.

The embeddings are multiplied as they are, and the lengths enter the pass after the product,

    s_ij = scale * (x_i . y_j) / (|x_i| |y_j|) + bias.

So bfloat16 embeddings need no rounding before their product, which tensor cores sum in float32: s is as exact as in
float32. Only the gradient's blocks H are rounded to the embeddings' type, for the products with them,

    H_ij = dloss/ds_ij / (|x_i| |y_j|),    dloss/du_i = scale |x_i| sum_j H_ij y_j,    u_i = x_i / |x_i|.

Other embeddings are multiplied in float32, or in TF32 where the user allows it. Nothing waits for the device: the
softmaxes have running maxima, as in `chunked.py`. torch.compile fuses the passes for large batches on a GPU; if it
fails, they run without it. The module runs on a CPU too, but only tests use it there.

Letters: N pairs, E embedding, C side of a block; x (N, E) and y (N, E) the embeddings of images and texts.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from miniclip.fast.private import UNAVAILABLE
from miniclip.losses.blocks import slices

COMPILED_FROM = 8192  # pairs; compiling takes seconds, which a smaller batch does not repay
LOWEST = torch.finfo(torch.float32).min  # not -inf: a whole row of a block may be masked

log = logging.getLogger(__name__)


class Side(NamedTuple):
    """Embeddings of one side, divided by powers of 2 so that their products stay in range."""

    rows: Tensor  # (N, E), bfloat16 or float32
    exponents: Tensor  # (N, 1), of the powers
    inverse_lengths: Tensor  # (N,) float32, 1 / |row|; 2 for a row of zeros, as in `l2_normalize`

    @staticmethod
    def of(embeddings: Tensor, dtype: torch.dtype) -> Side:
        """Divide each row by the power of 2 above its largest number, which is exact."""
        rows = embeddings.detach().to(dtype)
        exponents = torch.frexp(rows.abs().amax(dim=1, keepdim=True).float())[1].clamp_(-126, 126)  # they stay normal
        rows = torch.ldexp(rows.float(), -exponents).to(dtype)
        lengths = torch.linalg.vector_norm(rows, dim=1, dtype=torch.float32)
        return Side(rows, exponents, 1 / torch.where(lengths > 0, lengths, 0.5))


class Part(NamedTuple):
    """A block of the matrix of products."""

    rows: slice
    columns: slice
    products: Tensor  # (C, C) float32, x_i . y_j
    diagonal: bool  # whether the block lies on the diagonal: then rows equal columns
    masked: Tensor | None  # (C, C) bool, different rows that share an id


def both_sides(images: Tensor, texts: Tensor) -> tuple[Side, Side]:
    """Return both sides, in bfloat16 if both embeddings are, else in float32."""
    half = images.dtype == texts.dtype == torch.bfloat16
    dtype = torch.bfloat16 if half else torch.float32
    return Side.of(images, dtype), Side.of(texts, dtype)


def product(a: Tensor, b: Tensor) -> Tensor:
    """A @ b of matrices of one type, summed and returned in float32."""
    if a.dtype == torch.float32:
        return a @ b
    if a.device.type == "cuda" and _sums_in_float32(a.device):
        result: Tensor = torch.mm(a, b, out_dtype=torch.float32)
        return result
    return a.float() @ b.float()


@functools.cache
def _sums_in_float32(device: torch.device) -> bool:
    """Whether this torch and this GPU return a product of bfloat16 in float32, tried once."""
    ones = torch.ones(16, 16, dtype=torch.bfloat16, device=device)
    try:
        total = torch.mm(ones, ones, out_dtype=torch.float32)
    except UNAVAILABLE:
        return False
    return bool((total == 16).all())


def parts(x: Side, y: Side, ids: Tensor | None, size: int) -> Iterator[Part]:
    """Yield the blocks, row by row."""
    cuts = slices(len(x.rows), size)
    for rows in cuts:
        for columns in cuts:
            masked = None
            if ids is not None:
                masked = ids[rows, None] == ids[columns]
                if rows == columns:
                    masked.fill_diagonal_(False)
            yield Part(rows, columns, product(x.rows[rows], y.rows[columns].T), rows == columns, masked)


class Contrastive(torch.autograd.Function):
    """The contrastive loss; arguments as in `chunked.py`."""

    @staticmethod
    def forward(ctx: Any, images: Tensor, texts: Tensor, ids: Tensor | None, size: int, scale: Tensor) -> Tensor:
        """Value of the loss."""
        x, y = both_sides(images, texts)
        lse = torch.full((2, len(images)), LOWEST, dtype=torch.float32, device=images.device)
        cosines, sums = scale.new_empty(len(images)), fused(log_sums, len(images), images.device)
        for part in parts(x, y, ids, size):
            lengths = x.inverse_lengths[part.rows], y.inverse_lengths[part.columns]
            row_sums, column_sums = sums(part.products, *lengths, scale, part.masked)
            lse[0, part.rows] = torch.logaddexp(lse[0, part.rows], row_sums)
            lse[1, part.columns] = torch.logaddexp(lse[1, part.columns], column_sums)
            if part.diagonal:  # from the same products, so that a loss near 0 stays exact
                cosines[part.rows] = part.products.diagonal() * (lengths[0] * lengths[1])
        ctx.save_for_backward(images, texts, ids, scale, lse)
        ctx.block_size = size
        return (lse - cosines * scale).sum() / (2 * len(images))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of the arguments."""
        images, texts, _, scale, lse = ctx.saved_tensors
        x, y = both_sides(images, texts)
        factor = gradient / (2 * len(images))
        softmaxes = fused(softmax_gradient, len(images), images.device)

        def block(part: Part) -> Tensor:
            lengths = x.inverse_lengths[part.rows], y.inverse_lengths[part.columns]
            sums = lse[0, part.rows], lse[1, part.columns]
            options = part.masked, part.diagonal, x.rows.dtype
            h: Tensor = softmaxes(part.products, *lengths, scale, *sums, *options)
            return h

        return input_gradients(ctx, x, y, block, factor)


class Sigmoid(torch.autograd.Function):
    """The sigmoid loss; arguments as in `chunked.py`."""

    @staticmethod
    def forward(
        ctx: Any, images: Tensor, texts: Tensor, ids: Tensor | None, size: int, scale: Tensor, bias: Tensor
    ) -> Tensor:
        """Value of the loss."""
        x, y = both_sides(images, texts)
        costs, total = fused(softplus_sum, len(images), images.device), torch.zeros_like(scale)
        for part in parts(x, y, ids, size):
            lengths = x.inverse_lengths[part.rows], y.inverse_lengths[part.columns]
            total += costs(part.products, *lengths, scale, bias, part.masked, part.diagonal)
        ctx.save_for_backward(images, texts, ids, scale, bias)
        ctx.block_size = size
        return total / len(images)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of the arguments."""
        images, texts, _, scale, bias = ctx.saved_tensors
        (x, y), grad_bias = both_sides(images, texts), torch.zeros_like(bias)
        sigmoids = fused(sigmoid_gradient, len(images), images.device)

        def block(part: Part) -> Tensor:
            lengths = x.inverse_lengths[part.rows], y.inverse_lengths[part.columns]
            h: Tensor
            h, total = sigmoids(part.products, *lengths, scale, bias, part.masked, part.diagonal, x.rows.dtype)
            grad_bias.add_(total)
            return h

        factor = gradient / len(images)
        return *input_gradients(ctx, x, y, block, factor), grad_bias * factor


def input_gradients(
    ctx: Any, x: Side, y: Side, block: Callable[[Part], Tensor], factor: Tensor
) -> tuple[Tensor | None, ...]:
    """Return the gradients of images, texts, ids, block size and logit scale, in this order.

    Args:
        ctx: autograd context that saved images, texts, ids and logit scale first, and has `block_size`.
        x: the images.
        y: the texts.
        block: H / factor of a block (C, C).
        factor: ().
    """
    images, texts, ids, scale, *_ = ctx.saved_tensors
    needs_images, needs_texts, *_ = ctx.needs_input_grad
    grad_x = torch.zeros_like(x.rows, dtype=torch.float32) if needs_images or not needs_texts else None
    grad_y = torch.zeros_like(y.rows, dtype=torch.float32) if needs_texts else None
    with torch.autocast(images.device.type, enabled=False):
        for part in parts(x, y, ids, ctx.block_size):
            h = block(part)
            if grad_x is not None:
                grad_x[part.rows] += product(h, y.rows[part.columns])
            if grad_y is not None:
                grad_y[part.columns] += product(h.T, x.rows[part.rows])
    dots = [
        _normalize_backward_(side, grad, ctx.block_size, scale * factor)
        for side, grad in ((x, grad_x), (y, grad_y))
        if grad is not None
    ]
    grad_images = grad_x.to(images.dtype) if needs_images and grad_x is not None else None
    grad_texts = grad_y.to(texts.dtype) if grad_y is not None else None
    return grad_images, grad_texts, None, None, dots[0] * factor  # sum_i u_i . dloss/du_i = scale dloss/dscale


def _normalize_backward_(side: Side, gradient: Tensor, size: int, factor: Tensor) -> Tensor:
    """Turn |x_i| times sums of H_ij y_j (N, E) into factor times the gradient of the embeddings, in place.

    Returns:
        The sum over all unit vectors u of u . dloss/du, without scale and factor.
    """
    total = torch.zeros_like(factor)
    for part in slices(len(gradient), size):
        inverse = side.inverse_lengths[part, None]
        grad, unit = gradient[part], side.rows[part].float() * inverse
        grad /= inverse
        radial = (unit * grad).sum(dim=1, keepdim=True)
        total += radial.sum()
        grad.addcmul_(unit, radial, value=-1).mul_(inverse * factor)
        gradient[part] = torch.ldexp(grad, -side.exponents[part])
    return total


# One pass over a block of products (C, C) each; rows (C,) and columns (C,) are inverse lengths. The logits are computed
# in the same order everywhere, so that both passes round them alike.


def log_sums(
    products: Tensor, rows: Tensor, columns: Tensor, scale: Tensor, masked: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Logarithms of the sums of exponentials of the rows and of the columns."""
    logits = products * (rows[:, None] * columns) * scale
    if masked is not None:
        logits = logits.masked_fill(masked, -torch.inf)
    sums = []
    for dim in (1, 0):
        largest = logits.amax(dim, keepdim=True).clamp_min(LOWEST)
        total = (logits - largest).exp().sum(dim)
        sums.append(largest.squeeze(dim) + total.log())
    return sums[0], sums[1]


def softmax_gradient(
    products: Tensor,
    rows: Tensor,
    columns: Tensor,
    scale: Tensor,
    row_lse: Tensor,
    column_lse: Tensor,
    masked: Tensor | None,
    diagonal: bool,
    dtype: torch.dtype,
) -> Tensor:
    """H of the contrastive loss times 2N."""
    lengths = rows[:, None] * columns
    logits = products * lengths * scale
    gradient = (logits - row_lse[:, None]).exp() + (logits - column_lse).exp()
    if masked is not None:
        gradient = gradient.masked_fill(masked, 0.0)
    if diagonal:
        gradient = torch.where(_identity(products), gradient - 2, gradient)
    return (gradient * lengths).to(dtype)


def softplus_sum(
    products: Tensor,
    rows: Tensor,
    columns: Tensor,
    scale: Tensor,
    bias: Tensor,
    masked: Tensor | None,
    diagonal: bool,
) -> Tensor:
    """Sum of the sigmoid loss's terms."""
    logits = products * (rows[:, None] * columns) * scale + bias
    if diagonal:
        logits = torch.where(_identity(products), -logits, logits)
    terms = F.softplus(logits)
    return (terms if masked is None else terms.masked_fill(masked, 0.0)).sum()


def sigmoid_gradient(
    products: Tensor,
    rows: Tensor,
    columns: Tensor,
    scale: Tensor,
    bias: Tensor,
    masked: Tensor | None,
    diagonal: bool,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    """H of the sigmoid loss times N, and the sum of its dloss/ds times N."""
    lengths = rows[:, None] * columns
    logits = products * lengths * scale + bias
    gradient = logits.sigmoid()
    if diagonal:  # sigmoid(s) - 1, without cancellation
        gradient = torch.where(_identity(products), -(-logits).sigmoid(), gradient)
    if masked is not None:
        gradient = gradient.masked_fill(masked, 0.0)
    return (gradient * lengths).to(dtype), gradient.sum()


def _identity(x: Tensor) -> Tensor:
    """(C, C), True on the diagonal."""
    index = torch.arange(x.shape[0], device=x.device)
    return index[:, None] == index


def fused(function: Callable[..., Any], pairs: int, device: torch.device) -> Callable[..., Any]:
    """Return a pass, compiled for a large batch on a GPU."""
    if device.type != "cuda" or pairs < COMPILED_FROM:
        return function
    return _compiled(function)


@functools.cache
def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    compiled, failed = torch.compile(function), False

    def call(*arguments: Any) -> Any:
        nonlocal failed
        if not failed:
            try:
                return compiled(*arguments)
            except torch.OutOfMemoryError:
                raise
            except RuntimeError as error:  # no compiler, or none for this GPU
                failed = True
                log.warning("torch.compile fails (%s); the loss runs without it", str(error).partition("\n")[0])
        return function(*arguments)

    return call
