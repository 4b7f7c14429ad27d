"""One step of training: plain, and the same one in the memory of a part of its batch. Letter: B batch."""

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
Inputs = Callable[[slice], tuple[Tensor, Tensor, Tensor | None]]  # rows to pixels, tokens, and the patches kept or None


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
    inputs: Inputs,
    batch: int,
    loss_of: LossFunction,
    config: TrainConfig,
) -> StepResult:
    """Forward and backward of the whole batch, then the update.

    Args:
        model: updated in place.
        optimizer: with this step's learning rate set.
        inputs: the model's inputs for a slice of the batch's rows.
        batch: B.
        loss_of: the loss of the model's output.
        config: precision, clipping, greatest scale.
    """
    out = _forward(model, inputs(slice(0, batch)), config)
    loss = loss_of(out)
    loss.backward()  # type: ignore[no-untyped-call]
    return _update(model, optimizer, loss, config)


def cached_step(
    model: CLIP,
    optimizer: torch.optim.Optimizer,
    inputs: Inputs,
    batch: int,
    loss_of: LossFunction,
    config: TrainConfig,
) -> StepResult:
    """The same step with the memory of a micro batch (gradient caching: Gao et al. 2021, https://arxiv.org/abs/2101.06983).

    The loss sees the embeddings alone. So: embed the batch part by part without a graph; differentiate the loss with
    respect to the embeddings, the scale and the bias; then embed each part again, with a graph, and push its
    embeddings' gradient through it. The random state of each part is replayed, so that both passes are the same.

    Args:
        model: as in `plain_step`, and so are the others.
        optimizer: as in `plain_step`.
        inputs: called twice for each part; it must answer the same.
        batch: as in `plain_step`.
        loss_of: as in `plain_step`.
        config: also the size of a part, `micro_batch_size`.
    """
    size = config.micro_batch_size or batch
    parts = [slice(start, min(start + size, batch)) for start in range(0, batch, size)]
    states, embedded = [], []
    with torch.no_grad():
        for part in parts:
            states.append(_random_state(model.device))
            embedded.append(_forward(model, inputs(part), config)[:2])
    images, texts = (torch.cat(side).requires_grad_() for side in zip(*embedded, strict=True))
    loss = loss_of(CLIPOutput(images, texts, model.log_scale.exp(), model.bias))
    loss.backward()  # type: ignore[no-untyped-call]
    assert images.grad is not None
    assert texts.grad is not None
    for part, state in zip(parts, states, strict=True):
        _set_random_state(model.device, state)
        out = _forward(model, inputs(part), config)
        torch.autograd.backward((out.image_embeddings, out.text_embeddings), (images.grad[part], texts.grad[part]))
    return _update(model, optimizer, loss, config)


def _forward(model: CLIP, inputs: tuple[Tensor, Tensor, Tensor | None], config: TrainConfig) -> CLIPOutput:
    with torch.autocast(model.device.type, torch.bfloat16, enabled=config.precision == "bfloat16"):
        out: CLIPOutput = model(*inputs)
    return out


def _update(model: CLIP, optimizer: torch.optim.Optimizer, loss: Tensor, config: TrainConfig) -> StepResult:
    """Clip the gradient, step, clamp the scale."""
    scale = model.log_scale.detach().exp()
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), config.clip_norm)
    optimizer.step()
    optimizer.zero_grad()
    with torch.no_grad():  # above it training gets unstable (CLIP, section 2.5); below 1 the softmax is flat
        model.log_scale.clamp_(0.0, math.log(config.max_logit_scale))
    return StepResult(loss.detach(), norm.detach(), scale)


def _random_state(device: torch.device) -> tuple[Tensor, Tensor | None]:
    return torch.get_rng_state(), torch.cuda.get_rng_state(device) if device.type == "cuda" else None


def _set_random_state(device: torch.device, state: tuple[Tensor, Tensor | None]) -> None:
    torch.set_rng_state(state[0])
    if state[1] is not None:
        torch.cuda.set_rng_state(state[1], device)
