"""What a run would be and cost, before it is one: sizes counted, memory counted, time from some steps on a copy."""

from __future__ import annotations

import copy
import dataclasses
import statistics
import time
from typing import TYPE_CHECKING, Any, cast

import torch
from torch.utils.data import Subset

from miniclip.data.sources import InMemoryImages
from miniclip.evaluation.retrieval import LazyImages, embed
from miniclip.loggers.console import in_time
from miniclip.runtime import distributed
from miniclip.runtime.flops import pair_flops, peak_flops
from miniclip.runtime.free_memory import free_bytes
from miniclip.runtime.memory import step_bytes, synthetic_step
from miniclip.train.optimizer import build_optimizer
from miniclip.train.step import cached_step, plain_step
from miniclip.utils.randomness import random_state, set_random_state

if TYPE_CHECKING:
    from miniclip.train.trainer import Trainer

SECONDS = 6.0  # that the timed steps take, about: where whole batches take longer, they are steps of fewer pairs
STEPS = 3  # timed, after one that is not
USUAL_SHARE = 0.25  # of the peak, to guess at first how long a step will take


@dataclasses.dataclass(frozen=True)
class Plan:
    """A run before it is started. Of several ranks, the memory is each one's.

    Attributes:
        image_parameters: of the image tower; and likewise of the text tower, and of the whole model.
        pictures: for training, with so many captions in all.
        validation_pictures: 0 without.
        batch_size: pairs a step, of all ranks.
        steps: that are left to do.
        epochs: in all.
        evaluations: that are left to do.
        flops: of a step, as `cost` counts; None for towers of the user's own.
        peak: FLOPs a second of the machine, of all ranks, measured.
        weights: bytes of the model.
        step_memory: bytes that a step takes besides: activations, gradients, the optimizer's state, the loss.
        picture_memory: bytes of the decoded pictures that are kept.
        free: bytes of the device that are free now, the weights and pictures being there already.
        step_seconds: None under fsdp, where it is not measured.
        timed_pairs: of each timed step on a rank; fewer than its part of the batch where that would have taken long.
        evaluation_seconds: of one evaluation.
    """

    image_parameters: int
    text_parameters: int
    parameters: int
    pictures: int
    captions: int
    validation_pictures: int
    batch_size: int
    steps_per_epoch: int
    steps: int
    epochs: int
    warmup_steps: int
    evaluations: int
    flops: int | None
    peak: float
    weights: int
    step_memory: int
    picture_memory: int
    free: int
    step_seconds: float | None
    timed_pairs: int
    evaluation_seconds: float

    @property
    def seconds(self) -> float | None:
        """Of what is left of the run, while the data keep up."""
        if self.step_seconds is None:
            return None
        return self.steps * self.step_seconds + self.evaluations * self.evaluation_seconds

    @property
    def mfu(self) -> float | None:
        """Of the machine's peak, 0 to 1."""
        if self.flops is None or not self.step_seconds:
            return None
        return self.flops / self.step_seconds / self.peak

    def describe(self) -> str:
        """The plan in some lines."""
        rows = [
            ("image tower", f"{self.image_parameters:,} parameters"),
            ("text tower", f"{self.text_parameters:,} parameters"),
            ("model", f"{self.parameters:,} parameters"),
            ("training", f"{self.pictures:,} pictures, {self.captions:,} captions"),
            ("validation", f"{self.validation_pictures:,} pictures" if self.validation_pictures else "none"),
            (
                "steps",
                f"{self.steps:,} of {self.batch_size:,} pairs; {self.steps_per_epoch:,} an epoch, {self.epochs:,} "
                f"epochs, {self.warmup_steps:,} steps of warmup",
            ),
            ("memory", self._memory()),
            ("work", self._work()),
            ("time", self._time()),
        ]
        return "\n".join(f"  {name:<12} {text}" for name, text in rows)

    def _memory(self) -> str:
        kept = f", {_size(self.picture_memory)} of decoded pictures" if self.picture_memory else ""
        rank = ", on each rank" if distributed.world_size() > 1 else ""
        enough = "" if self.step_memory <= self.free else ": NOT ENOUGH, try a micro_batch_size"
        return (
            f"about {_size(self.weights + self.picture_memory + self.step_memory)}: {_size(self.weights)} of weights"
            f"{kept}, {_size(self.step_memory)} for a step{rank}; {_size(self.free)} are free{enough}"
        )

    def _work(self) -> str:
        peak = f"this machine multiplies {self.peak / 1e9:,.0f} GFLOP a second at best (measured)"
        if self.flops is None:
            return f"not counted: towers of its own; {peak}"
        share = "" if self.mfu is None else f", a step makes use of {self.mfu:.0%} of it"
        return f"{self.flops / 1e9:,.0f} GFLOP a step; {peak}{share}"

    def _time(self) -> str:
        if self.step_seconds is None or self.seconds is None:
            return "not measured under fsdp"
        evaluations = (
            f" and {self.evaluations:,} evaluations of {in_time(self.evaluation_seconds)}" if self.evaluations else ""
        )
        return (
            f"about {in_time(self.seconds)}: {self.steps:,} steps of {in_time(self.step_seconds)} (timed with "
            f"{self.timed_pairs:,} pairs){evaluations}, as long as the data keep up"
        )


def plan(trainer: Trainer) -> Plan:
    """Look at what a trainer would do, without doing it: its model, its state and its directory stay as they are.

    Some steps are timed on a copy of the model. Every rank must call it.
    """
    model, config, loader = trainer.model, trainer.config, trainer.loader
    device, here = model.device, loader.rows.stop - loader.rows.start
    peak = peak_flops(device, config.precision)
    random = random_state(device)
    try:
        trial = synthetic_step(model, config.precision, config.patch_dropout)
        micro_batch_size = config.micro_batch_size if isinstance(config.micro_batch_size, int) else None
        step_memory, free = round(step_bytes(model, here, trial, micro_batch_size)), free_bytes(device)
        step_seconds, pairs, tokens = _timed_steps(trainer, peak)
        evaluation_seconds = _timed_evaluation(trainer)
    finally:
        set_random_state(device, random)
        loader.close()
    flops = pair_flops(model, tokens, config.patch_dropout)
    kept = loader._pictures
    left = range(trainer.epoch + 1, trainer.epochs + 1) if trainer.val_data is not None else ()
    return Plan(
        image_parameters=_count(model.image),
        text_parameters=_count(model.text),
        parameters=_count(model),
        pictures=loader.size,
        captions=sum(loader._captions.counts),
        validation_pictures=0 if trainer.val_data is None else len(trainer.val_data),
        batch_size=loader.batch_size,
        steps_per_epoch=loader.steps,
        steps=trainer.total_steps - trainer.step,
        epochs=trainer.epochs,
        warmup_steps=round(config.warmup_fraction * trainer.total_steps),
        evaluations=sum(epoch % config.eval_every == 0 or epoch == trainer.epochs for epoch in left),
        flops=None if flops is None else flops * loader.batch_size,
        peak=peak * distributed.world_size(),
        weights=sum(p.numel() * p.element_size() for p in model.parameters()),
        step_memory=step_memory,
        picture_memory=kept.pixels.nbytes if isinstance(kept, InMemoryImages) else 0,
        free=free,
        step_seconds=step_seconds,
        timed_pairs=pairs,
        evaluation_seconds=evaluation_seconds,
    )


def _timed_steps(trainer: Trainer, peak: float) -> tuple[float | None, int, int]:
    """Seconds of a step, the pairs that it was timed with, and the tokens of its captions."""
    model, config = trainer.model, trainer.config
    batch = next(trainer.loader.epoch(trainer.epoch))
    tokens, here = batch.tokens.shape[1], len(batch.indices)
    if config.fsdp and distributed.world_size() > 1:
        return None, 0, tokens  # a sharded model cannot be copied
    guess = (pair_flops(model, tokens, config.patch_dropout) or 0) / (USUAL_SHARE * peak)  # seconds of a pair
    pairs = min(here, max(2, int(SECONDS / (STEPS + 1) / guess))) if guess else here
    pairs = min(theirs for (theirs,) in distributed.all_ranks([pairs]))
    trial = copy.deepcopy(model).train()
    optimizer, inputs = build_optimizer(trial, config), trainer._inputs(batch)
    step = plain_step if config.micro_batch_size is None else cached_step
    seconds = []
    for _ in range(STEPS + 1):
        start = time.perf_counter()
        result = step(trial, optimizer, inputs, pairs, trainer.loss, config)
        float(result.figures["loss"])  # waits for the device
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[1:]) / pairs * here, pairs, tokens


def _timed_evaluation(trainer: Trainer) -> float:
    """Seconds of an evaluation: embedding all pictures and captions, by the time that a few take."""
    data, model = trainer.val_data, trainer.model
    if data is None or not len(data) or (trainer.config.fsdp and distributed.world_size() > 1):
        return 0.0
    training, few, seconds = model.training, 0, 0.0
    model.eval()
    while few < len(data) and seconds < SECONDS / 10:  # the first ones take longer, but are not those that count
        few = min(max(1, 4 * few), len(data))
        start = time.perf_counter()
        embed(model, data.captions[:few], LazyImages(Subset(cast(Any, data), range(few))))
        seconds = time.perf_counter() - start
    model.train(training)
    return seconds * len(data) / few / distributed.world_size()


def _count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _size(count: float) -> str:
    """Bytes in words: `_size(3 << 29)` is `1.5 GiB`."""
    for unit, size in (("GiB", 1 << 30), ("MiB", 1 << 20)):
        if count >= size:
            return f"{count / size:,.1f} {unit}"
    return f"{count / 1024:,.0f} KiB"
