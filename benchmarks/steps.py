"""A training step: forward, the contrastive loss, backward, AdamW; float32 and bfloat16 by autocast.

python -m benchmarks steps

Each implementation trains its own copy of one model on the same batches. Before anything is timed, the first loss and
the gradients of the positions must agree. `miniclip` is the trainer's own step, with clipping and metrics. The
baselines are set up as in their own training scripts, with open_clip's `ClipLoss` and torch's default AdamW. open_clip
pads texts to the context length, transformers to the longest. Both are timed again with their fastest settings.
"""

import statistics
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.baselines import Implementation, implementations, medium_precision, random_captions
from benchmarks.harness import Row, Scale, interleaved
from miniclip import CLIPConfig, TrainConfig
from miniclip.config import preset
from miniclip.runtime.compilation import compile_blocks
from miniclip.runtime.flops import pair_flops, peak_flops
from miniclip.train.optimizer import build_optimizer
from miniclip.train.step import Inputs, plain_step
from miniclip.train.step_arguments import loss_function, step_options

LR = 1e-5
FLICKR30K = 55 * 31_014  # pairs of the reference system's training


def rows(scale: Scale) -> Iterator[Row]:
    for name, (config, batch) in systems(scale).items():
        pixels = torch.randn(batch, 3, config.image.image_size, config.image.image_size, device=scale.device)
        tokens = random_captions(batch).to(scale.device)
        for precision in ("float32", "bfloat16"):
            models = implementations(config, scale.device)
            steps = {"miniclip": miniclip_step(models["miniclip"], precision)}
            for baseline in ("open_clip", "transformers"):
                steps[baseline] = baseline_step(models[baseline], precision)
            worst = check(models, steps, pixels, tokens, precision)
            for baseline in ("open_clip", "transformers"):
                best = baseline_step(models[baseline], precision, fused=True)
                steps[f"{baseline}, best settings"] = best if precision == "bfloat16" else with_medium_in(best)
            if scale.device == "cuda":  # compiled in the warm-up, which is not timed
                compile_all(models)
            calls = {who: partial(step, pixels, tokens) for who, step in steps.items()}
            values = interleaved(calls, scale.rounds, work=batch)
            if precision == "float32":
                targets = {baseline: 1.0 if "best" in baseline else 1.6 for baseline in steps if baseline != "miniclip"}
            else:
                targets = {baseline: 1.2 for baseline in steps if baseline in ("open_clip", "transformers")}
            share = share_of_peak(models["miniclip"].model, tokens, precision, statistics.median(values["miniclip"]))
            note = f"the first steps' losses differ by {worst:.0e}; miniclip makes use of {share:.0%} of the peak"
            if scale.device == "cuda":
                minutes = FLICKR30K / statistics.median(values["miniclip"]) / 60
                note += f"; 55 epochs of Flickr30k at this speed: {minutes:.0f} minutes"
            yield Row("training step", f"{name}, batch {batch}, {precision}", "pairs/s", values, targets, note=note)


def systems(scale: Scale) -> dict[str, tuple[CLIPConfig, int]]:
    """Return the architectures and batch sizes."""
    large = preset("vit_b_16")
    small = large.replace_image(image_size=64, patch_size=8, width=256, layers=6, heads=4)
    small = small.replace_text(width=256, layers=6, heads=4)
    if scale.small:
        return {"6 layers of 256, 64 px": (small.replace_image(layers=1).replace_text(layers=1), 8)}
    if scale.device != "cpu":
        return {f"ViT-B/16 at {batch}": (large, batch) for batch in (256, 512, 1024)}
    return {"6 layers of 256, 64 px": (small, 128), "ViT-B/16": (large, 8)}


def miniclip_step(contender: Implementation, precision: str) -> Callable[[Tensor, Tensor], Tensor]:
    """Return the trainer's step."""
    model: Any = contender.model.train()
    config = TrainConfig(lr=LR, precision=precision)  # type: ignore[arg-type]
    optimizer, loss, options = (
        build_optimizer(model, config),
        loss_function(config, model),
        step_options(config, model.device),
    )

    def step(pixels: Tensor, tokens: Tensor) -> Tensor:
        return plain_step(model, optimizer, Inputs(pixels, trim(tokens)), loss, options).metrics["loss"]

    return step


def compile_all(models: dict[str, Implementation]) -> None:
    """Compile all models: miniclip by blocks, as in the trainer, the baselines as a whole, as in their scripts.

    It drops the graphs of earlier models: after another batch size, torch compiles for dynamic shapes.
    """
    torch.compiler.reset()
    compile_blocks(models["miniclip"].model)  # type: ignore[arg-type]
    for baseline in ("open_clip", "transformers"):
        models[baseline].model.compile()


def share_of_peak(model: Any, tokens: Tensor, precision: str, rate: float) -> float:
    """Return the MFU: the FLOPs of the towers at `rate` samples per second by the machine's peak.

    Captions count with their lengths, without padding.
    """
    length = round(float((tokens != 0).sum(dim=1).float().mean()))
    return rate * pair_flops(model, length) / peak_flops(tokens.device, precision)  # type: ignore[operator, arg-type]


def trim(tokens: Tensor) -> Tensor:
    """Cut the padding, as the loader does."""
    return tokens[:, : int((tokens != 0).sum(dim=1).max())]


def baseline_step(
    contender: Implementation, precision: str, fused: bool | None = None
) -> Callable[[Tensor, Tensor], Tensor]:
    """Return a baseline's step with open_clip's loss."""
    from open_clip.loss import ClipLoss

    model, loss_of = contender.model.train(), ClipLoss()
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR, betas=(0.9, 0.98), eps=1e-6, fused=fused)
    device = next(model.parameters()).device.type

    def step(pixels: Tensor, tokens: Tensor) -> Tensor:
        with torch.autocast(device, torch.bfloat16, enabled=precision == "bfloat16"):
            images, texts, factor = contender.pair(pixels, tokens)[:3]
            loss = loss_of(images, texts, factor)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return loss.detach()

    return step


def with_medium_in(step: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
    def run(pixels: Tensor, tokens: Tensor) -> Tensor:
        with medium_precision():
            return step(pixels, tokens)

    return run


def check(
    models: dict[str, Implementation],
    steps: dict[str, Callable[[Tensor, Tensor], Tensor]],
    pixels: Tensor,
    tokens: Tensor,
    precision: str,
) -> float:
    """Fail if the losses of two steps differ; the second one depends on the update of the first."""
    tolerance = 1e-4 if precision == "float32" else 2e-2
    worst = 0.0
    for _ in range(2):
        losses = {name: float(step(pixels, tokens)) for name, step in steps.items()}
        worst = max(worst, max(losses.values()) - min(losses.values()))
    if not worst < tolerance * max(losses.values()):
        raise SystemExit(f"training steps differ: {losses}")
    return worst
