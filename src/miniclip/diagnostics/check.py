"""The check before a run: the data, the memory, and whether the model can learn a few pairs by heart.

A model that is shown the same `PAIRS` pairs over and over must come far below the loss of knowing nothing: if it
cannot, no amount of data will help. It is tried on a copy; the run's weights, optimizer and random state stay what they
are.
Letters: n pairs, S the model's picture side, T tokens.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import math
import textwrap
import time
import warnings
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from miniclip.data.dataset import ImageCaptionDataset, image_of
from miniclip.diagnostics.check_data import (
    Finding,
    Severity,
    check_captions,
    check_overlap,
    check_pictures,
    judge,
    look_at,
)
from miniclip.diagnostics.health import knowing_nothing
from miniclip.errors import DataError
from miniclip.models.clip import CLIP
from miniclip.runtime import distributed
from miniclip.runtime.free_memory import free_bytes
from miniclip.runtime.memory import step_bytes, synthetic_step
from miniclip.train.config import TrainConfig
from miniclip.train.optimizer import build_optimizer
from miniclip.train.step import Inputs, loss_function, plain_step
from miniclip.utils.randomness import random_state, set_random_state

PAIRS, STEPS, SECONDS = 128, 300, 60.0  # to overfit: at most so many pairs, in so many steps, in such a time
FAR_BELOW = 0.2  # of the loss of knowing nothing: then the pairs are learned
WARMUP = 20  # steps
LEAST_STEPS, LEAST_PAIRS = 40, 8  # so many steps shall fit into the time: of a slow model fewer pairs are taken
RANK: tuple[Severity, ...] = ("fine", "note", "warning", "error")
WIDTH = 100


@dataclasses.dataclass(frozen=True)
class Report:
    """What a check found.

    Attributes:
        findings: in the order in which they were looked for.
    """

    findings: tuple[Finding, ...]

    @property
    def worst(self) -> Severity:
        """The gravest severity among the findings."""
        return max((finding.severity for finding in self.findings), key=RANK.index)

    def __getitem__(self, name: str) -> Finding:
        """The finding of a name; KeyError where there is none."""
        found = {finding.name: finding for finding in self.findings}
        return found[name]

    def __str__(self) -> str:
        lines = []
        for finding in self.findings:
            first = f"{finding.severity:<8} {finding.name}: {finding.what}"
            lines.append(textwrap.fill(first, WIDTH, subsequent_indent=" " * 9, break_on_hyphens=False))
            for word, text in (("means", finding.meaning), ("try", finding.advice)):
                if text:
                    start = f"{'':9}{word + ':':<7}"
                    lines.append(textwrap.fill(text, WIDTH, initial_indent=start, subsequent_indent=" " * 16))
        counts = [(severity, sum(f.severity == severity for f in self.findings)) for severity in reversed(RANK)]
        return "\n".join([*lines, ", ".join(f"{count} {severity}" for severity, count in counts if count)])


def check(
    model: CLIP,
    train_data: ImageCaptionDataset,
    val_data: ImageCaptionDataset | None,
    config: TrainConfig,
    *,
    steps: int = STEPS,
    seconds: float = SECONDS,
) -> Report:
    """Look at data and model as a run would take them, and overfit a few pairs with a copy of the model.

    Args:
        model: with a tokenizer, on the device that it will be trained on; left as it is.
        train_data: pictures with captions.
        val_data: held-out ones, or None.
        config: the run's settings, the precision being known.
        steps: to overfit in.
        seconds: for each of the two: looking at pictures, and overfitting.

    Raises:
        ValueError: the data are empty, the model has no tokenizer, or there are several ranks.
    """
    if distributed.world_size() > 1:
        raise ValueError("the check is for one process: run it without torchrun, then start the ranks")
    if not len(train_data) or model.tokenizer is None:
        raise ValueError("the check needs training data, and a model with a tokenizer")
    batch, side = min(config.batch_size, len(train_data)), model.config.image.image_size
    with _untouched(model):
        pictures = look_at(train_data, seconds=seconds)
        findings = check_captions(train_data, model.tokenizer, model.config.text.context_length, batch)
        findings += check_pictures(pictures, side, config.on_error)
        if val_data is not None and len(val_data):
            findings += check_overlap(train_data, val_data, pictures, look_at(val_data, seconds=seconds))
        findings += [check_memory(model, config, batch), check_learning(model, train_data, config, steps, seconds)]
    return Report(tuple(findings))


@contextlib.contextmanager
def _untouched(model: CLIP) -> Iterator[None]:
    """Give back the random state, and the tokenizer's count of captions cut."""
    state, tokenizer = random_state(model.device), model.tokenizer
    counted = {name: getattr(tokenizer, name) for name in ("truncated", "_warned") if hasattr(tokenizer, name)}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of captions cut: it is one of the findings
            yield
    finally:
        set_random_state(model.device, state)
        for name, value in counted.items():
            setattr(tokenizer, name, value)


# memory


def check_memory(model: CLIP, config: TrainConfig, batch: int) -> Finding:
    """Whether a step fits into the free memory, by a count of two small trials."""
    if config.micro_batch_size == "auto":
        return Finding("memory", "fine", "micro_batch_size auto: what fits is found at the start of the run")
    trial = synthetic_step(model, config.precision, config.patch_dropout)
    needed, free = step_bytes(model, batch, trial, config.micro_batch_size), free_bytes(model.device)
    return judge(
        "memory",
        "warning" if needed > free else "fine",
        f"a step of {batch:,} pairs needs about {needed / 2**30:.2g} GiB besides the weights; {free / 2**30:.3g} GiB "
        f"are free ({model.device})",
        "The run would end with an error, or the machine would begin to swap.",
        "micro_batch_size auto (the same step, in parts), gradient_checkpointing, or a smaller batch.",
    )


# learning by heart


class Overfit(NamedTuple):
    """How a copy of the model did on the same n pairs, over and over."""

    loss: float
    nothing: float  # the loss of knowing nothing
    pairs: int
    steps: int
    lr: float

    @property
    def learned(self) -> bool:
        """Whether it came far below."""
        return self.loss <= FAR_BELOW * self.nothing


def check_learning(model: CLIP, data: ImageCaptionDataset, config: TrainConfig, steps: int, seconds: float) -> Finding:
    """Whether the model can learn a few pairs by heart, with the run's learning rate, else with another one."""
    pixels, tokens = few_pairs(model, data, config)
    name = "learning by heart"
    if len(pixels) < 2:
        return Finding(
            name,
            "error",
            "there are no two pairs with different captions among the pictures that can be read",
            "Nothing can be told apart: a contrastive training has nothing to learn.",
            "See what the captions are.",
        )
    if not any(parameter.requires_grad for parameter in model.parameters()):
        return Finding(name, "error", "all parameters are frozen", "Nothing would be trained.", "Unfreeze some.")
    end = time.monotonic() + seconds
    first = overfit(model, pixels, tokens, config, steps, end)
    what = (
        f"{first.pairs} pairs, {first.steps} steps with lr {first.lr:.1e}: the loss came from {first.nothing:.2f}, "
        f"knowing nothing, to {first.loss:.3f}"
    )
    if first.learned:
        return Finding(name, "fine", what)
    if first.steps < steps and math.isfinite(first.loss):
        return Finding(
            name,
            "note",
            f"{what}; then {seconds:.0f} seconds were over",
            "The time was too short to say whether it can.",
            "A longer check (`trainer.check(seconds=600)`), or one on a faster device.",
        )
    for lr in (config.lr / 10, config.lr * 10):
        other = overfit(model, pixels, tokens, dataclasses.replace(config, lr=lr), steps, time.monotonic() + seconds)
        if other.learned:
            return Finding(
                name,
                "warning",
                f"{what}; with lr {lr:.1e} it came to {other.loss:.3f}",
                f"The model can learn, and lr {config.lr:.1e} is too {'high' if lr < config.lr else 'low'} for it, "
                "at least at the start.",
                f"lr {lr:.1e}, or a longer warmup.",
            )
    return Finding(
        name,
        "error",
        f"{what}; a tenth and ten times of that lr did no better",
        f"A model that cannot learn {first.pairs} pairs by heart will learn nothing from more of them.",
        "See that the pictures differ once they have the model's size, that the towers are not frozen, and, if the "
        "model is your own, that its output depends on its input.",
    )


def few_pairs(model: CLIP, data: ImageCaptionDataset, config: TrainConfig) -> tuple[Tensor, Tensor]:
    """Up to `PAIRS` pairs with different captions, from all over the set: (n, 3, S, S) uint8 and (n, T)."""
    assert model.tokenizer is not None
    micro = config.micro_batch_size if isinstance(config.micro_batch_size, int) else PAIRS
    most, pixels, captions = max(2, min(PAIRS, config.batch_size, micro)), [], list[str]()
    for index in torch.randperm(len(data), generator=torch.Generator().manual_seed(config.seed))[: 4 * most].tolist():
        caption = data.captions[index][0]
        if len(captions) == most or caption in captions:
            continue
        with contextlib.suppress(DataError, OSError):  # named by another finding
            pixels.append(model.preprocess.pixels(image_of(data, index)))
            captions.append(caption)
    text = model.config.text
    tokens = model.tokenizer(captions, context_length=text.context_length, pad=text.padding == "attended")
    if len(captions) > 1:  # captions that differ after the cut alone are the same to the model
        _, groups = torch.unique(tokens, dim=0, return_inverse=True)
        first = [i for i, group in enumerate(groups.tolist()) if group not in groups[:i].tolist()]
        return torch.stack(pixels)[first], tokens[first]
    return (torch.stack(pixels) if pixels else torch.empty(0)), tokens


def overfit(model: CLIP, pixels: Tensor, tokens: Tensor, config: TrainConfig, steps: int, end: float) -> Overfit:
    """Train a copy of the model on the same pairs; of a slow one on fewer, so that some steps fit into the time.

    Args:
        model: left as it is.
        pixels: (n, 3, S, S) uint8.
        tokens: (n, T).
        config: loss, precision, clipping, and the learning rate.
        steps: at most.
        end: when to stop, by `time.monotonic`.
    """
    n = len(pixels)
    while True:
        result = _overfit(copy.deepcopy(model).train(), pixels[:n], tokens[:n], config, steps, end)
        if result is not None:
            return result
        n = max(LEAST_PAIRS, n // 2)


def _overfit(
    model: CLIP, pixels: Tensor, tokens: Tensor, config: TrainConfig, steps: int, end: float
) -> Overfit | None:
    """Train the model itself; None where its second step shows that too few will fit into the time."""
    n, began = len(pixels), time.monotonic()
    optimizer, loss_of, inputs = (
        build_optimizer(model, config),
        loss_function(config, model),
        _same(model, pixels, tokens),
    )
    nothing = knowing_nothing(n, config.loss)
    for step in range(1, steps + 1):
        for group in optimizer.param_groups:
            group["lr"] = config.lr * min(1.0, step / WARMUP)
        before = time.monotonic()
        loss = float(plain_step(model, optimizer, inputs, n, loss_of, config).loss)
        now = time.monotonic()
        if step == 2 and n > LEAST_PAIRS and (now - before) * LEAST_STEPS > end - began:  # the first is slower
            return None
        if not math.isfinite(loss) or loss <= FAR_BELOW * nothing or now > end:
            break
    return Overfit(loss, nothing, n, step, config.lr)


def _same(model: CLIP, pixels: Tensor, tokens: Tensor) -> Inputs:
    x, ids = model.preprocess.normalise(pixels.to(model.device)), tokens.to(model.device)

    def inputs(rows: slice) -> tuple[Tensor, Tensor, Any]:
        return x[rows], ids[rows], None

    return inputs
