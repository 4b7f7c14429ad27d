"""Training steps: OpenAI's kind beside open_clip, and the reference system; compiled and not; where their time goes.

The step is the trainer's own, with clipping and metrics, and open_clip's that of its script: its loss, AdamW and
clipping, as it comes and with the fused AdamW. open_clip is compiled as a whole, miniclip by blocks, as in its trainer.
"""

import functools
import gc
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from benchmarks.baselines import Implementation, random_captions
from benchmarks.gpu.models import compile_apart, config, with_peers
from benchmarks.gpu.profile import time_by_kind
from benchmarks.gpu.table import GpuRow, Session, working
from benchmarks.harness import interleaved
from benchmarks.steps import LR, baseline_step, check, trim
from miniclip import TrainConfig
from miniclip.hub import fresh
from miniclip.runtime.compilation import pad_to_multiple
from miniclip.runtime.flops import pair_flops
from miniclip.train.optimizer import build_optimizer
from miniclip.train.step import Inputs, plain_step
from miniclip.train.step_arguments import loss_function, step_options

Step = Callable[[], Any]
OPENAI, REFERENCE = "OpenAI's ViT-B/16", "the reference system"


class Steps:
    """Steps of one batch.

    Attributes:
        session: of the part.
        batch: pairs.
        pixels: (B, 3, S, S), normalised.
        tokens: (B, 77), zeros after the end.
        repeats: steps in a timed call.
    """

    def __init__(self, session: Session) -> None:
        self.session, self.batch = session, 8 if session.small else 512
        side = config(session, "vit_b_16").image.image_size
        self.pixels = torch.randn(self.batch, 3, side, side, device=session.device)
        self.tokens = random_captions(self.batch).to(session.device)
        self.repeats = 1 if session.small else 3

    def miniclip(self, model: Any) -> Step:
        """Return miniclip's step; captions are as long as the trainer makes them for a compiled model."""
        settings = TrainConfig(lr=LR, precision="bfloat16")
        optimizer, loss = build_optimizer(model.train(), settings), loss_function(settings, model)
        inputs = Inputs(self.pixels, pad_to_multiple(trim(self.tokens), model.config.text.context_length))
        return partial(plain_step, model, optimizer, inputs, loss, step_options(settings, model.device))

    def time(self, row: GpuRow, steps: dict[str, Step], model: Any) -> None:
        """Time the steps, and measure the memory of each."""

        def repeated(step: Step) -> None:
            for _ in range(self.repeats):
                step()

        steps = working(row, steps)
        calls = {name: partial(repeated, step) for name, step in steps.items()}
        row.unit, row.values = "pairs/s", interleaved(calls, self.session.rounds, work=self.batch * self.repeats)
        length = round(float((self.tokens != 0).sum(dim=1).float().mean()))  # padding does not count
        row.flops = pair_flops(model, length)
        if self.session.device == "cuda":
            row.memory = {name: peak_mib(step) for name, step in steps.items()}


def peak_mib(call: Callable[[], Any], before: Callable[[], Any] = lambda: None) -> float:
    """Return the peak memory of a call in MiB, above what is in use after `before`."""
    before()
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    in_use = torch.cuda.memory_allocated()
    call()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - in_use) / 2**20


def rows(session: Session) -> None:
    """Write the rows."""
    steps = Steps(session)
    models, absences = with_peers(session, "vit_b_16", ("open_clip",))
    ours, peer = models["miniclip"].model, models.get("open_clip")
    reference: Any = fresh(config(session, "bert_vit_b_16")).to(session.device)
    case = f"batch {steps.batch}, bf16"

    @functools.cache
    def best_peer() -> Step:
        assert peer is not None
        if session.device == "cuda":
            peer.model.compile()
        return partial(baseline_step(peer, "bfloat16", fused=True), steps.pixels, steps.tokens)

    def not_compiled(row: GpuRow) -> None:
        calls = {"miniclip": steps.miniclip(ours)}
        row.notes += absences
        if peer is not None:
            row.notes.append(f"losses of two steps differ by {difference(models, steps):.0e}")
            calls["open_clip"] = partial(baseline_step(peer, "bfloat16"), steps.pixels, steps.tokens)
        steps.time(row, calls, ours)

    def compiled(row: GpuRow, model: Any, beside: bool) -> None:
        calls = {"miniclip": steps.miniclip(model)}
        if session.device == "cuda" and "forward" not in vars(model.image.blocks[0]):
            compile_apart(model)
        if beside and peer is not None:
            calls["open_clip, compiled as a whole, fused AdamW"] = best_peer()
        row.notes += absences
        steps.time(row, calls, model)

    session.measure("training step", f"{OPENAI}, {case}, not compiled", not_compiled, 15)
    session.measure(
        "training step",
        f"{REFERENCE}, {case}, not compiled",
        lambda row: steps.time(row, {"miniclip": steps.miniclip(reference)}, reference),
        10,
    )
    alone = partial(compiled, model=reference, beside=False)  # open_clip's compilation is long, and comes last
    session.measure("training step", f"{REFERENCE}, {case}, compiled", alone, 40)
    kinds = partial(profiled, step=steps.miniclip(reference))
    session.measure("where the time goes", f"a step of {REFERENCE}, {case}, compiled", kinds, 5)
    for name, model, seconds in ((OPENAI, ours, 45), (REFERENCE, reference, 10)):
        fill = partial(compiled, model=model, beside=True)
        session.measure("training step", f"{name}, {case}, compiled, beside open_clip", fill, seconds)


def difference(models: dict[str, Implementation], steps: Steps) -> float:
    """Return how far the losses of two steps differ; exit if that is more than bf16 explains."""
    first = {name: models[name] for name in ("miniclip", "open_clip")}
    ours, peer = steps.miniclip(first["miniclip"].model), baseline_step(first["open_clip"], "bfloat16")
    calls = {"miniclip": lambda *_: ours().metrics["loss"], "open_clip": peer}
    return check(first, calls, steps.pixels, steps.tokens, "bfloat16")


def profiled(row: GpuRow, step: Step) -> None:
    """Set the milliseconds of a step by kind of kernel."""
    step()
    row.unit, row.lower_is_better = "ms", True
    row.values = {kind: [milliseconds] for kind, milliseconds in time_by_kind(step, 3).items()}
