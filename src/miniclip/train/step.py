"""One training step of CLIP. Letters: B batch, C captions per image, S image size, T tokens, K kept patches."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from miniclip.models.clip import CLIP, CLIPOutput

LossFunction = Callable[[CLIPOutput], Tensor]


class Inputs(NamedTuple):
    """Arguments of `CLIP.forward`: images, and C captions of each, image by image."""

    pixels: Tensor  # (B, 3, S, S), normalised
    tokens: Tensor  # (B * C, T)
    patch_indices: Tensor | None = None  # (B, K); None: all patches


class StepOptions(NamedTuple):
    """Limits of a step, and the functions that depend on precision, ranks and optimizer."""

    max_grad_norm: float
    max_logit_scale: float
    autocast: Callable[[], AbstractContextManager[Any]]
    average_gradients: Callable[[Iterable[Tensor]], None]  # over ranks
    gradient_norm: Callable[[Iterable[Tensor], Tensor], Tensor]  # norm of parameters; 2nd argument: dtype
    clip_gradients: Callable[[Iterable[Tensor], float, Tensor], None]
    update_if: Callable[[Optimizer, Tensor], None]


class StepResult(NamedTuple):
    """Metrics (scalars) and output of a step, detached, on the device."""

    metrics: dict[str, Tensor]
    output: CLIPOutput


def plain_step(model: CLIP, optimizer: Optimizer, inputs: Inputs, loss: LossFunction, opts: StepOptions) -> StepResult:
    """Train the model on one batch, in place."""
    with opts.autocast():
        output = model(*inputs)
    value = loss(output)
    value.backward()  # type: ignore[no-untyped-call]
    return update(model, optimizer, value.detach(), output, opts)


def update(model: CLIP, optimizer: Optimizer, loss: Tensor, output: CLIPOutput, opts: StepOptions) -> StepResult:
    """Clip the gradients and update the weights, unless the loss or a gradient is not finite."""
    opts.average_gradients(model.parameters())
    norms = {f"grad_norm_{name}": opts.gradient_norm(group, loss) for name, group in by_tower(model).items()}
    norm = torch.stack(list(norms.values())).norm()
    opts.clip_gradients(model.parameters(), opts.max_grad_norm, norm)
    opts.update_if(optimizer, norm.isfinite() & loss.isfinite())
    optimizer.zero_grad()
    if model.log_scale.requires_grad:
        with torch.no_grad():  # above it training is unstable (CLIP, section 2.5); below 1 the softmax is flat
            model.log_scale.clamp_(0.0, math.log(opts.max_logit_scale))
    output = CLIPOutput._make(x if x is None else x.detach() for x in output)
    return StepResult({"loss": loss, "grad_norm": norm, **norms, "logit_scale": output.logit_scale}, output)


def by_tower(model: CLIP) -> dict[str, list[nn.Parameter]]:
    """Return the parameters of the image tower, of the text tower, and the rest: scale and bias."""
    towers = {"image": list(model.image.parameters()), "text": list(model.text.parameters())}
    ids = {id(parameter) for tower in towers.values() for parameter in tower}
    return {**towers, "rest": [parameter for parameter in model.parameters() if id(parameter) not in ids]}
