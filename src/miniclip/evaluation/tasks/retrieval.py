"""Task "retrieval"."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from miniclip.evaluation.comparison import Metric, with_intervals
from miniclip.evaluation.features import project, require_finite
from miniclip.evaluation.retrieval import (
    KS,
    Embeddings,
    LazyImages,
    embed,
    image_to_text_ranks,
    median_ranks,
    ranks_of,
    recall_scores,
    text_to_image_ranks,
)
from miniclip.evaluation.robustness import Figure
from miniclip.evaluation.tasks.outcome import Outcome


def run_retrieval(model: Any, data: Any, reference: Outcome | None = None, *, progress: bool = False) -> Outcome:
    """Measure retrieval in both directions.

    Args:
        model: a CLIPModel or `CachedEncoder`.
        data: a dataset of images with captions.
        reference: the outcome of the first model.
        progress: show progress bars.
    """
    embeddings = embed(model, data.captions, LazyImages(data), progress=progress)
    require_finite(embeddings.images, "image embeddings")
    require_finite(embeddings.texts, "caption embeddings")
    ranks = ranks_of(embeddings, progress=progress)
    all_scores, metrics = recall_scores(ranks, embeddings.image_indices), []
    for way, median in median_ranks(ranks).items():
        names = [f"{way} R@{k}" for k in KS]
        metrics += with_intervals(names, all_scores[way], reference and reference.scores[way], progress=progress)
        metrics.append(Metric(f"{way} median rank", median))
    return Outcome(metrics, all_scores, _figures(model, embeddings))


def _figures(model: Any, embeddings: Embeddings) -> dict[str, Figure]:
    def figure(ranks: Any) -> Figure:
        def compute(features: Tensor) -> float:
            rank = ranks(embeddings._replace(images=project(model, features)))
            return 100 * float((rank == 0).double().mean())

        return compute

    return {"image_to_text R@1": figure(image_to_text_ranks), "text_to_image R@1": figure(text_to_image_ranks)}
