"""Settings of the reference system's step that could be faster, each beside the trainer's own, in one run.

python -m benchmarks gpu candidates

A candidate that wins here still has to show what it costs in recall before it becomes a setting or a default.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.gpu.models import compile_apart, config
from benchmarks.gpu.steps import REFERENCE, Step, Steps
from benchmarks.gpu.table import GpuRow, Session
from miniclip.hub import fresh

Candidate = Callable[[Any, Step], Step]  # changes a model in place, and wraps its step
BACKENDS = {
    "cuDNN": SDPBackend.CUDNN_ATTENTION,
    "FlashAttention": SDPBackend.FLASH_ATTENTION,
    "memory-efficient": SDPBackend.EFFICIENT_ATTENTION,
}
OTHERS = [SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]  # for what a backend cannot compute


def blocks(model: Any, step: Step) -> Step:
    """Compile the blocks, as the trainer does."""
    compile_apart(model)
    return step


def towers(model: Any, step: Step) -> Step:
    """Compile each tower as a whole."""
    for tower in (model.image, model.text):
        tower.compile()
    return step


def tuned_blocks(model: Any, step: Step) -> Step:
    """Compile the blocks, and let the compiler time several products."""
    compile_apart(model, mode="max-autotune-no-cudagraphs")
    return step


def bfloat16_residual(model: Any, step: Step, compiled: Candidate) -> Step:
    """Keep the residual stream in bfloat16."""
    for tower in (model.image, model.text):
        tower.blocks.bfloat16_residual = True
    return compiled(model, step)


def attention(model: Any, step: Step, backend: SDPBackend) -> Step:
    """Choose the attention's backend; compile the blocks."""
    compile_apart(model)

    def run() -> Any:
        with sdpa_kernel([backend, *OTHERS], set_priority=True):
            return step()

    return run


CANDIDATES: dict[str, Candidate] = {
    "bfloat16 residual stream": partial(bfloat16_residual, compiled=blocks),
    **{f"attention by {name} first": partial(attention, backend=backend) for name, backend in BACKENDS.items()},
    "towers compiled as a whole": towers,
    "towers as a whole, bfloat16 residual stream": partial(bfloat16_residual, compiled=towers),
    "max-autotune-no-cudagraphs": tuned_blocks,
}


def rows(session: Session) -> None:
    """Write a row for each candidate."""
    torch.compiler.config.force_disable_caches = True  # the caches on disk do not depend on the attention's backend
    steps = Steps(session)
    compiled = session.device == "cuda"

    def made(candidate: Candidate) -> tuple[Any, Step]:
        model: Any = fresh(config(session, "bert_vit_b_16")).to(session.device)
        step = steps.miniclip(model)
        return model, candidate(model, step) if compiled else step

    model, own = made(blocks)

    def fill(row: GpuRow, candidate: Candidate) -> None:
        steps.time(row, {"miniclip": made(candidate)[1], "the trainer's own": own}, model)

    for name, candidate in CANDIDATES.items():
        case = f"{REFERENCE}, batch {steps.batch}, bf16, {name}"
        session.measure("candidate for the step", case, partial(fill, candidate=candidate), 35)
