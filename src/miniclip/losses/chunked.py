"""The losses flat in memory: the N x N similarities pass by in tiles and are never held.

The contrastive loss needs of the matrix s only its diagonal and the sums of each row's and each column's exponentials,

    R_i = sum_j exp s_ij,    C_j = sum_i exp s_ij,    loss = 1/(2N) sum_i [ log R_i + log C_i - 2 s_ii ],

which add up tile by tile. Its gradient needs the matrix again, and the tiles are made a second time, as FlashAttention
does (Dao et al. 2022): for four products of the embeddings where the plain form has three, memory grows with N and not
with its square. With G_ij = exp(s_ij) (1/R_i + 1/C_j), less 2 where i = j, and s = scale * x y^T,

    dloss/dx = scale/(2N) G y,    dloss/dy = scale/(2N) G^T x,    dloss/dscale = 1/(2N) sum_i x_i . (G y)_i.

Exponentials of large numbers overflow and those of very negative ones vanish, so that a number m is taken from s first.
Since x and y are unit vectors, |s| <= scale, and one m for the whole matrix, known beforehand, does for all sums that
end up within the range of the type: one exponential an element. Where a sum does not (a row that is far from every
column, at a scale of 100), each row and column carries its own greatest value along, and the sum is rescaled as that
rises (Milakov and Gimelshein 2018, "Online normalizer calculation for softmax"): two exponentials an element.

Powers of 2 are cheaper than those of e, so s is made in bits: scale / log 2 in place of the scale.

Letters: N pairs, E embedding, C side of a tile; x (N, E) and y (N, E) unit vectors of both sides.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from miniclip.fast.matmul import add_product_, product
from miniclip.losses.reference import check_pairs, l2_normalize

SIDES = {"cpu": 1024, "cuda": 4096}  # 4 MiB stay in a processor's cache; a GPU wants more work at a time
LOG_2 = math.log(2)


def contrastive_loss(
    image_embeddings: Tensor,
    text_embeddings: Tensor,
    logit_scale: Tensor | float,
    ids: Tensor | None = None,
    chunk_size: int | None = None,
) -> Tensor:
    """`reference.contrastive_loss` in tiles: the same value and gradient, memory O(N E + C^2) instead of O(N^2).

    Args:
        image_embeddings: (N, E), any length: they are normalised here.
        text_embeddings: (N, E).
        logit_scale: the factor on the cosine similarities, at least 0.
        ids: (N,) integers; rows that share an id are not negatives of each other.
        chunk_size: C, rows and columns at a time; None: as many as suit the device.

    Returns:
        A scalar, at least in float32. It can be differentiated once.

    Raises:
        ValueError: the shapes do not fit, or chunk_size is below 1.
    """
    return _apply(_Contrastive, image_embeddings, text_embeddings, ids, chunk_size, logit_scale)


def sigmoid_loss(
    image_embeddings: Tensor,
    text_embeddings: Tensor,
    logit_scale: Tensor | float,
    logit_bias: Tensor | float,
    ids: Tensor | None = None,
    chunk_size: int | None = None,
) -> Tensor:
    """`reference.sigmoid_loss` in tiles: the same value and gradient, memory O(N E + C^2) instead of O(N^2).

    Args:
        image_embeddings: as in `contrastive_loss`.
        text_embeddings: as in `contrastive_loss`.
        logit_scale: as in `contrastive_loss`.
        logit_bias: added to every logit.
        ids: (N,) integers; pairs of different rows that share an id count neither as right nor as wrong.
        chunk_size: as in `contrastive_loss`.

    Returns:
        As `contrastive_loss`.

    Raises:
        ValueError: as in `contrastive_loss`.
    """
    return _apply(_Sigmoid, image_embeddings, text_embeddings, ids, chunk_size, logit_scale, logit_bias)


def _apply(
    function: type[torch.autograd.Function],
    images: Tensor,
    texts: Tensor,
    ids: Tensor | None,
    chunk_size: int | None,
    *numbers: Tensor | float,
) -> Tensor:
    check_pairs(images, texts, ids)
    if chunk_size is not None and chunk_size < 1:
        raise ValueError(f"chunk_size is {chunk_size}; expected at least 1, or None")
    side = chunk_size or SIDES.get(images.device.type, SIDES["cpu"])
    dtype = torch.float64 if images.dtype == torch.float64 else torch.float32
    scalars = [torch.as_tensor(number, dtype=dtype, device=images.device).reshape(()) for number in numbers]
    apply = function.apply
    if torch.compiler.is_compiling():
        apply = torch.compiler.disable(apply)  # type: ignore[no-untyped-call]  # else it unrolls the loop over tiles
    with torch.autocast(images.device.type, enabled=False):
        return apply(images, texts, ids, side, *scalars)  # type: ignore[no-any-return]


class _Tile(NamedTuple):
    """A part of the matrix: where it lies, and what it is made of."""

    rows: slice
    columns: slice  # the same as rows where it lies on the diagonal
    x: Tensor  # (C, E), the unit vectors of the rows
    y: Tensor  # (C, E), those of the columns
    s: Tensor  # (C, C), to be worked on in place

    @property
    def own(self) -> Tensor:
        """A view of what the tile has of the matrix's diagonal, the right pairs: C numbers or none."""
        return self.s.diagonal(self.rows.start - self.columns.start)


def _parts(n: int, side: int) -> list[slice]:
    return [slice(start, min(start + side, n)) for start in range(0, n, side)]


def _tiles(images: Tensor, texts: Tensor, ids: Tensor | None, side: int, factor: Tensor) -> Iterator[_Tile]:
    """Tiles of factor * x @ y.T, -inf where different rows share an id."""
    parts = _parts(len(images), side)
    y = torch.empty_like(texts, dtype=factor.dtype)
    for part in parts:  # not l2_normalize(texts): the copies that it makes on its way would be as large again
        y[part] = l2_normalize(texts[part])
    for rows in parts:
        x = l2_normalize(images[rows])
        scaled = x * factor
        for columns in parts:
            tile = _Tile(rows, columns, x, y[columns], product(scaled, y[columns].T))
            if ids is not None:
                repeats = ids[rows, None] == ids[columns]
                repeats.diagonal(rows.start - columns.start).fill_(False)
                tile.s.masked_fill_(repeats, -torch.inf)
            yield tile


class _Contrastive(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, images: Tensor, texts: Tensor, ids: Tensor | None, side: int, scale: Tensor) -> Tensor:
        matrix = images, texts, ids, side, scale / LOG_2
        offset, sums, own = _sums_with_one_offset(*matrix) or _sums_with_their_greatest(*matrix)
        ctx.save_for_backward(images, texts, ids, scale, offset, sums)
        ctx.side = side
        return (sums.log2() + (offset - own)).sum() * LOG_2 / (2 * len(images))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        *_, scale, offset, sums = ctx.saved_tensors
        slopes = partial(_both_softmaxes, offset=offset, shares=1 / sums)
        return _gradients(ctx, scale / LOG_2, slopes, gradient / (2 * sums.shape[1]))


def _sums_with_one_offset(
    images: Tensor, texts: Tensor, ids: Tensor | None, side: int, bits: Tensor
) -> tuple[Tensor, Tensor, Tensor] | None:
    """The sums of the matrix in bits, with one m that is known beforehand.

    Returns:
        m (); the sums of 2^(s - m) over each row and over each column (2, N); the diagonal of s (N,). Or None, where a
        sum leaves the range of the type, and where to see that would mean to wait for a GPU.
    """
    if images.device.type != "cpu":
        return None
    room = -math.log2(torch.finfo(bits.dtype).tiny) - 40  # bits to spare: for the digits, and for a sum of many
    offset = (bits.abs() - room).clamp(min=0)
    sums, own = bits.new_zeros(2, len(images)), bits.new_empty(len(images))
    for tile in _tiles(images, texts, ids, side, bits):
        if tile.rows == tile.columns:
            own[tile.rows] = tile.own
        if offset:
            tile.s.sub_(offset)
        powers = tile.s.exp2_()
        sums[0, tile.rows].add_(powers.sum(dim=1))
        sums[1, tile.columns].add_(powers.sum(dim=0))
    return (offset, sums, own) if sums.amin() > 2.0**-room else None


def _sums_with_their_greatest(
    images: Tensor, texts: Tensor, ids: Tensor | None, side: int, bits: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The same for numbers of any size: m (2, N) is the greatest of each row and of each column."""
    sums, own = bits.new_zeros(2, len(images)), bits.new_empty(len(images))
    greatest = torch.full_like(sums, torch.finfo(sums.dtype).min)  # not -inf: a tile may be masked whole
    for tile in _tiles(images, texts, ids, side, bits):
        if tile.rows == tile.columns:
            own[tile.rows] = tile.own
        for part, dim in ((0, tile.rows), 1), ((1, tile.columns), 0):
            higher = torch.maximum(greatest[part], tile.s.amax(dim))
            sums[part] *= (greatest[part] - higher).exp2_()
            sums[part] += (tile.s - higher.unsqueeze(dim)).exp2_().sum(dim)
            greatest[part] = higher
    return greatest, sums, own


def _both_softmaxes(tile: _Tile, offset: Tensor, shares: Tensor) -> Tensor:
    """A tile of G: the softmaxes of rows and columns, less 2 on the diagonal; shares (2, N) are the inverse sums."""
    of_row, of_column = shares[0, tile.rows, None], shares[1, tile.columns]
    if offset.dim() == 0:
        if offset:  # on a CPU, where to look at it is free
            tile.s.sub_(offset)
        g = tile.s.exp2_().mul_(of_row + of_column)
    else:
        by_column = (tile.s - offset[1, tile.columns]).exp2_().mul_(of_column)
        g = tile.s.sub_(offset[0, tile.rows, None]).exp2_().mul_(of_row).add_(by_column)
    tile.own.sub_(2)
    return g


class _Sigmoid(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, images: Tensor, texts: Tensor, ids: Tensor | None, side: int, scale: Tensor, bias: Tensor
    ) -> Tensor:
        ctx.save_for_backward(images, texts, ids, scale, bias)
        ctx.side = side
        loss = torch.zeros_like(scale)
        for tile in _tiles(images, texts, ids, side, scale):
            loss += F.softplus(_wrongness(tile, bias), threshold=50).sum()  # the usual 20 costs digits of float64
        return loss / len(images)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        images, *_, scale, bias = ctx.saved_tensors
        gradient, to_bias = gradient / len(images), torch.zeros_like(bias)

        def slopes(tile: _Tile) -> Tensor:
            g = _wrongness(tile, bias).sigmoid_()
            tile.own.neg_()
            to_bias.add_(g.sum())
            return g

        return *_gradients(ctx, scale, slopes, gradient), to_bias * gradient


def _wrongness(tile: _Tile, bias: Tensor) -> Tensor:
    """The numbers z whose losses are log(1 + exp z): the logits, negated on the diagonal."""
    z = tile.s.add_(bias)
    tile.own.neg_()
    return z


def _gradients(
    ctx: Any, tile_scale: Tensor, slopes: Callable[[_Tile], Tensor], factor: Tensor
) -> tuple[Tensor | None, ...]:
    """Gradients of images, texts, ids, side and scale, where dloss/ds is factor * slopes(tile)."""
    images, texts, ids, scale, *_ = ctx.saved_tensors
    for_images, for_texts, *_ = ctx.needs_input_grad
    to_x = torch.zeros_like(images, dtype=scale.dtype) if for_images or not for_texts else None
    to_y_turned = scale.new_zeros(texts.shape[::-1]) if for_texts else None  # (E, N): products are slow at G^T
    with torch.autocast(images.device.type, enabled=False):
        for tile in _tiles(images, texts, ids, ctx.side, tile_scale):
            g = slopes(tile)
            if to_x is not None:
                add_product_(to_x[tile.rows], g, tile.y)
            if to_y_turned is not None:
                if tile.columns.start == 0:  # the first of these rows
                    x_turned = tile.x.T.contiguous()
                add_product_(to_y_turned[:, tile.columns], x_turned, g)
        to_y = None if to_y_turned is None else to_y_turned.T.contiguous()
        del to_y_turned
        sides = [(given, to) for given, to in ((images, to_x), (texts, to_y)) if to is not None]
        along = [_through_unit(given, to, ctx.side, scale * factor) for given, to in sides]
    to_images = to_x.to(images.dtype) if for_images and to_x is not None else None
    to_texts = to_y.to(texts.dtype) if to_y is not None else None
    return to_images, to_texts, None, None, along[0] * factor  # sum_i x_i . (G y)_i is also sum_j y_j . (G^T x)_j


def _through_unit(given: Tensor, gradient: Tensor, side: int, factor: Tensor) -> Tensor:
    """Turn unit vectors' gradient (N, E) into the given embeddings', in place: what would stretch a vector is lost.

    Returns:
        The sum of what is lost, x . gradient over all unit vectors x.
    """
    along = torch.zeros_like(factor)
    for part in _parts(len(given), side):
        x, to_x = l2_normalize(given[part]), gradient[part]
        stretch = (x * to_x).sum(dim=1, keepdim=True)
        length = (x * given[part]).sum(dim=1, keepdim=True)
        to_x.addcmul_(x, stretch, value=-1).mul_(factor / torch.where(length > 0, length, 0.5))  # 0.5: see `unit`
        along += stretch.sum()
    return along
