"""The losses: `reference.py` is the specification, `chunked.py` needs less memory, `distributed.py` spans ranks.

`multi_positive.py` is the specification for any number of positives per row and for label smoothing, with
`multi_chunked.py` and `multi_distributed.py`.

With a process group of R ranks the batch is global. Every rank passes its own rows, any number of them, and gets the
loss of all ranks' rows together, the same number on each rank. All ranks must call the loss, or the others wait.

The gradient is R times the rank's share of the gradient of that loss, for embeddings, scale and bias alike. So the mean
over the ranks of the parameters' gradients is the gradient of one process with the whole batch. DistributedDataParallel
and FSDP take that mean, and so does `miniclip.runtime.distributed.average_gradients`. For a loss of a rank's own rows,
call `miniclip.losses.reference`.
"""

from __future__ import annotations

from torch import Tensor

from miniclip.losses import chunked, distributed, multi_chunked, multi_distributed, multi_positive, reference
from miniclip.losses.inputs import LossInputs
from miniclip.runtime.distributed import world_size

CHUNKED_FROM = 2048  # pairs; larger batches are faster in blocks, with less memory (`python -m benchmarks.losses`)
MULTI_POSITIVE_CHUNKED_FROM = 512**2  # similarities; the plain form with labels makes more copies of them


def contrastive_loss(
    image_embeddings: Tensor,
    text_embeddings: Tensor,
    logit_scale: Tensor | float,
    ids: Tensor | None = None,
    chunk_size: int | None = None,
    text_ids: Tensor | None = None,
    label_smoothing: float = 0.0,
) -> Tensor:
    """CLIP's symmetric cross-entropy over a batch, in the form that suits the batch's size.

    Args:
        image_embeddings: (N, E), of any length; normalised inside. Row i matches row i of the texts.
        text_embeddings: (N, E); (M, E) with `text_ids`.
        logit_scale: factor on the cosine similarities (not its logarithm), at least 0; the same on all ranks.
        ids: (N,) integers. Rows that share an id, such as two captions of an image, are not negatives of each other:
            their similarities are left out of the sums. None: all rows are distinct.
        chunk_size: rows and columns of the similarity matrix in memory at a time (with several ranks: columns). Memory
            then grows with N instead of N^2. None: the whole matrix of a small batch, blocks of a large one.
        text_ids: (M,) integers, labels of the texts; `ids` then are labels of the images, (N,), or (N, L) for several
            per image. An image and a text that share a label are positives, in any rows. Each row's loss is
            the mean of -log softmax over its positives (Khosla et al. 2020, L_out); rows without a positive are only
            negatives. None: row i matches row i.
        label_smoothing: in 0..1. As in `torch.nn.functional.cross_entropy`, this part of each row's target is spread
            over all its classes; a similarity that `ids` leave out is not a class.

    Returns:
        A scalar in float32 or float64: log N if all embeddings are equal, near 0 if the pairs are well separated. In
        blocks or with several ranks it can be differentiated once. NaN if no row has a positive.

    Raises:
        ValueError: the shapes do not match, here or between ranks, or a number is out of its range.
        TypeError: an input is not a tensor, or not of the right dtype.
    """
    inputs = LossInputs(
        image_embeddings, text_embeddings, logit_scale, None, ids, chunk_size, text_ids, label_smoothing
    )
    inputs.check()
    if inputs.is_multi_positive:
        return _multi_positive_loss(inputs)
    if _in_one_piece(inputs):
        (scale,) = inputs.scalars
        return reference.contrastive_loss(image_embeddings, text_embeddings, scale, inputs.pair_ids)
    return _fast_loss(inputs)


def sigmoid_loss(
    image_embeddings: Tensor,
    text_embeddings: Tensor,
    logit_scale: Tensor | float,
    logit_bias: Tensor | float,
    ids: Tensor | None = None,
    chunk_size: int | None = None,
    text_ids: Tensor | None = None,
    label_smoothing: float = 0.0,
) -> Tensor:
    """SigLIP's pairwise loss over a batch, in the form that suits the batch's size.

    Args:
        image_embeddings: as in `contrastive_loss`, and so are the others.
        text_embeddings: as in `contrastive_loss`.
        logit_scale: as in `contrastive_loss`; SigLIP starts at 10.
        logit_bias: added to every logit; SigLIP starts at -10.
        ids: (N,) integers; pairs of different rows that share an id are left out of the sum.
        chunk_size: as in `contrastive_loss`.
        text_ids: as in `contrastive_loss`. The sum over all images and texts is divided by the number of positives,
            which is N for pairs.
        label_smoothing: in 0..1, over the two classes of an element: the target of a positive is 1 - e/2, that of a
            negative e/2. There are many more negatives, so use far smaller values than for the contrastive loss.

    Returns:
        As `contrastive_loss`, but infinite if no row has a positive.

    Raises:
        ValueError: as in `contrastive_loss`.
        TypeError: as in `contrastive_loss`.
    """
    if logit_bias is None:
        raise TypeError(
            "logit_bias is None; expected a number or a tensor (): use contrastive_loss for a model without one"
        )
    inputs = LossInputs(
        image_embeddings, text_embeddings, logit_scale, logit_bias, ids, chunk_size, text_ids, label_smoothing
    )
    inputs.check()
    if inputs.is_multi_positive:
        return _multi_positive_loss(inputs)
    if _in_one_piece(inputs):
        scale, bias = inputs.scalars
        return reference.sigmoid_loss(image_embeddings, text_embeddings, scale, bias, inputs.pair_ids)
    return _fast_loss(inputs)


def _in_one_piece(inputs: LossInputs) -> bool:
    is_small = sum(inputs.images.shape[:1]) < CHUNKED_FROM  # the form refuses other shapes than (N, E)
    return world_size() == 1 and inputs.chunk_size is None and is_small


def _fast_loss(inputs: LossInputs) -> Tensor:
    return distributed.loss(inputs) if world_size() > 1 else chunked.loss(inputs)


def _multi_positive_loss(inputs: LossInputs) -> Tensor:
    if world_size() > 1:
        return multi_distributed.loss(inputs)
    inputs.check_shapes()
    elements = len(inputs.images) * len(inputs.texts)
    in_one_piece = inputs.chunk_size is None and elements < MULTI_POSITIVE_CHUNKED_FROM
    return multi_positive.loss(inputs) if in_one_piece else multi_chunked.loss(inputs)


__all__ = ["contrastive_loss", "sigmoid_loss"]
