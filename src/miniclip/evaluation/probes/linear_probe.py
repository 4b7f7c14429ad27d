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

from miniclip.evaluation.features import image_features, require_finite
from miniclip.evaluation.labelled.images import as_labelled
from miniclip.evaluation.probes.linear_models import Classifier, Features, Fit, adamw, lbfgs
from miniclip.evaluation.zero_shot import mean_per_class_recall, ranks_of_scores, top5_of_ranks
from miniclip.inference.batching import progress_bar

Protocol = Literal["lbfgs", "adamw"]
VALIDATION_FRACTION = 0.2  # share of the training images, without a validation split
# by protocol: the exponents of ten between which the strength is swept, and that of a few-shot probe without validation
RANGES: dict[str, tuple[int, int]] = {"lbfgs": (-6, 6), "adamw": (-6, 2)}
DEFAULT_STRENGTHS = {"lbfgs": 0.316, "adamw": 0.0}  # OpenAI's example; CLIP_benchmark
FITS: dict[str, Callable[[int, int], Fit]] = {"lbfgs": lbfgs, "adamw": adamw}
SWEEP_STEPS = 96
MAX_FITS = 7 + 2 * 4 + 1  # fits of a probe with a sweep


class ProbeResult(NamedTuple):
    """Result of a probe on the test split."""

    ranks: Tensor  # (N,) classes that score at least as high as the right one: 0 is best; ties count against the probe
    labels: Tensor  # (N,)
    classes: int
    strength: float  # C of "lbfgs", weight decay of "adamw"
    classifier: Classifier  # takes features in the form of the protocol

    @property
    def correct(self) -> Tensor:
        """(N,) bool."""
        return self.ranks == 0

    def metrics(self) -> dict[str, float]:
        """Return the metrics of `linear_probe`."""
        return {
            "top1": 100 * float(self.correct.double().mean()),
            "top5": top5_of_ranks(self.ranks, self.classes),
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
    progress: bool = False,
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
        progress: show progress bars.

    Returns:
        "top1", "top5" (NaN with fewer than 5 classes) and "mean_per_class_recall", in percent, and "strength": C of
        "lbfgs", the weight decay of "adamw".

    Raises:
        ValueError: the classes differ, a class has fewer than `shots` images, or features are NaN.
        ImportError: the extra `probe` is not installed.
    """
    splits = encode_splits(model, train, test, validation, protocol, progress=progress)
    return probe(splits, protocol, shots=shots, seed=seed, progress=progress).metrics()


def encode_splits(
    model: Any, train: Any, test: Any, validation: Any, protocol: Protocol, *, progress: bool = False
) -> Splits:
    """Compute a protocol's features: before the projection for "lbfgs", unit vectors for "adamw"."""
    if protocol not in get_args(Protocol):
        raise ValueError(f"protocol {protocol!r}: expected 'lbfgs' or 'adamw'")
    named = {"train": train, "test": test} | ({} if validation is None else {"validation": validation})
    images = {name: as_labelled(data) for name, data in named.items()}
    names = images["train"].class_names
    for split, each in images.items():
        if each.class_names != names:
            raise ValueError(f"the splits have different class names: {_difference(names, each.class_names, split)}")
    rows = []
    for split, each in images.items():
        x = (
            image_features(model, each, progress=progress)
            if protocol == "lbfgs"
            else model.encode_image(each, progress=progress)
        ).cpu()
        require_finite(x, f"features of the {split} split")
        rows.append(Features(x.float(), each.labels))
    return Splits(rows[0], rows[1], rows[2] if validation is not None else None, len(names))


def _difference(names: Sequence[str], others: Sequence[str], split: str) -> str:
    """Describe the first difference of the class names of the train split and of another one."""
    missing = [name for name in others if name not in names]
    if missing:
        return f"the {split} split has {missing[0]!r}, which the train split lacks"
    missing = [name for name in names if name not in others]
    if missing:
        return f"the train split has {missing[0]!r}, which the {split} split lacks; an empty class folder is a class"
    return f"those of the {split} split have another order"


def probe(
    splits: Splits, protocol: Protocol, *, shots: int | None = None, seed: int = 0, progress: bool = False
) -> ProbeResult:
    """Sweep, train and measure a probe on features; arguments as in `linear_probe`."""
    train, validation = splits.train, splits.validation
    sweeps = shots is None or validation is not None
    with progress_bar(MAX_FITS if sweeps else 1, " fits", progress, "probe") as advance:
        fit = _counted(FITS[protocol](splits.classes, seed), advance)
        if shots is not None:
            train = draw_shots(train, splits.classes, shots, seed)
            strength = DEFAULT_STRENGTHS[protocol] if validation is None else sweep(fit, train, validation, protocol)
        else:
            kept, held_out = (train, validation) if validation is not None else hold_out(train, seed)
            strength = sweep(fit, kept, held_out, protocol)
            if validation is not None:
                train = Features(*(torch.cat(pair) for pair in zip(train, validation, strict=True)))
        classifier = fit(train, strength)
    ranks = ranks_of_scores(classifier(splits.test.x), splits.test.labels)
    return ProbeResult(ranks, splits.test.labels, splits.classes, strength, classifier)


def _counted(fit: Fit, advance: Callable[[int], object]) -> Fit:
    """Return a function that fits and then advances a progress bar."""

    def run(data: Features, strength: float) -> Classifier:
        classifier = fit(data, strength)
        advance(1)
        return classifier

    return run


def sweep(fit: Fit, train: Features, validation: Features, protocol: Protocol) -> float:
    """Return the strength with the best validation accuracy; of equal ones, the first that was tried."""
    low, high = RANGES[protocol]
    grid: list[float] = torch.logspace(low, high, SWEEP_STEPS + 1, dtype=torch.float64, device="cpu").tolist()
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
    if not counts.all():
        raise ValueError("a class has no training images; few-shot probes need some of each class")
    if shots < 1 or int(counts.min()) < shots:
        raise ValueError(f"{shots} shots: expected 1 to {int(counts.min())}, the images of the smallest class")
    order = torch.randperm(len(train.labels), generator=torch.Generator().manual_seed(seed), device="cpu")
    rows = torch.cat([order[train.labels[order] == label][:shots] for label in range(classes)])
    return Features(train.x[rows], train.labels[rows])


def hold_out(train: Features, seed: int) -> tuple[Features, Features]:
    """Split off `VALIDATION_FRACTION` of the images, at least one, for the sweep."""
    order = torch.randperm(len(train.labels), generator=torch.Generator().manual_seed(seed), device="cpu")
    count = max(1, round(VALIDATION_FRACTION * len(order)))
    if len(order) < 2:
        raise ValueError(f"{len(order)} training images; a probe needs at least 2")
    return tuple(Features(train.x[rows], train.labels[rows]) for rows in (order[count:], order[:count]))  # type: ignore[return-value]
