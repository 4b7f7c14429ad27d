"""The losses: `reference.py` is the specification, `chunked.py` flat in memory, `gathered.py` spread over ranks.

Where a process group of R ranks is up, the batch is global: every rank passes its own rows, as many as it has, and gets
the loss of all ranks' rows together, the same number on each. Its gradient is then R times this rank's share of the
gradient of that loss, of embeddings, scale and bias alike: the parameters' gradients, averaged over the ranks (as
DistributedDataParallel and FSDP do, and `distributed.average_gradients`), are those of one process with the whole
batch. All ranks must call it, or the others wait. For a loss of a rank's own rows, call `reference` or `chunked`.
"""

from __future__ import annotations

from torch import Tensor

from miniclip.losses import chunked, reference
from miniclip.losses import distributed as gathered
from miniclip.runtime.distributed import world_size

CHUNKED_FROM = 2048  # pairs: from here on tiles are faster, in a part of the memory (`python -m benchmarks.losses`)


def contrastive_loss(
    image_embeddings: Tensor,
    text_embeddings: Tensor,
    logit_scale: Tensor | float,
    ids: Tensor | None = None,
    chunk_size: int | None = None,
) -> Tensor:
    """CLIP's symmetric cross-entropy over a batch of matching pairs, in the form that suits the batch's size.

    Args:
        image_embeddings: (N, E), any length: they are normalised here. Row i belongs to row i of the texts.
        text_embeddings: (N, E).
        logit_scale: the factor on the cosine similarities (not its logarithm), at least 0.
        ids: (N,) integers; rows that share an id (two captions of one picture, say) are not negatives of each other:
            their similarities are left out of the sums. None: all rows are distinct.
        chunk_size: rows and columns of the similarity matrix at a time (over ranks: columns), in memory that grows with
            N; None: the whole matrix for small batches, and tiles that suit the device for large ones.

    Returns:
        A scalar, at least in float32: log N where all embeddings are equal, near 0 where the pairs stand apart.

    Raises:
        ValueError: the shapes do not fit.
    """
    if world_size() > 1:
        return gathered.contrastive_loss(image_embeddings, text_embeddings, logit_scale, ids, chunk_size)
    if chunk_size is None and len(image_embeddings) < CHUNKED_FROM:
        return reference.contrastive_loss(image_embeddings, text_embeddings, logit_scale, ids)
    return chunked.contrastive_loss(image_embeddings, text_embeddings, logit_scale, ids, chunk_size)


def sigmoid_loss(
    image_embeddings: Tensor,
    text_embeddings: Tensor,
    logit_scale: Tensor | float,
    logit_bias: Tensor | float,
    ids: Tensor | None = None,
    chunk_size: int | None = None,
) -> Tensor:
    """SigLIP's loss over a batch of matching pairs, in the form that suits the batch's size.

    Args:
        image_embeddings: (N, E), any length: they are normalised here. Row i belongs to row i of the texts.
        text_embeddings: (N, E).
        logit_scale: the factor on the cosine similarities (not its logarithm), at least 0.
        logit_bias: added to every logit; SigLIP starts at -10, the scale at 10.
        ids: (N,) integers; pairs of different rows that share an id count neither as right nor as wrong.
        chunk_size: as in `contrastive_loss`.

    Returns:
        A scalar, at least in float32.

    Raises:
        ValueError: the shapes do not fit.
    """
    if world_size() > 1:
        return gathered.sigmoid_loss(image_embeddings, text_embeddings, logit_scale, logit_bias, ids, chunk_size)
    if chunk_size is None and len(image_embeddings) < CHUNKED_FROM:
        return reference.sigmoid_loss(image_embeddings, text_embeddings, logit_scale, logit_bias, ids)
    return chunked.sigmoid_loss(image_embeddings, text_embeddings, logit_scale, logit_bias, ids, chunk_size)


__all__ = ["contrastive_loss", "sigmoid_loss"]
