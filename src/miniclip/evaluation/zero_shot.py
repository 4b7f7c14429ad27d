"""Zero-shot classification of a labelled dataset (Radford et al. 2021, section 3.1.4).

A class is the mean of its prompts' unit vectors, normalized again. The nearest class is the prediction.
Letters: N images, C classes, E embedding.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from miniclip.evaluation.bootstrap import Scores
from miniclip.evaluation.calibration import calibration_error
from miniclip.evaluation.features import require_finite
from miniclip.evaluation.labelled.images import LabelledImages, as_labelled
from miniclip.inference.zero_shot import Template, class_embeddings

ROWS = 4096  # images at a time; the full N x C matrix of a large dataset would not fit
TOP_K = 5


class Predictions(NamedTuple):
    """Predictions for N images, without their N x C probabilities."""

    labels: Tensor  # (N,) int64, the right class
    predicted: Tensor  # (N,) int64, the most probable class
    ranks: Tensor  # (N,) int64, classes at least as probable as the right one: 0 is best
    confidence: Tensor  # (N,) probability of the predicted class
    class_names: list[str]

    @property
    def correct(self) -> Tensor:
        """(N,) bool."""
        return self.ranks == 0


def zero_shot(
    model: Any,
    data: Any,
    class_names: Sequence[str] | None = None,
    templates: Sequence[Template] | None = None,
    *,
    progress: bool = False,
) -> dict[str, float]:
    """Measure zero-shot classification.

    Args:
        model: a CLIPModel.
        data: a labelled dataset (`LabelledImages`): pairs of image and class.
        class_names: the class names in prompts; None: those of the dataset.
        templates: prompts with one `{}` for the class name, or functions of it; None: those of the dataset if it has
            any, otherwise "a photo of a {}."
        progress: show a progress bar.

    Returns:
        "top1", "top5" (NaN with fewer than 5 classes), "mean_per_class_recall", "calibration_error" and
        "calibration_error_equal_mass", in percent. Ties count against the model. Classes without images can be
        predicted; the mean per-class recall leaves them out.

    Raises:
        ValueError: class names, templates or embeddings cannot be used.
        DataError: an image has an unknown class.
    """
    return metrics(predict(model, data, class_names, templates, progress=progress))


def predict(
    model: Any,
    data: Any,
    class_names: Sequence[str] | None = None,
    templates: Sequence[Template] | None = None,
    *,
    progress: bool = False,
) -> Predictions:
    """Classify a labelled dataset; arguments and errors are those of `zero_shot`."""
    images = as_labelled(data, class_names)
    classes = class_vectors(model, images, templates, progress=progress)
    embeddings = model.encode_image(images, progress=progress)
    return predictions(embeddings, classes, images.labels, scale_of(model), images.class_names)


def class_vectors(
    model: Any, images: LabelledImages, templates: Sequence[Template] | None, *, progress: bool = False
) -> Tensor:
    """Return the unit vectors (C, E) of the classes; the templates are those given, or else the dataset's."""
    encode = partial(model.encode_text, progress=True) if progress else model.encode_text
    return class_embeddings(encode, images.class_names, images.templates if templates is None else templates)


def scale_of(model: Any) -> Tensor:
    """Return the model's temperature, as a factor of the cosines."""
    return model.log_scale.detach().exp()  # type: ignore[no-any-return]


def predictions(
    images: Tensor, classes: Tensor, labels: Tensor, scale: Tensor | float, class_names: list[str]
) -> Predictions:
    """Classify embeddings.

    Args:
        images: (N, E) unit vectors.
        classes: (C, E) unit vectors.
        labels: (N,) right classes in 0..C-1.
        scale: the model's temperature, as a factor of the cosines.
        class_names: C names.

    Raises:
        ValueError: an embedding is NaN or infinite.
    """
    require_finite(images, "image embeddings")
    require_finite(classes, "class embeddings")
    parts = []
    for start in range(0, len(images), ROWS):
        logits = scale * images[start : start + ROWS].float() @ classes.float().T  # (rows, C)
        confidence, predicted = logits.softmax(dim=1).max(dim=1)
        parts.append([predicted, ranks_of_scores(logits, labels[start : start + ROWS].to(logits.device)), confidence])
    predicted, ranks, confidence = (torch.cat(column).cpu() for column in zip(*parts, strict=True))
    return Predictions(labels, predicted, ranks, confidence, class_names)


def ranks_of_scores(scores: Tensor, labels: Tensor) -> Tensor:
    """Return the rank of the right class of each image: (N, C) scores and (N,) classes to (N,), 0 is best."""
    return (scores >= scores.gather(1, labels[:, None])).sum(dim=1) - 1


def metrics(predictions: Predictions) -> dict[str, float]:
    """Compute the metrics of `zero_shot`."""
    top1 = 100 * float(predictions.correct.double().mean())
    return {"top1": top1, "top5": top5(predictions), **class_metrics(predictions)}


def class_metrics(predictions: Predictions) -> dict[str, float]:
    """Compute the metrics that are not means over images: mean per-class recall and calibration errors."""
    confidence, correct = predictions.confidence, predictions.correct
    return {
        "mean_per_class_recall": mean_per_class_recall(predictions.labels, correct),
        "calibration_error": calibration_error(confidence, correct),
        "calibration_error_equal_mass": calibration_error(confidence, correct, equal_mass=True),
    }


def top5(predictions: Predictions) -> float:
    """Share of images whose class is among the five most probable, in percent; NaN with fewer than five classes."""
    return top5_of_ranks(predictions.ranks, len(predictions.class_names))


def top5_of_ranks(ranks: Tensor, classes: int) -> float:
    """Return the share of ranks (N,) below five, in percent; NaN with fewer than five classes."""
    return 100 * float((ranks < TOP_K).double().mean()) if classes >= TOP_K else float("nan")


def mean_per_class_recall(labels: Tensor, correct: Tensor) -> float:
    """Mean over the classes that have images of the share of right predictions, in percent."""
    count = torch.bincount(labels)
    hits = torch.bincount(labels, correct.double(), minlength=len(count))
    return 100 * float((hits[count > 0] / count[count > 0]).mean())


def confusion(predictions: Predictions) -> Tensor:
    """Return the confusion matrix (C, C): images of class i (row) predicted as class j (column)."""
    C = len(predictions.class_names)
    return torch.bincount(predictions.labels * C + predictions.predicted, minlength=C * C).view(C, C)


def scores(predictions: Predictions) -> Scores:
    """Return per-image hits of top-1 and top-5, for confidence intervals."""
    hits = torch.stack([predictions.correct, predictions.ranks < TOP_K], dim=1).double()
    return Scores(hits, torch.ones(len(hits), dtype=torch.float64))
