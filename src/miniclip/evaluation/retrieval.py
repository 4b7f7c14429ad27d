"""Image-text retrieval recall (R@K) in both directions.

The protocol is the usual one for Flickr30k and COCO (Karpathy and Fei-Fei 2015, https://arxiv.org/abs/1412.2306).
Image to text: an image counts as a hit at K if any of its captions is among the K nearest captions.
Text to image: a caption counts as a hit at K if its image is among the K nearest images.
Letters: N images, M captions, E embedding.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from miniclip.data.cache.reading import require_pixels
from miniclip.data.given import as_dataset
from miniclip.evaluation.bootstrap import Scores
from miniclip.inference.batching import progress_bar
from miniclip.utils.checks import whole_number
from miniclip.utils.items import describe, listed

KS = (1, 5, 10)
ROWS, COLUMNS = 1024, 65_536  # block of the similarity matrix, whose N x M numbers would not fit; 256 MiB

Recalls = dict[str, dict[str, float]]


class Encoder(Protocol):
    """Model interface that evaluation needs."""

    def encode_image(self, images: Any, /) -> Tensor:
        """Return unit vectors (N, E)."""

    def encode_text(self, texts: Any, /) -> Tensor:
        """Return unit vectors (M, E)."""


class Embeddings(NamedTuple):
    """Embeddings of a dataset's images and captions."""

    images: Tensor  # (N, E) unit vectors
    texts: Tensor  # (M, E) unit vectors
    image_indices: Tensor  # (M,) int64: the image of each caption


class LazyImages(Sequence[Any]):
    """Images of a dataset without their captions; each is opened when it is indexed."""

    def __init__(self, data: Any) -> None:
        self.data = data

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: Any) -> Any:
        """Return an image, or a list of images for a slice."""
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        return self.data[index][0]


def retrieval(model: Encoder, data: Any) -> Recalls:
    """Measure retrieval recall in both directions.

    Args:
        model: any object with `encode_image` and `encode_text`.
        data: an image-caption dataset: `data[i]` is `(image, captions)`, `data.captions` holds all captions.

    Returns:
        `{"image_to_text": {"R@1": …, "R@5": …, "R@10": …}, "text_to_image": {…}}`, in percent.

    Raises:
        TypeError: the model or the data are something else.
        ValueError: the data are empty, an image has no caption, or a cache was built for another model.
    """
    if not (hasattr(model, "encode_image") and hasattr(model, "encode_text")):
        raise TypeError(
            f"model: found {describe(model)}; expected a model with encode_image and encode_text, as miniclip.load "
            "returns"
        )
    data = as_dataset(data)
    if not len(data):
        raise ValueError("data: the dataset is empty; expected at least one image")
    require_pixels(data, model)
    return recalls(embed(model, data.captions, LazyImages(data)))


def embed(model: Encoder, captions: Sequence[Sequence[str]], images: Any, *, progress: bool = False) -> Embeddings:
    """Embed images, in any form that the model accepts, and all captions of each image."""
    counts = torch.tensor([len(group) for group in captions], dtype=torch.int64, device="cpu")
    texts = [caption for group in captions for caption in group]
    options: dict[str, Any] = {"progress": True} if progress else {}  # a user's own model need not have it
    image_embeddings, text_embeddings = model.encode_image(images, **options), model.encode_text(texts, **options)
    _check_rows("encode_image", image_embeddings, len(counts))
    _check_rows("encode_text", text_embeddings, len(texts))
    image_indices = torch.arange(len(counts), device="cpu").repeat_interleave(counts).to(image_embeddings.device)
    return Embeddings(image_embeddings, text_embeddings, image_indices)


def _check_rows(method: str, rows: Any, count: int) -> None:
    """Raise ValueError if a model's method did not return one embedding for each input."""
    if not isinstance(rows, Tensor) or rows.dim() != 2 or len(rows) != count:
        raise ValueError(f"the model's {method} returned {describe(rows)}; expected a tensor ({count}, E)")


def recalls(embeddings: Embeddings, ks: Sequence[int] = KS) -> Recalls:
    """Compute recall at each K in both directions.

    Worked example: two images at 0 and 90 degrees, their captions at 10 and 20 degrees. Both captions are nearest to
    the first image, so text-to-image R@1 is 50. Each image is nearest to its own caption, so image-to-text R@1 is 100.

    Args:
        embeddings: unit vectors, and the image of each caption.
        ks: values of K.

    Returns:
        `{"image_to_text": {"R@1": percent, …}, "text_to_image": {…}}`.

    Raises:
        TypeError: the embeddings or the values of K are something else.
        ValueError: the tensors are empty, their shapes do not fit, or the image of a caption does not exist.
    """
    _check_embeddings(embeddings)
    ks = [whole_number("k", k, 1) for k in listed(ks, "ks", "values of K in a list")]
    ranks = ranks_of(embeddings)
    return {way: {f"R@{k}": 100 * float((rank < k).double().mean()) for k in ks} for way, rank in ranks.items()}


def _check_embeddings(embeddings: Any) -> None:
    """Raise TypeError or ValueError if `Embeddings` are not those of N images and M captions."""
    if not isinstance(embeddings, Embeddings) or not all(isinstance(part, Tensor) for part in embeddings):
        raise TypeError(f"embeddings: found {describe(embeddings)}; expected Embeddings of three tensors")
    images, texts, image_indices = embeddings
    shapes = ", ".join(str(tuple(part.shape)) for part in embeddings)
    fits = images.dim() == texts.dim() == 2 and images.shape[1:] == texts.shape[1:]
    if not fits or image_indices.shape != texts.shape[:1] or not len(images) or not len(texts):
        raise ValueError(f"embeddings: found the shapes {shapes}; expected (N, E), (M, E) and (M,), N and M at least 1")
    lowest, highest = int(image_indices.min()), int(image_indices.max())
    if lowest < 0 or highest >= len(images):
        raise ValueError(f"embeddings: images {lowest} to {highest} of captions; there are 0 to {len(images) - 1}")


def ranks_of(embeddings: Embeddings, *, progress: bool = False) -> dict[str, Tensor]:
    """Return the ranks of the right answers in both directions: (N,) and (M,), 0 is best."""
    return {
        "image_to_text": image_to_text_ranks(embeddings, progress=progress),
        "text_to_image": text_to_image_ranks(embeddings, progress=progress),
    }


def median_ranks(ranks: Mapping[str, Tensor]) -> dict[str, float]:
    """Return the median rank of the right answer in both directions, from `ranks_of`; here 1 is best."""
    return {way: _median(rank) + 1 for way, rank in ranks.items()}


def _median(values: Tensor) -> float:
    """Return the median; the mean of the middle two of an even number. `quantile` is limited to 16M values."""
    ordered, N = values.sort().values, len(values)
    return float(ordered[[(N - 1) // 2, N // 2]].double().mean())


def recall_scores(ranks: Mapping[str, Tensor], image_indices: Tensor, ks: Sequence[int] = KS) -> dict[str, Scores]:
    """Return the per-image hits of `recalls`, for confidence intervals; the columns are the values of K.

    Args:
        ranks: from `ranks_of`.
        image_indices: (M,) the image of each caption.
        ks: values of K.
    """
    image_hits, caption_hits = (
        (ranks[way].cpu()[:, None] < torch.tensor(ks)).double() for way in ("image_to_text", "text_to_image")
    )
    image_indices, N = image_indices.cpu(), len(image_hits)
    hits = torch.zeros(N, len(ks), dtype=torch.float64).index_add_(0, image_indices, caption_hits)
    return {
        "image_to_text": Scores(image_hits, torch.ones(N, dtype=torch.float64)),
        "text_to_image": Scores(hits, torch.bincount(image_indices, minlength=N).double()),
    }


def text_to_image_ranks(embeddings: Embeddings, *, progress: bool = False) -> Tensor:
    """Return the rank of each caption's image among all images: (M,), 0 is best.

    Ties and NaN count against the model; otherwise a model that maps everything to one point would score 100.
    """
    ranks = []
    for start in _starts(len(embeddings.texts), " captions", progress):
        own = embeddings.image_indices[start : start + ROWS, None]
        blocks = Similarities(embeddings.texts[start : start + ROWS], embeddings.images)
        positive = torch.full(own.shape, torch.nan, dtype=embeddings.texts.dtype, device=own.device)
        for first, similarity in blocks:
            column = own - first
            inside = (column >= 0) & (column < similarity.shape[1])
            value = similarity.gather(1, column.clamp(0, similarity.shape[1] - 1))
            positive = torch.where(inside, value, positive)
        count = torch.full_like(own[:, 0], -1)  # the right image itself
        for _, similarity in blocks:
            count += (~(similarity < positive)).sum(dim=1)
        ranks.append(count)
    return torch.cat(ranks)


def image_to_text_ranks(embeddings: Embeddings, *, progress: bool = False) -> Tensor:
    """Return the rank of each image's nearest caption among the captions of other images: (N,), 0 is best."""
    ranks = []
    for start in _starts(len(embeddings.images), " images", progress):
        blocks = Similarities(embeddings.images[start : start + ROWS], embeddings.texts)
        rows = torch.arange(start, min(start + ROWS, len(embeddings.images)), device=embeddings.texts.device)[:, None]
        positive = torch.full(rows.shape, -torch.inf, dtype=embeddings.texts.dtype, device=rows.device)
        for first, similarity in blocks:
            is_positive = embeddings.image_indices[first : first + similarity.shape[1]] == rows
            nearest = similarity.masked_fill(~is_positive, -torch.inf).amax(dim=1, keepdim=True)
            positive = torch.maximum(positive, nearest)
        count = torch.zeros_like(rows[:, 0])
        for first, similarity in blocks:
            is_positive = embeddings.image_indices[first : first + similarity.shape[1]] == rows
            count += (~(similarity < positive) & ~is_positive).sum(dim=1)
        ranks.append(count)
    return torch.cat(ranks)


def _starts(total: int, unit: str, progress: bool) -> Iterator[int]:
    """Yield the first row of each block of rows."""
    with progress_bar(total, unit, progress, "ranks", delay=1) as advance:
        for start in range(0, total, ROWS):
            yield start
            advance(min(ROWS, total - start))


class Similarities:
    """Cosines of some rows with all columns, in blocks of columns: pairs of first column and block.

    Two iterations give bit for bit the same numbers, so that equal embeddings are ties. Up to `COLUMNS` columns are
    one block, which is computed once.
    """

    def __init__(self, rows: Tensor, columns: Tensor) -> None:
        self.rows, self.columns = rows, columns
        self.only = rows @ columns.T if len(columns) <= COLUMNS else None

    def __iter__(self) -> Iterator[tuple[int, Tensor]]:
        if self.only is not None:
            yield 0, self.only
            return
        total = len(self.columns)
        for first in range(0, total, COLUMNS):
            begin = min(first, total - COLUMNS)  # products of equal shape round equally
            yield first, (self.rows @ self.columns[begin : begin + COLUMNS].T)[:, first - begin :]
