"""Evaluation tasks as `miniclip eval` runs them: metrics with intervals, compared with the first model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple, get_args

import torch

from miniclip.errors import DataError
from miniclip.evaluation.bootstrap import Scores
from miniclip.evaluation.comparison import Metric, with_intervals
from miniclip.evaluation.corruptions import CORRUPTIONS, SEVERITIES, CorruptedImages
from miniclip.evaluation.labelled import ClassFolders, LabelledImages
from miniclip.evaluation.linear_probe import encode_splits, probe
from miniclip.evaluation.retrieval import KS, LazyImages, embed, median_ranks, ranks_of, recall_scores
from miniclip.evaluation.shape_classes import Attribute, ShapeClasses
from miniclip.evaluation.zero_shot import Predictions, class_metrics, predict, predictions, scores
from miniclip.inference.zero_shot import Template, class_embeddings


class Outcome(NamedTuple):
    """Outcome of one model on one task."""

    metrics: list[Metric]
    scores: dict[str, Scores]  # per-image scores, for comparisons with other models
    predictions: Predictions | None = None


def run_retrieval(model: Any, data: Any, reference: Outcome | None = None) -> Outcome:
    """Measure retrieval in both directions; arguments as in `retrieval`, and the outcome of the first model."""
    embeddings = embed(model, data.captions, LazyImages(data))
    ranks = ranks_of(embeddings)
    all_scores, metrics = recall_scores(ranks, embeddings.image_indices), []
    for way, median in median_ranks(ranks).items():
        names = [f"{way} R@{k}" for k in KS]
        metrics += with_intervals(names, all_scores[way], reference and reference.scores[way])
        metrics.append(Metric(f"{way} median rank", median))
    return Outcome(metrics, all_scores)


def run_zero_shot(
    model: Any, data: Any, templates: Sequence[Template] | None = None, reference: Outcome | None = None
) -> Outcome:
    """Measure zero-shot classification; arguments as in `zero_shot`, and the outcome of the first model."""
    predicted = predict(model, data, templates=templates)
    names = ["top1", "top5"] if len(predicted.class_names) >= 5 else ["top1"]
    kept = scores(predicted)
    kept = kept._replace(hits=kept.hits[:, : len(names)])
    metrics = with_intervals(names, kept, reference and reference.scores["top"])
    metrics += [Metric(name, value) for name, value in class_metrics(predicted).items()]
    return Outcome(metrics, {"top": kept}, predicted)


def run_probe(model: Any, train: Any, test: Any, reference: Outcome | None = None) -> Outcome:
    """Measure a linear probe in OpenAI's protocol, and the outcome of the first model."""
    result = probe(encode_splits(model, train, test, None, "lbfgs"), "lbfgs")
    hits = result.correct.double()[:, None]
    kept = Scores(hits, torch.ones(len(hits), dtype=torch.float64))
    metrics = with_intervals(["top1"], kept, reference and reference.scores["top"])
    rest = {name: value for name, value in result.metrics().items() if name != "top1"}
    return Outcome(metrics + [Metric(name, value) for name, value in rest.items()], {"top": kept})


def run_corruptions(
    model: Any, data: Any, templates: Sequence[Template] | None = None, reference: Outcome | None = None
) -> Outcome:
    """Measure zero-shot classification of corrupted images; without a comparison to the first model.

    Returns:
        Metrics: top-1 without corruption; the mean over the five severities of each corruption; their mean; and the
        drop that it means.
    """
    images = LabelledImages(data)
    classes = class_embeddings(
        model.encode_text, images.class_names, images.templates if templates is None else templates
    )
    scale = model.log_scale.detach().exp()

    def top1(items: Any) -> float:
        predicted = predictions(model.encode_image(items), classes, images.labels, scale, images.class_names)
        return 100 * float(predicted.correct.double().mean())

    clean = top1(images)
    corrupted = {
        name: fmean(top1(CorruptedImages(images, model.preprocess, name, severity)) for severity in SEVERITIES)
        for name in CORRUPTIONS
    }
    mean = fmean(corrupted.values())
    rows = {"top1": clean, **corrupted, "mean of the corruptions": mean, "drop": clean - mean}
    return Outcome([Metric(name, value) for name, value in rows.items()], {})


def open_labelled(spec: str, split: Any) -> dict[str, Any]:
    """Open labelled datasets by a name on the command line.

    Args:
        spec: "shapes" for both "shapes:color" and "shapes:shape", or a folder with a folder per class, with or without
            folders train, val and test above them.
        split: "train", "val" or "test"; "val" and "all" take all images of a folder without splits.

    Returns:
        Name of the classes to dataset.

    Raises:
        DataError: the dataset does not exist, or lacks the split.
    """
    if spec == "shapes":
        return {attribute: ShapeClasses(attribute, split) for attribute in get_args(Attribute)}
    if spec.startswith("shapes:"):
        return {spec[7:]: ShapeClasses(spec[7:], split)}  # type: ignore[arg-type]
    root = Path(spec)
    if not root.is_dir():
        found = "not a folder" if root.exists() else "does not exist"
        raise DataError(f"{spec}: {found}; expected 'shapes', or a folder with a folder per class")
    splits = [name for name in ("train", "val", "test") if (root / name).is_dir()]
    if splits and split not in splits:
        raise DataError(f"{spec}: found the splits {', '.join(splits)}, expected {split}")
    if not splits and split not in ("val", "all"):  # the default, and all
        raise DataError(
            f"{spec}: has no folders train, val and test above its class folders, and {split} is needed; put the "
            f"images of each split into a folder, as in {root.name}/train/cat/1.jpg"
        )
    return {root.name: ClassFolders(root / split if splits else root)}
