"""Linear classifiers for probes, each a function of features and a strength of regularization.

Letters: N images, D features, C classes.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MAX_ITERATIONS = 1000  # L-BFGS; OpenAI's
LEARNING_RATE, EPOCHS, BATCH_SIZE = 0.1, 10, 64  # AdamW; CLIP_benchmark's defaults


class Features(NamedTuple):
    """Features of labelled images."""

    x: Tensor  # (N, D) float32
    labels: Tensor  # (N,) int64


Classifier = Callable[[Tensor], Tensor]  # features (N, D) to scores (N, C)
Fit = Callable[[Features, float], Classifier]  # features and strength to a classifier


def lbfgs(classes: int, seed: int) -> Fit:
    """Logistic regression by L-BFGS; the strength is C, the inverse of the L2 penalty.

    Raises:
        ImportError: scikit-learn is not installed.
    """
    try:
        from sklearn.linear_model import LogisticRegression
    except ImportError as error:
        raise ImportError("the protocol 'lbfgs' needs scikit-learn: pip install 'miniclip[probe]'") from error

    def fit(data: Features, strength: float) -> Classifier:
        present = torch.unique(data.labels)
        if len(present) < 2:
            raise ValueError(
                f"{len(data.labels)} images to train on, without those held out for the sweep, have one class; a probe "
                "needs at least 2: add images, or give a validation split"
            )
        regression = LogisticRegression(C=strength, max_iter=MAX_ITERATIONS, random_state=seed)
        with warnings.catch_warnings():
            # the weakest penalties of a sweep do not converge; OpenAI's protocol takes what 1,000 iterations reach
            warnings.filterwarnings("ignore", "lbfgs failed to converge")
            regression.fit(data.x.numpy(), data.labels.numpy())

        def scores(x: Tensor) -> Tensor:
            # absent classes are never predicted
            filled = torch.full((len(x), classes), -torch.inf, dtype=torch.float64, device="cpu")
            logits = torch.from_numpy(regression.decision_function(x.numpy())).double()
            # for two classes, scikit-learn returns the logit of the second
            filled[:, present] = logits if logits.dim() == 2 else torch.stack([-logits, logits], dim=1)
            return filled

        return scores

    return fit


def adamw(classes: int, seed: int) -> Fit:
    """Linear layer trained by AdamW; the strength is the weight decay."""

    def fit(data: Features, strength: float) -> Classifier:
        torch_state = torch.random.get_rng_state()
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would also seed the GPUs
        with torch.inference_mode(False), torch.enable_grad():  # the caller may have no gradients
            layer = nn.Linear(data.x.shape[1], classes, device="cpu", dtype=torch.float32)  # not torch's defaults
            torch.random.set_rng_state(torch_state)
            train_layer(layer, data, strength, torch.Generator().manual_seed(seed))
        absent = torch.bincount(data.labels, minlength=classes) == 0
        return lambda x: layer(x).detach().masked_fill(absent, -torch.inf)

    return fit


def train_layer(layer: nn.Linear, data: Features, weight_decay: float, generator: torch.Generator) -> None:
    """Train a linear layer by AdamW, with a cosine schedule to zero."""
    optimizer = torch.optim.AdamW(layer.parameters(), lr=LEARNING_RATE, weight_decay=weight_decay)
    batches = -(-len(data.labels) // BATCH_SIZE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS * batches)
    for _ in range(EPOCHS):
        order = torch.randperm(len(data.labels), generator=generator, device="cpu")
        for rows in torch.split(order, BATCH_SIZE):
            optimizer.zero_grad()
            F.cross_entropy(layer(data.x[rows]), data.labels[rows]).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
