"""One step of training, in its plain form."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from miniclip.losses import contrastive_loss, sigmoid_loss
from miniclip.models.clip import CLIP, CLIPOutput
from miniclip.train.settings import TrainConfig

LossFunction = Callable[[CLIPOutput], Tensor]


class StepResult(NamedTuple):
    """Scalars of a step, left on the device: reading them would wait for it."""

    loss: Tensor
    grad_norm: Tensor
    logit_scale: Tensor


def loss_function(config: TrainConfig, model: CLIP) -> LossFunction:
    """The loss that the settings name, as a function of what the model puts out.

    Raises:
        ValueError: the sigmoid loss, and a model without a bias.
    """
    if config.loss == "contrastive":
        return lambda out: contrastive_loss(out.image_embeddings, out.text_embeddings, out.logit_scale)
    if model.bias is None:
        raise ValueError(
            "loss 'sigmoid' needs a model with a bias: configure it with logit_bias=-10.0 and logit_scale=10.0 "
            "(SigLIP's own), or use loss 'contrastive'"
        )

    def loss(out: CLIPOutput) -> Tensor:
        assert out.logit_bias is not None
        return sigmoid_loss(out.image_embeddings, out.text_embeddings, out.logit_scale, out.logit_bias)

    return loss


def plain_step(
    model: CLIP,
    optimizer: torch.optim.Optimizer,
    pixels: Tensor,
    tokens: Tensor,
    kept: Tensor | None,
    loss_of: LossFunction,
    config: TrainConfig,
) -> StepResult:
    """Forward, backward, clip, update, clamp the scale.

    Args:
        model: updated in place.
        optimizer: with this step's learning rate set.
        pixels: (B, 3, S, S), normalised, on the model's device.
        tokens: (B, T), on the model's device.
        kept: the patches to look at (`models.vision.draw_patches`); None: all.
        loss_of: the loss of the model's output.
        config: precision, clipping, greatest scale.
    """
    with torch.autocast(model.device.type, torch.bfloat16, enabled=config.precision == "bfloat16"):
        out = model(pixels, tokens, kept)
    loss = loss_of(out)
    loss.backward()  # type: ignore[no-untyped-call]
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), config.clip_norm)
    optimizer.step()
    optimizer.zero_grad()
    with torch.no_grad():  # above it training gets unstable (CLIP, section 2.5); below 1 the softmax is flat
        model.log_scale.clamp_(0.0, math.log(config.max_logit_scale))
    return StepResult(loss.detach(), norm.detach(), out.logit_scale.detach())
