"""Plan of a run for the dry run: sizes, memory, FLOPs and estimated time."""

from __future__ import annotations

import dataclasses

from torch import nn

from miniclip.data.sources.memory import InMemoryImages
from miniclip.diagnostics.timing import StepTrainer, time_evaluation, time_step
from miniclip.runtime import distributed
from miniclip.runtime.flops import pair_flops, peak_flops
from miniclip.runtime.free_memory import free_bytes
from miniclip.runtime.memory import step_bytes, synthetic_step
from miniclip.utils.formatting import format_bytes, format_duration
from miniclip.utils.randomness import random_state, set_random_state


@dataclasses.dataclass(frozen=True)
class RunPlan:
    """Sizes and estimated costs of a run. `print(plan)` shows them; memory is per rank.

    Attributes:
        image_parameters: number of parameters of the image tower.
        text_parameters: number of parameters of the text tower.
        parameters: number of parameters of the model.
        images: number of training images.
        captions: number of training captions.
        val_images: number of validation images; 0 without validation data.
        batch_size: pairs per step, over all ranks.
        steps_per_epoch: number of steps per epoch.
        steps: number of steps left.
        epochs: number of epochs of the whole run.
        warmup_steps: number of warmup steps.
        evaluations: number of evaluations left.
        step_flops: FLOPs of a step (`runtime.flops`); None for custom towers.
        peak_flops: measured peak FLOPs per second, over all ranks.
        weight_bytes: bytes of the weights.
        step_bytes: further bytes of a step: activations, gradients, optimizer state, loss.
        image_bytes: bytes of the decoded images that are kept in memory.
        free_bytes: free bytes on the device, after weights and images.
        step_seconds: estimated seconds of a step; None under FSDP (not measured).
        timed_pairs: pairs per timed step on a rank; fewer than its rows if a full step is slow.
        evaluation_seconds: estimated seconds of an evaluation.
    """

    image_parameters: int
    text_parameters: int
    parameters: int
    images: int
    captions: int
    val_images: int
    batch_size: int
    steps_per_epoch: int
    steps: int
    epochs: int
    warmup_steps: int
    evaluations: int
    step_flops: int | None
    peak_flops: float
    weight_bytes: int
    step_bytes: int
    image_bytes: int
    free_bytes: int
    step_seconds: float | None
    timed_pairs: int
    evaluation_seconds: float

    @property
    def seconds(self) -> float | None:
        """Estimated seconds of the rest of the run, if data loading is not the bottleneck."""
        if self.step_seconds is None:
            return None
        return self.steps * self.step_seconds + self.evaluations * self.evaluation_seconds

    @property
    def mfu(self) -> float | None:
        """Model FLOPs utilisation, in 0..1."""
        if self.step_flops is None or not self.step_seconds:
            return None
        return self.step_flops / self.step_seconds / self.peak_flops

    def __str__(self) -> str:
        rows = [
            ("image tower", f"{self.image_parameters:,} parameters"),
            ("text tower", f"{self.text_parameters:,} parameters"),
            ("model", f"{self.parameters:,} parameters"),
            ("training", f"{self.images:,} images, {self.captions:,} captions"),
            ("validation", f"{self.val_images:,} images" if self.val_images else "none"),
            (
                "steps",
                f"{self.steps:,} steps of {self.batch_size:,} pairs; {self.steps_per_epoch:,} per epoch, "
                f"{self.epochs:,} epochs, {self.warmup_steps:,} warmup steps",
            ),
            ("memory", self._memory()),
            ("compute", self._compute()),
            ("time", self._time()),
        ]
        return "\n".join(f"  {name:<12} {text}" for name, text in rows)

    def _memory(self) -> str:
        images = f", {format_bytes(self.image_bytes)} of decoded images" if self.image_bytes else ""
        rank = ", on each rank" if distributed.world_size() > 1 else ""
        verdict = "" if self.step_bytes <= self.free_bytes else ": NOT ENOUGH, try a micro_batch_size"
        return (
            f"about {format_bytes(self.weight_bytes + self.image_bytes + self.step_bytes)}: "
            f"{format_bytes(self.weight_bytes)} of weights{images}, {format_bytes(self.step_bytes)} for a step{rank}; "
            f"{format_bytes(self.free_bytes)} are free{verdict}"
        )

    def _compute(self) -> str:
        peak = f"measured peak {self.peak_flops / 1e9:,.0f} GFLOP/s"
        if self.step_flops is None:
            return f"not counted for custom towers; {peak}"
        mfu = "" if self.mfu is None else f", MFU {self.mfu:.0%}"
        return f"{self.step_flops / 1e9:,.0f} GFLOP per step; {peak}{mfu}"

    def _time(self) -> str:
        if self.step_seconds is None or self.seconds is None:
            return "not measured under FSDP"
        evaluations = ""
        if self.evaluations:
            evaluations = f" and {self.evaluations:,} evaluations of {format_duration(self.evaluation_seconds)}"
        return (
            f"about {format_duration(self.seconds)}: {self.steps:,} steps of {format_duration(self.step_seconds)} "
            f"(timed with {self.timed_pairs:,} pairs){evaluations}, if data loading keeps up"
        )


def plan_run(trainer: StepTrainer) -> RunPlan:
    """Measure what a run would cost. The trainer and its directory stay unchanged. All ranks must call it together.

    Raises:
        ValueError: frozen towers are encoded once, which a plan would have to do first.
    """
    if trainer.config.cache_frozen:
        raise ValueError(
            "cache_frozen: a plan would have to encode the frozen tower first; plan the run without cache_frozen: its "
            "steps run both towers"
        )
    model, config, loader = trainer.model, trainer.config, trainer.loader
    device, local_rows = model.device, loader.rows.stop - loader.rows.start
    peak = peak_flops(device, config.precision)
    state = random_state(device)
    try:
        captions = config.captions_per_image
        trial = synthetic_step(model, config.precision, config.patch_dropout, captions)
        micro_batch_size = config.micro_batch_size if isinstance(config.micro_batch_size, int) else None
        needed = round(step_bytes(model, local_rows, trial, micro_batch_size, captions))
        free = free_bytes(device)
        step_time = time_step(trainer, peak)
        evaluation_seconds = time_evaluation(trainer)
    finally:
        set_random_state(device, state)
        loader.close()
    flops = pair_flops(model, step_time.tokens, config.patch_dropout, captions=captions)
    source = loader.source
    epochs_left = range(trainer.epoch + 1, trainer.epochs + 1) if trainer.val_data is not None else ()
    return RunPlan(
        image_parameters=_parameters(model.image),
        text_parameters=_parameters(model.text),
        parameters=_parameters(model),
        images=len(trainer.train_data),
        captions=sum(map(len, trainer.train_data.captions)),
        val_images=0 if trainer.val_data is None else len(trainer.val_data),
        batch_size=loader.batch_size,
        steps_per_epoch=loader.steps,
        steps=trainer.total_steps - trainer.step,
        epochs=trainer.epochs,
        warmup_steps=config.warmup_steps(trainer.total_steps),
        evaluations=sum(epoch % config.eval_every == 0 or epoch == trainer.epochs for epoch in epochs_left),
        step_flops=None if flops is None else flops * loader.batch_size,
        peak_flops=peak * distributed.world_size(),
        weight_bytes=sum(p.numel() * p.element_size() for p in model.parameters()),
        step_bytes=needed,
        image_bytes=source.pixels.nbytes if isinstance(source, InMemoryImages) else 0,
        free_bytes=free,
        step_seconds=step_time.seconds,
        timed_pairs=step_time.pairs,
        evaluation_seconds=evaluation_seconds,
    )


def _parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
