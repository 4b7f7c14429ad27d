"""Overfit test: whether a copy of the model can memorise a few pairs.

If a model cannot fit a few pairs that it sees at every step, more data does not help.
Letters: n pairs, S image side, T tokens.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import math
import time
from typing import NamedTuple

import torch
from torch import Tensor

from miniclip.data.dataset import ImageCaptionDataset, image_of
from miniclip.diagnostics.findings import Finding
from miniclip.errors import DataError
from miniclip.inference.model import CLIPModel
from miniclip.train.config import TrainConfig
from miniclip.train.metrics import chance_loss
from miniclip.train.optimizer import build_optimizer, set_learning_rate
from miniclip.train.step import Inputs, plain_step
from miniclip.train.step_arguments import loss_function, step_options

NAME = "overfit test"
MAX_PAIRS, MIN_PAIRS = 128, 8
MIN_STEPS = 40  # a slow model gets fewer pairs until this many steps fit into the time limit
WARMUP_STEPS = 20
MAX_LOSS_FRACTION = 0.2  # fraction of the chance loss below which the pairs count as memorised


class OverfitResult(NamedTuple):
    """Result of training a copy of the model on the same n pairs at every step."""

    loss: float
    chance_loss: float
    pairs: int
    steps: int
    lr: float

    @property
    def succeeded(self) -> bool:
        """True if the pairs count as memorised."""
        return self.loss <= MAX_LOSS_FRACTION * self.chance_loss

    def __str__(self) -> str:
        return (
            f"{self.pairs} pairs, {self.steps} steps with lr {self.lr:.1e}: the loss went from {self.chance_loss:.2f}, "
            f"chance, to {self.loss:.3f}"
        )


def check_overfit(
    model: CLIPModel, data: ImageCaptionDataset, config: TrainConfig, steps: int, seconds: float
) -> Finding:
    """Check that the model can memorise a few pairs with the learning rate of the run, or with another one.

    Args:
        model: left unchanged.
        data: training data.
        config: settings of the run.
        steps: maximum number of steps.
        seconds: maximum duration per learning rate.
    """
    pixels, tokens = select_pairs(model, data, config)
    if len(pixels) < 2:
        return Finding(
            NAME,
            "error",
            "no two pairs with different captions among the readable images",
            "There is nothing to distinguish, so contrastive training has nothing to learn.",
            "Check the captions.",
        )
    if not any(parameter.requires_grad for parameter in model.parameters()):
        return Finding(NAME, "error", "all parameters are frozen", "Nothing would be trained.", "Unfreeze some.")
    result = overfit(model, pixels, tokens, config, steps, time.monotonic() + seconds)
    if result.succeeded:
        return Finding(NAME, "fine", str(result))
    if result.steps < steps and math.isfinite(result.loss):
        return Finding(
            NAME,
            "note",
            f"{result}; stopped by the time limit of {seconds:.0f} seconds",
            "The time was too short for a result.",
            "A longer check (`trainer.check(seconds=600)`), or a faster device.",
        )
    for lr in (config.lr / 10, config.lr * 10):
        other_config = dataclasses.replace(config, lr=lr)
        other = overfit(model, pixels, tokens, other_config, steps, time.monotonic() + seconds)
        if other.succeeded:
            return _wrong_lr(result, other)
    return Finding(
        NAME,
        "error",
        f"{result}; a tenth and ten times of that lr were not better",
        f"A model that cannot memorise {result.pairs} pairs will learn nothing from more of them.",
        "Check that images differ at the model's input size and that the towers are not frozen. If the model is your "
        "own, check that its output depends on its input.",
    )


def _wrong_lr(result: OverfitResult, other: OverfitResult) -> Finding:
    return Finding(
        NAME,
        "warning",
        f"{result}; with lr {other.lr:.1e} it reached {other.loss:.3f}",
        f"The model can learn, but lr {result.lr:.1e} is too {'high' if other.lr < result.lr else 'low'}, at least at "
        "the start.",
        f"lr {other.lr:.1e}, or a longer warmup.",
    )


def select_pairs(model: CLIPModel, data: ImageCaptionDataset, config: TrainConfig) -> tuple[Tensor, Tensor]:
    """Select up to `MAX_PAIRS` random pairs with different captions: (n, 3, S, S) uint8 and (n, T)."""
    assert model.tokenizer is not None
    micro_batch_size = config.micro_batch_size if isinstance(config.micro_batch_size, int) else MAX_PAIRS
    limit, pixels, captions = max(2, min(MAX_PAIRS, config.batch_size, micro_batch_size)), [], list[str]()
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(config.seed))
    for index in order[: 4 * limit].tolist():
        caption = data.captions[index][0]
        if len(captions) == limit or caption in captions:
            continue
        with contextlib.suppress(DataError, OSError):  # reported by the image check
            pixels.append(model.preprocess.pixels(image_of(data, index)))
            captions.append(caption)
    text = model.config.text
    tokens = model.tokenizer(captions, context_length=text.context_length, pad=text.padding == "attended")
    if len(captions) > 1:  # captions that differ only after truncation are equal for the model
        _, groups = torch.unique(tokens, dim=0, return_inverse=True)
        rows = [i for i, group in enumerate(groups.tolist()) if group not in groups[:i].tolist()]
        return torch.stack(pixels)[rows], tokens[rows]
    return (torch.stack(pixels) if pixels else torch.empty(0)), tokens


def overfit(
    model: CLIPModel, pixels: Tensor, tokens: Tensor, config: TrainConfig, steps: int, end: float
) -> OverfitResult:
    """Train a copy of the model on the same pairs at every step. A slow model gets fewer pairs.

    Args:
        model: left unchanged.
        pixels: (n, 3, S, S) uint8.
        tokens: (n, T).
        config: loss, precision, gradient clipping and learning rate.
        steps: maximum number of steps.
        end: time limit on the clock of `time.monotonic`.
    """
    n = len(pixels)
    while True:
        result = _overfit(copy.deepcopy(model).train(), pixels[:n], tokens[:n], config, steps, end)
        if result is not None:
            return result
        n = max(MIN_PAIRS, n // 2)


def _overfit(
    model: CLIPModel, pixels: Tensor, tokens: Tensor, config: TrainConfig, steps: int, end: float
) -> OverfitResult | None:
    """Train the model in place; return None if the second step shows that too few steps fit into the time limit."""
    n, start, chance = len(pixels), time.monotonic(), chance_loss(len(pixels), config.loss)
    optimizer, loss_of = build_optimizer(model, config), loss_function(config, model)
    inputs = Inputs(model.preprocess.normalise(pixels.to(model.device)), tokens.to(model.device))
    options = step_options(config, model.device)
    for step in range(1, steps + 1):
        set_learning_rate(optimizer, config.lr * min(1.0, step / WARMUP_STEPS))
        step_start = time.monotonic()
        loss = float(plain_step(model, optimizer, inputs, loss_of, options).metrics["loss"])
        now = time.monotonic()
        if step == 2 and n > MIN_PAIRS and (now - step_start) * MIN_STEPS > end - start:  # the first step is slower
            return None
        if not math.isfinite(loss) or loss <= MAX_LOSS_FRACTION * chance or now > end:
            break
    return OverfitResult(loss, chance, n, step, config.lr)
