"""The losses of a batch that is spread over ranks: the single process's loss and gradient, in a part of its memory.

Rank p holds n_p of the N pairs. Each rank computes the similarities of its pictures with all captions: the rows

    s_ij = scale * x_i . y_j,   i of this rank, j of any,

for which the captions of each rank visit all the others in turn, and of which C columns are held at a time. So a rank
holds O(n (E + C)) numbers, and a few vectors of length N. What is exchanged of the matrix s is only the logarithm of
each column's summed exponentials, and of the gradient G = dloss/ds what belongs to the captions of other ranks:

    r_i = log sum_j exp s_ij               of this rank's rows: whole
    c_j = log sum_p exp c_j^p              c_j^p over the rows of rank p
    dloss/dx_i = scale * sum_j G_ij y_j    whole
    dloss/dy_j = scale * sum_p sum_{i of p} G_ij x_i

Every rank returns the loss of the whole batch. Backward, it gives R times its own share of the gradient: dloss/dx_i and
dloss/dy_i of its own rows, and the part of the scale's and the bias's that its rows make. The parameters' gradients are
then averaged over the ranks, as DistributedDataParallel and FSDP do and `distributed.average_gradients` does: R times a
share, summed and divided by R, is the gradient of the loss, and each part of it is counted once.

Letters: R ranks, N pairs of the batch, n of this rank, E embedding, C columns of a block.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from miniclip.fast.matmul import add_product_, product
from miniclip.losses.reference import l2_normalize
from miniclip.runtime.distributed import all_ranks, gather, rank, total, world_size

BLOCK_BYTES = {
    "cpu": 4 << 20,
    "cuda": 64 << 20,
}  # of s at a time: what a processor's cache holds, what a GPU is busy with
LEAST_COLUMNS = 64  # products of fewer columns waste the processor


def contrastive_loss(
    image_embeddings: Tensor,
    text_embeddings: Tensor,
    logit_scale: Tensor | float,
    ids: Tensor | None = None,
    chunk_size: int | None = None,
) -> Tensor:
    """`reference.contrastive_loss` of the rows of all ranks; every rank must call it.

    Args:
        image_embeddings: (n, E), this rank's, any length: they are normalised here. n may differ from rank to rank.
        text_embeddings: (n, E).
        logit_scale: the factor on the cosine similarities, at least 0; the same on all ranks.
        ids: (n,) integers; rows that share an id, on whatever ranks, are not negatives of each other.
        chunk_size: C; None: as many as suit the device.

    Returns:
        The scalar loss of all N pairs, on every rank the same. Its gradient is this rank's share times R: to be
        averaged over the ranks. It can be differentiated once.

    Raises:
        ValueError: the shapes do not fit, here or between the ranks, or chunk_size is below 1.
    """
    x, y, batch = _prepare(image_embeddings, text_embeddings, ids, chunk_size)
    return _Contrastive.apply(x, y, batch, _scalar(logit_scale, x))  # type: ignore[no-any-return]


def sigmoid_loss(
    image_embeddings: Tensor,
    text_embeddings: Tensor,
    logit_scale: Tensor | float,
    logit_bias: Tensor | float,
    ids: Tensor | None = None,
    chunk_size: int | None = None,
) -> Tensor:
    """`reference.sigmoid_loss` of the rows of all ranks; every rank must call it.

    Args:
        image_embeddings: as in `contrastive_loss`.
        text_embeddings: as in `contrastive_loss`.
        logit_scale: as in `contrastive_loss`.
        logit_bias: added to every logit; the same on all ranks.
        ids: (n,) integers; pairs of different rows that share an id, on whatever ranks, count neither as right nor as
            wrong.
        chunk_size: as in `contrastive_loss`.

    Returns:
        As `contrastive_loss`.

    Raises:
        ValueError: as in `contrastive_loss`.
    """
    x, y, batch = _prepare(image_embeddings, text_embeddings, ids, chunk_size)
    return _Sigmoid.apply(x, y, batch, _scalar(logit_scale, x), _scalar(logit_bias, x))  # type: ignore[no-any-return]


class _Batch(NamedTuple):
    """What this rank knows of the whole batch."""

    sizes: list[int]  # n of every rank
    ids: Tensor | None  # (N,)
    columns: int  # C

    def rows(self, p: int) -> slice:
        """Where rank p's rows are in the batch."""
        start = sum(self.sizes[:p])
        return slice(start, start + self.sizes[p])


def _prepare(
    images: Tensor, texts: Tensor, ids: Tensor | None, chunk_size: int | None
) -> tuple[Tensor, Tensor, _Batch]:
    """Unit vectors, and what is known of the batch.

    The shapes are compared with those of the other ranks, and a mistake is raised on every one: none is left waiting.
    """
    fits = images.dim() == 2 and images.shape == texts.shape and (ids is None or ids.shape == images.shape[:1])
    fits = fits and (chunk_size is None or chunk_size >= 1)
    found = all_ranks([fits, len(images), images.shape[-1], ids is not None])
    sizes = [n for _, n, _, _ in found]
    if not all(ok for ok, *_ in found) or len({(width, has) for _, _, width, has in found}) > 1 or not any(sizes):
        raise ValueError(
            f"rank {rank()}: image embeddings {tuple(images.shape)}, text embeddings {tuple(texts.shape)}, ids "
            f"{None if ids is None else tuple(ids.shape)}, chunk_size {chunk_size}; expected on every rank two of the "
            "same shape (n, E) with one E, ids (n,) on all ranks or on none, chunk_size at least 1 or None, and a row "
            "on some rank"
        )
    with torch.autocast(images.device.type, enabled=False):
        x, y = l2_normalize(images), l2_normalize(texts)
    return x, y, _Batch(sizes, None if ids is None else gather(ids.to(x.device)), chunk_size or _columns(x))


def _columns(x: Tensor) -> int:
    """C for embeddings (n, E) where the caller has no wish."""
    column_bytes = max(1, len(x)) * x.element_size()
    return max(LEAST_COLUMNS, BLOCK_BYTES.get(x.device.type, BLOCK_BYTES["cpu"]) // column_bytes)


def _scalar(value: Tensor | float, x: Tensor) -> Tensor:
    return torch.as_tensor(value, dtype=x.dtype, device=x.device)


def _visits(y: Tensor, sizes: list[int]) -> Iterator[tuple[int, Tensor]]:
    """Each rank p and its captions (n_p, E), in turn and on all ranks alike; the next ones are on their way already."""

    def send_for(p: int) -> tuple[Tensor, Any]:
        texts = y.contiguous() if p == rank() else y.new_empty(sizes[p], y.shape[1])
        return texts, dist.broadcast(texts, src=p, async_op=True)

    visitors = [p for p, n in enumerate(sizes) if n]
    coming = send_for(visitors[0])
    for p, after in zip(visitors, [*visitors[1:], None], strict=True):
        texts, sent = coming
        sent.wait()
        if after is not None:
            coming = send_for(after)
        yield p, texts


def _blocks(
    x: Tensor, texts: Tensor, p: int, batch: _Batch, scale: Tensor, bias: Tensor | float = 0.0
) -> Iterator[tuple[slice, slice, Tensor]]:
    """The logits of this rank's pictures x (n, E) with rank p's captions (n_p, E), C columns at a time.

    Yields:
        Which of p's captions; where these are in the batch; (n, C) logits, -inf where different rows share an id.
    """
    mine, first = batch.rows(rank()), batch.rows(p).start
    for start in range(0, len(texts), batch.columns):
        there = slice(start, min(start + batch.columns, len(texts)))
        within = slice(first + there.start, first + there.stop)
        s = product(x, texts[there].T).mul_(scale).add_(bias)
        if batch.ids is not None:
            repeats = batch.ids[mine, None] == batch.ids[within]
            if p == rank():
                repeats.diagonal(-start).fill_(False)  # a row is no repeat of itself
            s.masked_fill_(repeats, -torch.inf)
        yield there, within, s


class _Contrastive(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, batch: _Batch, scale: Tensor) -> Tensor:
        by_row, by_column = x.new_full((len(x),), -torch.inf), x.new_empty(sum(batch.sizes))
        with torch.autocast(x.device.type, enabled=False):  # a bf16 similarity would lose the small margins
            for p, texts in _visits(y, batch.sizes):
                for _, within, s in _blocks(x, texts, p, batch, scale):
                    by_row = torch.logaddexp(by_row, s.logsumexp(dim=1))
                    by_column[within] = s.logsumexp(dim=0)  # over this rank's rows
            by_column = _sum_of_exponentials(by_column)
            own = (x * y).sum(dim=1) * scale
        ctx.save_for_backward(x, y, scale, by_row, by_column)
        ctx.batch = batch
        return total((by_row + by_column[batch.rows(rank())] - 2 * own).sum()) / (2 * sum(batch.sizes))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, y, scale, by_row, by_column = ctx.saved_tensors
        to_x, to_y, x_turned = -2 * y, -2 * x, x.T.contiguous()  # products are slow at G^T
        with torch.autocast(x.device.type, enabled=False):
            for p, texts in _visits(y, ctx.batch.sizes):
                to_texts = torch.empty_like(texts)
                for there, within, s in _blocks(x, texts, p, ctx.batch, scale):
                    g = (s - by_column[within]).exp_().add_(s.sub_(by_row[:, None]).exp_())
                    add_product_(to_x, g, texts[there])
                    to_texts[there] = product(x_turned, g).T
                _give_back(to_texts, p, to_y)
            return _gradients(x, to_x, to_y, scale, gradient / (2 * sum(ctx.batch.sizes)))


class _Sigmoid(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, batch: _Batch, scale: Tensor, bias: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            loss = -((x * y).sum(dim=1) * scale + bias).sum()  # of the right ones: softplus(-z) = softplus(z) - z
            for p, texts in _visits(y, batch.sizes):
                for *_, s in _blocks(x, texts, p, batch, scale, bias):
                    loss += F.softplus(s).sum()
        ctx.save_for_backward(x, y, scale, bias)
        ctx.batch = batch
        return total(loss) / sum(batch.sizes)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, y, scale, bias = ctx.saved_tensors
        to_x, to_y, to_bias = -y, -x, -x.new_tensor(float(len(x)))
        x_turned = x.T.contiguous()
        with torch.autocast(x.device.type, enabled=False):
            for p, texts in _visits(y, ctx.batch.sizes):
                to_texts = torch.empty_like(texts)
                for there, _, s in _blocks(x, texts, p, ctx.batch, scale, bias):
                    g = s.sigmoid_()
                    add_product_(to_x, g, texts[there])
                    to_texts[there] = product(x_turned, g).T
                    to_bias += g.sum()
                _give_back(to_texts, p, to_y)
            gradient = gradient / sum(ctx.batch.sizes)
            return *_gradients(x, to_x, to_y, scale, gradient), to_bias * gradient * world_size()


def _sum_of_exponentials(parts: Tensor) -> Tensor:
    """The log-sum-exp over the ranks of each rank's parts (N,), which are -inf where a rank has nothing to add."""
    greatest = parts.clone()
    dist.all_reduce(greatest, op=dist.ReduceOp.MAX)  # finite: a caption's own picture is on some rank
    return total((parts - greatest).exp_()).log_() + greatest


def _give_back(to_texts: Tensor, p: int, to_y: Tensor) -> None:
    """Add what all ranks found for rank p's captions (n_p, E) to its gradient."""
    dist.reduce(to_texts, dst=p)
    if p == rank():
        to_y += to_texts


def _gradients(x: Tensor, to_x: Tensor, to_y: Tensor, scale: Tensor, factor: Tensor) -> tuple[Tensor | None, ...]:
    """R times the gradients of x, y, batch and scale, from G y and G^T x; the scale's share is sum_i x_i . (G y)_i."""
    factor = factor * world_size()
    to_scale = (x * to_x).sum() * factor
    return to_x.mul_(scale * factor), to_y.mul_(scale * factor), None, to_scale
