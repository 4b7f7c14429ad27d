"""Models between a pretrained and a fine-tuned one: the gain on new data against the loss on old data, for each alpha.

The rule of `choose` is that of WiSE-FT with a limit: the greatest score on the new data among the models that lose at
most a given number of points on the old data. Both are validation data; report test figures of the chosen model only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from miniclip.checkpoints.native import unwrap_clip
from miniclip.evaluation.bootstrap import Scores
from miniclip.evaluation.comparison import Metric, with_intervals
from miniclip.evaluation.features import require_finite
from miniclip.evaluation.labelled.images import as_labelled
from miniclip.evaluation.retrieval import LazyImages, embed, ranks_of, recall_scores
from miniclip.evaluation.zero_shot import class_vectors, predictions, scale_of, scores
from miniclip.finetuning.interpolation import interpolate, require_same_kind
from miniclip.inference.kept_pixels import KeptPixels
from miniclip.inference.model import CLIPModel

ALPHAS = tuple(step / 10 for step in range(11))
Measure = Callable[[Any], Scores]


class Point(NamedTuple):
    """A model between two.

    Attributes:
        alpha: the share of the fine-tuned model.
        new: its score on the new data, in percent, with interval, and the difference to alpha 0.
        old: the same on the old data.
    """

    alpha: float
    new: Metric
    old: Metric


def retrieval_measure(data: Any) -> Measure:
    """Return the measure `retrieval_scores` on data whose images are decoded once for all models."""
    images = KeptPixels(LazyImages(data))
    return lambda model: retrieval_scores(model, data, images.of(model))


def zero_shot_measure(data: Any) -> Measure:
    """Return the measure `zero_shot_scores` on data whose images are decoded once for all models."""
    labelled = as_labelled(data)
    images = KeptPixels(labelled)
    return lambda model: zero_shot_scores(model, labelled, images.of(model))


def retrieval_scores(model: Any, data: Any, images: Any = None) -> Scores:
    """Return per-image scores whose mean is the mean R@1 of both directions.

    The number of captions of an image counts as in text-to-image recall. Its variation over resampled images is left
    out of intervals; it is zero if all images have the same number of captions.

    Args:
        model: a CLIPModel.
        data: an image-caption dataset.
        images: the dataset's images in a form that the model takes; None: they are read from the dataset.
    """
    embeddings = embed(model, data.captions, LazyImages(data) if images is None else images)
    require_finite(embeddings.images, "image embeddings")
    require_finite(embeddings.texts, "caption embeddings")
    hits = recall_scores(ranks_of(embeddings), embeddings.image_indices, ks=(1,))
    images, captions = hits["image_to_text"], hits["text_to_image"]
    per_caption = len(images.counts) / float(captions.counts.sum())
    return Scores((images.hits + per_caption * captions.hits) / 2, images.counts)


def zero_shot_scores(model: Any, data: Any, images: Any = None) -> Scores:
    """Return per-image scores whose mean is the top-1 accuracy of zero-shot classification.

    Args:
        model: a CLIPModel.
        data: a labelled dataset.
        images: as in `retrieval_scores`; they have been read from `data`, a `LabelledImages`, which notes the classes.
    """
    labelled = as_labelled(data)
    classes = class_vectors(model, labelled, None)
    embeddings = model.encode_image(labelled if images is None else images)
    top = scores(predictions(embeddings, classes, labelled.labels, scale_of(model), labelled.class_names))
    return Scores(top.hits[:, :1], top.counts)


def sweep(a: CLIPModel, b: CLIPModel, new: Measure, old: Measure, alphas: Iterable[float] = ALPHAS) -> list[Point]:
    """Measure the models between two.

    Args:
        a: the pretrained model.
        b: the fine-tuned model.
        new: per-image scores of a model on the new data.
        old: the same on the old data.
        alphas: shares of b; 0 is measured in any case, as the reference of the differences.

    Raises:
        ValueError: as `interpolate`, before anything is measured.
    """
    require_same_kind(unwrap_clip(a), unwrap_clip(b))
    points, references = [], (new(a), old(a))
    for alpha in sorted({0.0, *alphas}):
        model = interpolate(a, b, alpha)
        found = references if alpha == 0 else (new(model), old(model))
        metrics = [
            with_intervals(["score"], scores, reference)[0] for scores, reference in zip(found, references, strict=True)
        ]
        points.append(Point(alpha, *metrics))
    return points


def choose(points: Sequence[Point], allowed_loss: float) -> Point:
    """Return the point with the greatest score on the new data whose loss on the old data is allowed.

    Args:
        points: from `sweep`, with alpha 0, which loses nothing.
        allowed_loss: greatest loss on the old data in percentage points, at least 0. The smaller alpha wins a
            tie.

    Raises:
        ValueError: the allowed loss is negative.
    """
    if not allowed_loss >= 0:
        raise ValueError(f"allowed_loss is {allowed_loss}; expected percentage points, at least 0")
    start = min(points, key=lambda point: point.alpha).old.value
    allowed = [point for point in points if start - point.old.value <= allowed_loss + 1e-9]
    return max(allowed, key=lambda point: (point.new.value, -point.alpha))


def as_record(point: Point) -> dict[str, Any]:
    """Return a point as JSON values."""
    record: dict[str, Any] = {"alpha": point.alpha}
    for name, metric in (("new", point.new), ("old", point.old)):
        assert metric.difference is not None
        record |= {name: metric.value, f"{name}_low": metric.low, f"{name}_high": metric.high}
        record |= {f"{name}_difference": metric.difference.value}
        record |= {f"{name}_difference_low": metric.difference.low, f"{name}_difference_high": metric.difference.high}
    return record
