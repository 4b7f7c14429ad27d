"""Tasks "zero-shot", "probe" and "few-shot"."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from miniclip.evaluation.bootstrap import Scores
from miniclip.evaluation.comparison import Metric, with_intervals
from miniclip.evaluation.features import project
from miniclip.evaluation.labelled.images import as_labelled
from miniclip.evaluation.probes.few_shot import SEEDS, few_shot_probes, possible_shots
from miniclip.evaluation.probes.linear_probe import ProbeResult, encode_splits, probe
from miniclip.evaluation.tasks.outcome import Outcome
from miniclip.evaluation.zero_shot import (
    TOP_K,
    class_metrics,
    class_vectors,
    predictions,
    ranks_of_scores,
    scale_of,
    scores,
)
from miniclip.inference.zero_shot import Template


def run_zero_shot(
    model: Any,
    data: Any,
    templates: Sequence[Template] | None = None,
    reference: Outcome | None = None,
    *,
    progress: bool = False,
) -> Outcome:
    """Measure zero-shot classification.

    Args:
        model: a CLIPModel or `CachedEncoder`.
        data: a labelled dataset.
        templates: prompts; None: those of the dataset.
        reference: the outcome of the first model.
        progress: show progress bars.
    """
    images = as_labelled(data)
    classes = class_vectors(model, images, templates, progress=progress)
    embeddings = model.encode_image(images, progress=progress)

    def predict(embeddings: Tensor) -> Any:
        return predictions(embeddings, classes, images.labels, scale_of(model), images.class_names)

    def top1(features: Tensor) -> float:
        return 100 * float(predict(project(model, features)).correct.double().mean())

    predicted = predict(embeddings)
    names = ["top1", "top5"] if len(predicted.class_names) >= TOP_K else ["top1"]
    kept = scores(predicted)
    kept = kept._replace(hits=kept.hits[:, : len(names)])
    metrics = with_intervals(names, kept, reference and reference.scores["top"], progress=progress)
    metrics += [Metric(name, value) for name, value in class_metrics(predicted).items()]
    return Outcome(metrics, {"top": kept}, {"zero-shot top1": top1}, predicted)


def run_probe(
    model: Any, train: Any, test: Any, reference: Outcome | None = None, *, progress: bool = False
) -> Outcome:
    """Measure a linear probe in OpenAI's protocol.

    Args:
        model: a CLIPModel or `CachedEncoder`.
        train: a labelled dataset.
        test: another one with the same classes.
        reference: the outcome of the first model.
        progress: show progress bars.
    """
    splits = encode_splits(model, train, test, None, "lbfgs", progress=progress)
    result = probe(splits, "lbfgs", progress=progress)

    def top1(features: Tensor) -> float:
        ranks = ranks_of_scores(result.classifier(features.float().cpu()), result.labels)
        return 100 * float((ranks == 0).double().mean())

    kept = _scores([result])
    metrics = with_intervals(["top1"], kept, reference and reference.scores["top"], progress=progress)
    rest = {name: value for name, value in result.metrics().items() if name != "top1" and not math.isnan(value)}
    metrics += [Metric(name, value) for name, value in rest.items()]
    return Outcome(metrics, {"top": kept}, {"probe top1": top1})


def run_few_shot(
    model: Any,
    train: Any,
    test: Any,
    shots: Sequence[int] | None = None,
    seeds: int = SEEDS,
    reference: Outcome | None = None,
    *,
    progress: bool = False,
) -> Outcome:
    """Measure few-shot probes in OpenAI's protocol, each the mean over some draws of the training images.

    Args:
        model: a CLIPModel or `CachedEncoder`.
        train: a labelled dataset.
        test: another one with the same classes.
        shots: numbers of training images per class; None: those of 1, 2, 4, 8 and 16 that the smallest class has.
        seeds: number of draws.
        reference: not used: a bootstrap over images leaves out the draws of the training images, which differ more.
        progress: show progress bars.
    """
    splits = encode_splits(model, train, test, None, "lbfgs", progress=progress)
    counts = possible_shots(splits.train, as_labelled(train).class_names) if shots is None else shots
    results = few_shot_probes(splits, "lbfgs", counts, seeds, progress=progress)
    metrics, all_scores = [], {}
    for count, drawn in results.items():
        name = f"{count} shot{'s' if count > 1 else ''}"
        all_scores[name] = _scores(drawn)
        (metric,) = with_intervals([name], all_scores[name], progress=progress)
        values = tuple(each.metrics()["top1"] for each in drawn)
        metrics.append(metric._replace(seeds=values, shots=count))
    return Outcome(metrics, all_scores, {})


def _scores(results: Sequence[ProbeResult]) -> Scores:
    """Return per-image hits, averaged over the probes of several seeds."""
    hits = torch.stack([result.correct.double() for result in results]).mean(dim=0)[:, None]
    return Scores(hits, torch.ones(len(hits), dtype=torch.float64))
