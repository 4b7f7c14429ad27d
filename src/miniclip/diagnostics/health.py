"""What a look at a running training measures, besides the loss: how the embeddings lie, and what a batch repeats.

Of unit vectors x of pictures and y of their captions (Wang and Isola 2020, https://arxiv.org/abs/2005.10242):

    alignment  = mean_i |x_i - y_i|^2                              0: each pair at one point; 2: unrelated
    uniformity = log mean_{i != j} exp(-2 |x_i - x_j|^2), a side   0: all at one point; -4: spread over many dimensions

and of the singular values s of a side's embeddings (Roy and Vetterli 2007, "The effective rank"):

    effective rank = exp(-sum_k p_k log p_k),  p_k = s_k / sum s   1: all along one line; min(n, E): in every direction

They are taken of the first `ROWS` pairs of the batch, on the CPU and in float64: a millisecond, whatever the batch.
Letters: B batch (n of its rows here), E embedding.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from miniclip.data.loader import Batch
from miniclip.models.clip import CLIPOutput
from miniclip.runs.history import Record
from miniclip.runtime import distributed
from miniclip.train.config import Loss

if TYPE_CHECKING:
    from miniclip.tokenizer import TextTokenizer

ROWS = 128  # pairs whose embeddings are looked at; the greatest effective rank that can be seen
BYTES = 2048  # of a picture that are compared with the others', evenly spread over it


def look(batch: Batch, out: CLIPOutput, first: int, tokenizer: TextTokenizer | None, loss: Loss) -> Record:
    """The figures of a batch and its embeddings, for the record of its step. Several ranks must call it together.

    Args:
        batch: this rank's rows.
        out: their embeddings, without gradient.
        first: which row of the whole batch the first of them is.
        tokenizer: the model's; it says where a caption ends.
        loss: the name of the loss.

    Returns:
        `alignment`, and of each side `uniformity_…` and `effective_rank_…`, where the embeddings are finite;
        `pairs` of the batch; of them distinct `captions`, and their logarithm `log_captions`; distinct `pictures`;
        `loss_nothing` and `loss_least`, the loss of a model that tells nothing apart, and of one that tells all
        captions apart that differ.
    """
    mine = slice(0, max(0, ROWS - first))
    images, texts = (distributed.gather(side[mine].contiguous()).cpu().double() for side in out[:2])
    keys = torch.stack([caption_keys(batch.tokens, tokenizer), picture_keys(batch.pixels)], dim=1)
    of_all = distributed.gather(keys.to(out[0].device)).T.tolist()
    captions, pictures = Counter[int](of_all[0]), set(of_all[1])
    n = captions.total()
    return {
        **embedding_figures(images, texts),
        "pairs": n,
        "captions": len(captions),
        "log_captions": math.log(len(captions)),
        "pictures": len(pictures),
        "loss_nothing": knowing_nothing(n, loss),
        "loss_least": sum(count * knowing_nothing(count, loss) for count in captions.values()) / n,
    }


class Figures(NamedTuple):
    """How embeddings lie; see the head of the file."""

    alignment: float
    uniformity_image: float
    uniformity_text: float
    effective_rank_image: float
    effective_rank_text: float


def embedding_figures(images: Tensor, texts: Tensor) -> Record:
    """The figures of matching unit vectors (n, E), by name; none where one is not finite."""
    if not bool(images.isfinite().all() and texts.isfinite().all()):
        return {}
    return Figures(
        alignment(images, texts),
        *(uniformity(side) for side in (images, texts)),
        *(effective_rank(side) for side in (images, texts)),
    )._asdict()


def alignment(images: Tensor, texts: Tensor) -> float:
    """The mean squared distance of matching unit vectors (n, E): in 0..4, and 2 where they have nothing in common."""
    return float((images - texts).square().sum(dim=1).mean())


def uniformity(x: Tensor) -> float:
    """How evenly unit vectors (n, E) lie on the sphere: the log of the mean of exp(-2 d^2) over all distances d.

    In -8..0. Of two opposite points -8, of two at a right angle -4, of equal ones 0; of a single one 0 too.
    """
    n = len(x)
    if n < 2:
        return 0.0
    squared = (2 - 2 * (x @ x.T)).clamp(min=0)  # (n, n)
    return float((torch.exp(-2 * squared).sum() - torch.exp(-2 * squared.diagonal()).sum()).div(n * (n - 1)).log())


def effective_rank(x: Tensor) -> float:
    """How many directions the rows (n, E) take up: the exponential of the entropy of their singular values.

    Of three rows along one line 1, of two at a right angle 2.
    """
    gram = x @ x.T if len(x) < x.shape[1] else x.T @ x  # its eigenvalues are the squares of the singular values
    values = torch.linalg.eigvalsh(gram).clamp(min=0).sqrt()
    share = values / values.sum()
    return float(torch.special.entr(share).sum().exp())


def knowing_nothing(n: int, loss: Loss) -> float:
    """The loss of a model that tells none of n pairs from another, and whose scale and bias are the best for that.

    Contrastive: log n. Sigmoid: each of the n similarities of a row is taken for the match with probability 1/n, and
    costs log n + (n - 1) log(n / (n - 1)).
    """
    if loss == "contrastive" or n < 2:
        return math.log(n)
    return math.log(n) + (n - 1) * math.log(n / (n - 1))


def learned(record: Record) -> float | None:
    """How far the loss of a look has come, from knowing nothing (0) to telling all apart that differs (1).

    None: the record is no look's, or there is nothing to tell apart.
    """
    loss, nothing, least = (record.get(name) for name in ("loss", "loss_nothing", "loss_least"))
    if loss is None or nothing is None or least is None or nothing - least < 1e-6:
        return None
    return float((nothing - loss) / (nothing - least))


def caption_keys(tokens: Tensor, tokenizer: TextTokenizer | None) -> Tensor:
    """A number for each row of ids (n, T), the same for the same caption however far it is padded: (n,) int64."""
    end_id = None if tokenizer is None else tokenizer.end_id
    ends = tokens.shape[1] if end_id is None else (tokens == end_id).int().argmax(dim=1).add(1)
    widths = torch.full((len(tokens),), ends) if isinstance(ends, int) else ends
    rows = tokens.cpu().numpy()
    return _keys(row[:width].tobytes() for row, width in zip(rows, widths.tolist(), strict=True))


def picture_keys(pixels: Tensor) -> Tensor:
    """A number for each picture (n, 3, S, S) uint8, the same for the same pixels: (n,) int64.

    `BYTES` of each are looked at, or few more: pictures that differ nowhere else are the same to a training, too.
    """
    flat = pixels.flatten(1)
    every = max(1, flat.shape[1] // BYTES) | 1  # odd, so that it takes other columns in other rows
    return _keys(row.tobytes() for row in flat[:, ::every].contiguous().cpu().numpy())


def _keys(rows: Iterable[bytes]) -> Tensor:
    digests = [hashlib.blake2b(row, digest_size=8).digest() for row in rows]
    return torch.tensor([int.from_bytes(digest, "big", signed=True) for digest in digests], dtype=torch.int64)
