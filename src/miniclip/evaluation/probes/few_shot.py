"""Few-shot probes: linear probes on k training images per class, drawn with several seeds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from miniclip.evaluation.probes.linear_models import Features
from miniclip.evaluation.probes.linear_probe import ProbeResult, Protocol, Splits, encode_splits, probe
from miniclip.inference.batching import progress_bar
from miniclip.utils.checks import whole_number
from miniclip.utils.items import listed

SHOTS = (1, 2, 4, 8, 16)
SEEDS = 3


def few_shot(
    model: Any,
    train: Any,
    test: Any,
    validation: Any = None,
    *,
    protocol: Protocol = "lbfgs",
    shots: Sequence[int] = SHOTS,
    seeds: int = SEEDS,
    progress: bool = False,
) -> dict[int, list[float]]:
    """Measure `linear_probe` with few images per class; every image is encoded once.

    Args:
        model: a CLIPModel.
        train: a labelled dataset, from which the images are drawn.
        test: another one with the same classes.
        validation: another one for the sweep; None: a fixed strength.
        protocol: "lbfgs" or "adamw".
        shots: numbers of training images per class.
        seeds: number of draws for each, with the seeds 0, 1, ….
        progress: show progress bars.

    Returns:
        For each number of shots, the top-1 accuracy of each seed, in percent.

    Raises:
        ValueError: as in `linear_probe`.
        ImportError: the extra `probe` is not installed.
    """
    splits = encode_splits(model, train, test, validation, protocol, progress=progress)
    results = few_shot_probes(splits, protocol, shots, seeds, progress=progress)
    return {count: [result.metrics()["top1"] for result in drawn] for count, drawn in results.items()}


def few_shot_probes(
    splits: Splits, protocol: Protocol, shots: Sequence[int], seeds: int, *, progress: bool = False
) -> dict[int, list[ProbeResult]]:
    """Train and measure the probes on features; arguments as in `few_shot`."""
    counts = [whole_number("shots", count, 1) for count in listed(shots, "shots", "numbers of images per class")]
    seeds = whole_number("seeds", seeds, 1)
    results: dict[int, list[ProbeResult]] = {count: [] for count in counts}
    with progress_bar(len(results) * seeds, " probes", progress, "few-shot") as advance:
        for count, drawn in results.items():
            for seed in range(seeds):
                drawn.append(probe(splits, protocol, shots=count, seed=seed))
                advance(1)
    return results


def possible_shots(train: Features, class_names: Sequence[str]) -> list[int]:
    """Return the usual numbers of shots that the smallest class has.

    Raises:
        ValueError: a class has no training image.
    """
    counts = torch.bincount(train.labels, minlength=len(class_names))
    smallest = int(counts.min())
    if smallest < 1:
        name = class_names[int(counts.argmin())]
        raise ValueError(f"the class {name!r} has no training images; few-shot probes need some of each class")
    return [count for count in SHOTS if count <= smallest]
