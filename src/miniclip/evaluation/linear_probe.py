"""Linear probes on features of the image tower, in two named protocols.

- "lbfgs" is OpenAI's (Radford et al. 2021, appendix A.3): logistic regression by L-BFGS on features before the
  projection. The inverse strength C of its L2 penalty is swept from 1e-6 to 1e6 in 97 logarithmic steps.
- "adamw" is that of CLIP_benchmark: a linear layer on unit vectors, trained by AdamW with a cosine schedule. Its weight
  decay is swept from 1e-6 to 1e2 in 97 logarithmic steps.
Both sweep on a validation split: 7 values first, then an interval around the best one that is halved four times. The
final probe is trained on the training and validation split together.
Letters: N images, D features, C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor

from miniclip.evaluation.features import image_features
from miniclip.evaluation.labelled import as_labelled
from miniclip.evaluation.linear_models import Features, Fit, adamw, lbfgs
from miniclip.evaluation.zero_shot import mean_per_class_recall

Protocol = Literal["lbfgs", "adamw"]
SHOTS = (1, 2, 4, 8, 16)
VALIDATION_FRACTION = 0.2  # share of the training images, without a validation split
# by protocol: the exponents of ten between which the strength is swept, and that of a few-shot probe without validation
RANGES: dict[str, tuple[int, int]] = {"lbfgs": (-6, 6), "adamw": (-6, 2)}
DEFAULT_STRENGTHS = {"lbfgs": 0.316, "adamw": 0.0}  # OpenAI's example; CLIP_benchmark
FITS: dict[str, Callable[[int, int], Fit]] = {"lbfgs": lbfgs, "adamw": adamw}
SWEEP_STEPS = 96


class ProbeResult(NamedTuple):
    """Result of a probe on the test split."""

    ranks: Tensor  # (N,) classes that score at least as high as the right one: 0 is best; ties count against the probe
    labels: Tensor  # (N,)
    classes: int
    strength: float  # C of "lbfgs", weight decay of "adamw"

    @property
    def correct(self) -> Tensor:
        """(N,) bool."""
        return self.ranks == 0

    def metrics(self) -> dict[str, float]:
        """Return the metrics of `linear_probe`."""
        return {
            "top1": 100 * float(self.correct.double().mean()),
            "top5": 100 * float((self.ranks < 5).double().mean()) if self.classes >= 5 else float("nan"),
            "mean_per_class_recall": mean_per_class_recall(self.labels, self.correct),
            "strength": self.strength,
        }


class Splits(NamedTuple):
    """Features of all splits of a dataset with C classes."""

    train: Features
    test: Features
    validation: Features | None
    classes: int


def linear_probe(
    model: Any,
    train: Any,
    test: Any,
    validation: Any = None,
    *,
    protocol: Protocol = "lbfgs",
    shots: int | None = None,
    seed: int = 0,
) -> dict[str, float]:
    """Train a linear classifier on the model's image features and measure it.

    Args:
        model: a CLIPModel.
        train: a labelled dataset (`LabelledImages`).
        test: another one with the same classes.
        validation: another one for the sweep; None: a fifth of `train`, drawn by `seed`.
        protocol: "lbfgs" or "adamw"; see this module's head. "lbfgs" needs the extra `probe`.
        shots: training images per class, drawn by `seed`; None: all. A few-shot probe sweeps only if `validation` is
            given, and is never trained on it.
        seed: seed of all draws.

    Returns:
        "top1", "top5" (NaN with fewer than 5 classes) and "mean_per_class_recall", in percent, and "strength": C of
        "lbfgs", the weight decay of "adamw".

    Raises:
        ValueError: the classes differ, or a class has fewer than `shots` images.
        ImportError: the extra `probe` is not installed.
    """
    splits = encode_splits(model, train, test, validation, protocol)
    return probe(splits, protocol, shots=shots, seed=seed).metrics()


def few_shot(
    model: Any,
    train: Any,
    test: Any,
    validation: Any = None,
    *,
    protocol: Protocol = "lbfgs",
    shots: Sequence[int] = SHOTS,
    seeds: int = 3,
) -> dict[int, list[float]]:
    """Measure `linear_probe` with few images per class; every image is encoded once.

    Returns:
        For each number of shots, the top-1 accuracy of each seed, in percent.
    """
    splits = encode_splits(model, train, test, validation, protocol)
    return {
        count: [probe(splits, protocol, shots=count, seed=seed).metrics()["top1"] for seed in range(seeds)]
        for count in shots
    }


def encode_splits(model: Any, train: Any, test: Any, validation: Any, protocol: Protocol) -> Splits:
    """Compute a protocol's features: before the projection for "lbfgs", unit vectors for "adamw"."""
    if protocol not in get_args(Protocol):
        raise ValueError(f"protocol {protocol!r}: expected 'lbfgs' or 'adamw'")
    rows: list[Features] = []
    names: list[list[str]] = []
    for data in (train, test) if validation is None else (train, test, validation):
        images = as_labelled(data)
        x = image_features(model, images) if protocol == "lbfgs" else model.encode_image(images)
        rows.append(Features(x.float().cpu(), images.labels.clone()))
        names.append(images.class_names)
    if any(other != names[0] for other in names):
        raise ValueError("the splits have different class names; a probe needs the same classes in the same order")
    return Splits(rows[0], rows[1], rows[2] if validation is not None else None, len(names[0]))


def probe(splits: Splits, protocol: Protocol, *, shots: int | None = None, seed: int = 0) -> ProbeResult:
    """Sweep, train and measure a probe on features; arguments as in `linear_probe`."""
    fit = FITS[protocol](splits.classes, seed)
    train, validation = splits.train, splits.validation
    if shots is not None:
        train = draw_shots(train, splits.classes, shots, seed)
        strength = DEFAULT_STRENGTHS[protocol] if validation is None else sweep(fit, train, validation, protocol)
    else:
        kept, held_out = (train, validation) if validation is not None else hold_out(train, seed)
        strength = sweep(fit, kept, held_out, protocol)
        train = (
            train
            if validation is None
            else Features(*(torch.cat(pair) for pair in zip(train, validation, strict=True)))
        )
    scores = fit(train, strength)(splits.test.x)
    labels = splits.test.labels
    ranks = (scores >= scores.gather(1, labels[:, None])).sum(dim=1) - 1
    return ProbeResult(ranks, labels, splits.classes, strength)


def sweep(fit: Fit, train: Features, validation: Features, protocol: Protocol) -> float:
    """Return the strength with the best validation accuracy; of equal ones, the first that was tried."""
    low, high = RANGES[protocol]
    grid: list[float] = torch.logspace(low, high, SWEEP_STEPS + 1, dtype=torch.float64).tolist()
    accuracy: dict[int, float] = {}

    def best(indices: Sequence[int]) -> int:
        for index in indices:
            if index not in accuracy:
                predicted = fit(train, grid[index])(validation.x).argmax(dim=1)
                accuracy[index] = float((predicted == validation.labels).double().mean())
        return max(indices, key=accuracy.__getitem__)  # the first of equal ones

    step = SWEEP_STEPS // 6
    peak = best(range(0, SWEEP_STEPS + 1, step))
    while step > 1:
        step //= 2
        peak = best((max(peak - step, 0), peak, min(peak + step, SWEEP_STEPS)))
    return grid[peak]


def draw_shots(train: Features, classes: int, shots: int, seed: int) -> Features:
    """Draw a number of images of each class.

    Raises:
        ValueError: `shots` is below 1, or a class has fewer images.
    """
    counts = torch.bincount(train.labels, minlength=classes)
    if shots < 1 or int(counts.min()) < shots:
        raise ValueError(f"{shots} shots: expected 1 to {int(counts.min())}, the images of the smallest class")
    order = torch.randperm(len(train.labels), generator=torch.Generator().manual_seed(seed))
    rows = torch.cat([order[train.labels[order] == label][:shots] for label in range(classes)])
    return Features(train.x[rows], train.labels[rows])


def hold_out(train: Features, seed: int) -> tuple[Features, Features]:
    """Split off `VALIDATION_FRACTION` of the images, at least one, for the sweep."""
    order = torch.randperm(len(train.labels), generator=torch.Generator().manual_seed(seed))
    count = max(1, round(VALIDATION_FRACTION * len(order)))
    if len(order) < 2:
        raise ValueError(f"{len(order)} training images; a probe needs at least 2")
    return tuple(Features(train.x[rows], train.labels[rows]) for rows in (order[count:], order[:count]))  # type: ignore[return-value]
