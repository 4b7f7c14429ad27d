"""Memory check: estimated memory of a training step against the free memory."""

from __future__ import annotations

from miniclip.diagnostics.findings import Finding
from miniclip.inference.model import CLIPModel
from miniclip.runtime.free_memory import free_bytes
from miniclip.runtime.memory import step_bytes, synthetic_step
from miniclip.train.config import TrainConfig


def check_memory(model: CLIPModel, config: TrainConfig, batch_size: int) -> Finding:
    """Check that a step fits into the free memory. The estimate extrapolates from two small trial steps."""
    if config.micro_batch_size == "auto":
        return Finding("memory", "fine", "micro_batch_size auto: the run finds a size that fits when it starts")
    trial = synthetic_step(model, config.precision, config.patch_dropout, config.captions_per_image)
    needed = step_bytes(model, batch_size, trial, config.micro_batch_size, config.captions_per_image)
    free = free_bytes(model.device)
    return Finding(
        "memory",
        "warning" if needed > free else "fine",
        f"a step of {batch_size:,} pairs needs about {needed / 2**30:.2g} GiB besides the weights; "
        f"{free / 2**30:.3g} GiB are free ({model.device})",
        "The run would fail, or the machine would start to swap.",
        "micro_batch_size auto (the same step, in parts), gradient_checkpointing, or a smaller batch.",
    )
