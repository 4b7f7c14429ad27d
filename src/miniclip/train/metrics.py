"""Metrics of steps: kept on the device, read together every few steps, with the throughput in between."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from miniclip.data.loader import Batch, ImageCaptionLoader
from miniclip.data.replay import ReplayLoader
from miniclip.inference.model import CLIPModel
from miniclip.models.clip import CLIPOutput
from miniclip.runs.history import History, Record
from miniclip.runs.nonfinite import NonFiniteSteps, finite_rows
from miniclip.runs.progress import Progress
from miniclip.runtime import distributed, flops
from miniclip.runtime.cores import OtherPrograms
from miniclip.train.config import Loss, TrainConfig
from miniclip.train.step import StepResult

# arguments: caption length T, samples per second, and the side of the images if it is not the model's
MFU = Callable[[int, float, int | None], float | None]
BatchMetrics = Callable[[Batch, CLIPOutput], Record]


class UnreadStep(NamedTuple):
    """A step whose metrics are on the device."""

    record: Record  # its position
    metrics: dict[str, Tensor]  # scalars
    finite: Tensor  # (2, B), from `finite_rows`


class MetricsBuffer:
    """Metrics on the device that are not read yet, and the history of those that are.

    Args:
        loader: source of the batches; it counts the seconds in which the training loop waited for data.
        nonfinite: handles steps that are not finite.
        mfu: function that returns the MFU, or None.
        batch_metrics: function that returns more metrics of a batch and the model's output for it.
        chance_loss: `chance_loss` of a batch.
        other_programs: measure of the cores that other programs use; None on a GPU, and on ranks other than 0.

    Attributes:
        history: all records so far.
        last_batch: this rank's rows of the last step; `last_output` is their output. None before the first step.
    """

    def __init__(
        self,
        loader: ImageCaptionLoader,
        nonfinite: NonFiniteSteps,
        mfu: MFU,
        batch_metrics: BatchMetrics,
        chance_loss: float,
        other_programs: OtherPrograms | None = None,
    ) -> None:
        self.loader, self.nonfinite, self.mfu, self.batch_metrics = loader, nonfinite, mfu, batch_metrics
        self.chance_loss, self.other_programs = chance_loss, other_programs
        self.history = History()
        self.last_batch: Batch | None = None
        self.last_output: CLIPOutput | None = None
        self._unread: list[UnreadStep] = []
        self.start_clock()

    def start_clock(self) -> None:
        """Start measuring throughput and data wait."""
        self._started, self.loader.wait_seconds = time.perf_counter(), 0.0

    def add(self, record: Record, batch: Batch, result: StepResult) -> None:
        """Keep a step's metrics; `record` is the step's position."""
        record = {**record, "chance_loss": self.chance_loss, "tokens": batch.tokens.shape[1]}
        if isinstance(self.loader, ReplayLoader):
            record["replayed"] = self.loader.replayed
        self._unread.append(UnreadStep(record, result.metrics, finite_rows(result.output)))
        self.last_batch, self.last_output = batch, result.output

    def read(self, progress: Progress, with_batch: bool) -> Iterator[tuple[str, Record]]:
        """Read the metrics of the steps since the last call, which waits for the device.

        Args:
            progress: position of the run.
            with_batch: add the batch metrics of the last step; then all ranks must call it together.

        Yields:
            The event of a callback, and its record, which is in the history.

        Raises:
            FloatingPointError: too many steps in a row are not finite.
        """
        if not self._unread:
            return
        unread, self._unread = self._unread, []
        values = torch.stack([torch.stack(list(step.metrics.values())) for step in unread]).tolist()
        throughput = self._throughput(len(unread))
        last: Record = {}
        if with_batch and self.last_batch is not None and self.last_output is not None:
            last = self.batch_metrics(self.last_batch, self.last_output)
        for step, numbers in zip(unread, values, strict=True):
            metrics, record = dict(zip(step.metrics, numbers, strict=True)), step.record
            if math.isfinite(metrics["loss"]) and math.isfinite(metrics["grad_norm"]):
                progress.skipped, event = 0, "on_step"
                mfu = self.mfu(record["tokens"], throughput["samples_per_second"], record.get("image_size"))
                record = {**record, **metrics, **throughput, **({} if mfu is None else {"mfu": mfu})}
                record |= last if record["step"] == progress.step else {}
            else:
                event, record = "on_skip", self.nonfinite.add(record, metrics, step.finite, progress)
            self.history.add(record)
            yield event, record
            self.nonfinite.check(record, progress.skipped)

    def _throughput(self, steps: int) -> dict[str, float]:
        """Return the throughput since the clock was started, and start it again."""
        seconds = time.perf_counter() - self._started
        samples_per_second = round(steps * self.loader.batch_size / seconds, 1)
        data_wait = round(min(1.0, self.loader.wait_seconds / seconds), 4)
        self.start_clock()
        values = {"samples_per_second": samples_per_second, "data_wait": data_wait}
        other_cores = self.other_programs.cores() if self.other_programs else None
        return values if other_cores is None else {**values, "other_cores": round(other_cores, 2)}


def mfu_function(model: CLIPModel, config: TrainConfig) -> MFU:
    """Return a function that gives the model FLOPs utilisation (MFU) of all ranks, in 0..1.

    It gives None on ranks other than 0, for towers whose FLOPs are not counted, and for frozen towers that do not run.
    """
    captions = config.captions_per_image

    def mfu(tokens: int, samples_per_second: float, image_size: int | None) -> float | None:
        is_counted = distributed.is_main() and not config.cache_frozen
        sample = flops.pair_flops(model, tokens, config.patch_dropout, image_size, captions) if is_counted else None
        if sample is None:
            return None
        peak = flops.peak_flops(model.device, config.precision) * distributed.world_size()
        return round(samples_per_second * sample / peak, 4)

    return mfu


def chance_loss(n: int, loss: Loss, captions: int = 1, smoothing: float = 0.0) -> float:
    """Return the loss of a model that cannot distinguish n images, nor their captions, at its best scale and bias.

    Contrastive: the mean of log n and of log(n C). Sigmoid: each of the n^2 C similarities is a match with probability
    1/n. With one caption that is log n + (n - 1) log(n / (n - 1)) per match.

    Args:
        n: number of images.
        loss: name of the loss.
        captions: C, captions of each image.
        smoothing: label smoothing, which changes the probability of a match.
    """
    if loss == "contrastive":
        return math.log(n) + math.log(captions) / 2
    return n * binary_entropy((1 - smoothing) / n + smoothing / 2)


def binary_entropy(p: float) -> float:
    """Return the entropy of a yes-or-no answer of probability p, in nats."""
    return -sum(q * math.log(q) for q in (p, 1 - p) if q > 0)
