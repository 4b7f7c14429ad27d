"""Time of a training step and of an evaluation, measured on a few pairs without changing the run."""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol, cast

from torch.utils.data import Subset

from miniclip.data.loader import Batch, ImageCaptionLoader
from miniclip.evaluation.retrieval import LazyImages, embed
from miniclip.runtime import distributed
from miniclip.runtime.flops import pair_flops
from miniclip.train.callbacks import TrainerProtocol
from miniclip.train.gradient_caching import cached_step
from miniclip.train.optimizer import build_optimizer
from miniclip.train.step import Inputs, StepOptions
from miniclip.train.step_arguments import TrainingLoss

TARGET_SECONDS = 6.0  # approximate duration of all timed steps; slow steps are timed with fewer pairs
TIMED_STEPS = 3  # after one untimed step
ASSUMED_MFU = 0.25  # first guess of a step's duration, to choose the number of pairs


class StepTrainer(TrainerProtocol, Protocol):
    """The part of a trainer that runs steps.

    Attributes:
        loader: loader of the training data.
        loss: loss of a step.
        step_options: options of a step.
    """

    loader: ImageCaptionLoader
    loss: TrainingLoss
    step_options: StepOptions

    @property
    def prepare(self) -> Callable[[Batch, int], Sequence[Inputs]]:
        """Function from a batch and a step number to the inputs of its micro batches."""


class StepTime(NamedTuple):
    """Duration of a training step."""

    seconds: float | None  # time of a step on this rank's rows; None under FSDP (not measured)
    pairs: int  # in each timed step
    tokens: int  # per caption


def time_step(trainer: StepTrainer, peak_flops: float) -> StepTime:
    """Time training steps on a copy of the model. All ranks must call it together.

    Args:
        trainer: left unchanged, except that its loader has opened an epoch.
        peak_flops: FLOPs per second of this rank's device.
    """
    model, config = trainer.model, trainer.config
    batch = next(trainer.loader.epoch(trainer.epoch))
    tokens, local_rows = batch.tokens.shape[1], len(batch.indices)
    if config.fsdp and distributed.world_size() > 1:
        return StepTime(None, 0, tokens)  # a sharded model cannot be copied
    flops = pair_flops(model, tokens, config.patch_dropout, captions=config.captions_per_image) or 0
    pair_seconds = flops / (ASSUMED_MFU * peak_flops)
    pairs = local_rows
    if pair_seconds:
        pairs = min(local_rows, max(2, int(TARGET_SECONDS / (TIMED_STEPS + 1) / pair_seconds)))
    pairs = min(rank_pairs for (rank_pairs,) in distributed.all_gather_ints([pairs]))
    model_copy = copy.deepcopy(model).train()
    optimizer = build_optimizer(model_copy, config)
    batch = Batch(*(rows[: pairs * (len(rows) // local_rows)] for rows in batch))
    last_step = max(trainer.step, trainer.total_steps - 1)  # with images of the whole size
    inputs, loss = trainer.prepare(batch, last_step), trainer.loss.for_batch(batch)
    seconds = []
    for _ in range(TIMED_STEPS + 1):
        start = time.perf_counter()
        result = cached_step(model_copy, optimizer, inputs, loss, trainer.step_options)
        float(result.metrics["loss"])  # waits for the device
        seconds.append(time.perf_counter() - start)
    return StepTime(statistics.median(seconds[1:]) / pairs * local_rows, pairs, tokens)


def time_evaluation(trainer: StepTrainer) -> float:
    """Estimate the seconds of an evaluation from the time of embedding some of the validation data; 0 without it."""
    data, model = trainer.val_data, trainer.model
    if data is None or not len(data) or (trainer.config.fsdp and distributed.world_size() > 1):
        return 0.0
    was_training, count, seconds = model.training, 0, 0.0
    model.eval()
    while count < len(data) and seconds < TARGET_SECONDS / 10:  # repeats with more images, so the last round is warm
        count = min(max(1, 4 * count), len(data))
        start = time.perf_counter()
        embed(model, data.captions[:count], LazyImages(Subset(cast(Any, data), range(count))))
        seconds = time.perf_counter() - start
    model.train(was_training)
    return seconds * len(data) / count / distributed.world_size()
