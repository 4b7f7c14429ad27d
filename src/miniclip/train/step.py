"""One step of training: plain, and the same one in the memory of a part of its batch. Letter: B batch."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from miniclip.inference.model import CLIPModel
from miniclip.losses import contrastive_loss, sigmoid_loss
from miniclip.models.clip import CLIPOutput
from miniclip.runtime.distributed import average_gradients
from miniclip.runtime.fsdp import clip_gradients, gradient_norm
from miniclip.train.config import TrainConfig
from miniclip.train.optimizer import step_where
from miniclip.utils.randomness import RandomState, random_state, set_random_state

LossFunction = Callable[[CLIPOutput], Tensor]
Inputs = Callable[[slice], tuple[Tensor, Tensor, Tensor | None]]  # rows to pixels, tokens, and the patches kept or None


class StepResult(NamedTuple):
    """Figures of a step, left on the device: reading them would wait for it."""

    loss: Tensor
    grad_norm: Tensor
    grad_norm_image: Tensor  # of the image tower's parameters, before clipping as the whole
    grad_norm_text: Tensor
    grad_norm_rest: Tensor  # of the scale and the bias
    logit_scale: Tensor
    seen: CLIPOutput  # what the loss was taken of, without gradient: this rank's rows

    @property
    def figures(self) -> dict[str, Tensor]:
        """The scalars, by the names that they have in a record."""
        return {name: value for name, value in self._asdict().items() if name != "seen"}


def loss_function(config: TrainConfig, model: CLIPModel) -> LossFunction:
    """The loss that the settings name, as a function of what the model puts out.

    Raises:
        ValueError: the sigmoid loss, and a model without a bias.
    """
    if config.loss == "contrastive":
        return lambda out: contrastive_loss(out.image_embeddings, out.text_embeddings, out.logit_scale)
    if model.logit_bias is None:
        raise ValueError(
            "loss 'sigmoid' needs a model with a bias: configure it with logit_bias=-10.0 and logit_scale=10.0 "
            "(SigLIP's own), or use loss 'contrastive'"
        )

    def loss(out: CLIPOutput) -> Tensor:
        assert out.logit_bias is not None
        return sigmoid_loss(out.image_embeddings, out.text_embeddings, out.logit_scale, out.logit_bias)

    return loss


def plain_step(
    model: CLIPModel,
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
    out = forward(model, inputs(slice(0, batch)), config)
    loss = loss_of(out)
    loss.backward()  # type: ignore[no-untyped-call]
    return _update(model, optimizer, loss, out, config)


def cached_step(
    model: CLIPModel,
    optimizer: torch.optim.Optimizer,
    inputs: Inputs,
    batch: int,
    loss_of: LossFunction,
    config: TrainConfig,
) -> StepResult:
    """The same step with the memory of a micro batch (gradient caching: Gao et al. 2021, https://arxiv.org/abs/2101.06983).

    The loss sees the embeddings alone. So: embed the batch part by part without a graph; differentiate the loss with
    respect to the embeddings, the scale and the bias; then embed each part again, with a graph, and push its
    embeddings' gradient through it. The random state of each part is replayed, so that both passes are the same. What
    mixes the rows of a batch (batch norm) sees those of a part.

    Args:
        model: as in `plain_step`, and so are the others.
        optimizer: as in `plain_step`.
        inputs: called twice for each part; it must answer the same.
        batch: as in `plain_step`.
        loss_of: as in `plain_step`.
        config: also the size of a part, `micro_batch_size`.
    """
    parts = _parts(batch, config)
    if len(parts) < 2:
        return plain_step(model, optimizer, inputs, batch, loss_of, config)
    embeddings, states = _embed(model, inputs, parts, config)
    images, texts = (side.requires_grad_() for side in embeddings)
    out = CLIPOutput(images, texts, model.log_scale.exp(), model.logit_bias)
    loss, gradients = _loss_and_gradients(out, loss_of)
    for part, state in zip(parts, states, strict=True):
        set_random_state(model.device, state)
        _push(forward(model, inputs(part), config), [side[part] for side in gradients])
    return _update(model, optimizer, loss, out, config)


def _parts(batch: int, config: TrainConfig) -> list[slice]:
    size = batch if config.micro_batch_size is None else config.micro_batch_size
    if size == "auto":
        raise ValueError("micro_batch_size is 'auto'; a step needs a number: `find_micro_batch_size` finds it")
    return [slice(start, min(start + size, batch)) for start in range(0, batch, size)]


@torch.no_grad()
def _embed(
    model: CLIPModel, inputs: Inputs, parts: list[slice], config: TrainConfig
) -> tuple[list[Tensor], list[RandomState]]:
    """The embeddings of both sides, each (B, E), and the random state before each part."""
    states, embedded = [], []
    for part in parts:
        states.append(random_state(model.device))
        embedded.append(forward(model, inputs(part), config)[:2])
    return [torch.cat(side) for side in zip(*embedded, strict=True)], states


def _loss_and_gradients(out: CLIPOutput, loss_of: LossFunction) -> tuple[Tensor, list[Tensor]]:
    """The loss, and its gradients by the embeddings; those by scale and bias go to the parameters, here alone."""
    loss = loss_of(out)
    loss.backward()  # type: ignore[no-untyped-call]
    gradients = [side.grad for side in out[:2] if side.grad is not None]
    assert len(gradients) == 2
    return loss.detach(), gradients


def _push(out: CLIPOutput, gradients: list[Tensor]) -> None:
    """The embeddings' gradients into the towers, but for a tower that is frozen."""
    sides = out[:2]
    trained = [i for i, side in enumerate(sides) if side.requires_grad]
    if trained:
        torch.autograd.backward([sides[i] for i in trained], [gradients[i] for i in trained])


def forward(model: CLIPModel, inputs: tuple[Tensor, Tensor, Tensor | None], config: TrainConfig) -> CLIPOutput:
    """The model's output for pixels, tokens and patches kept, in the precision of the settings."""
    with torch.autocast(model.device.type, torch.bfloat16, enabled=config.precision == "bfloat16"):
        out: CLIPOutput = model(*inputs)
    return out


def _update(
    model: CLIPModel, optimizer: torch.optim.Optimizer, loss: Tensor, out: CLIPOutput, config: TrainConfig
) -> StepResult:
    """EMA the gradient over the ranks, clip it, step, clamp the scale; without finite figures, change nothing."""
    average_gradients(model.parameters())  # once a step, however many backward passes the micro batches took
    norms = torch.stack([gradient_norm(group, loss) for group in by_tower(model)])
    norm = norms.norm()
    clip_gradients(model.parameters(), config.max_grad_norm, norm)
    step_where(optimizer, torch.isfinite(norm) & torch.isfinite(loss.detach()))
    optimizer.zero_grad()
    with torch.no_grad():  # above it training gets unstable (CLIPModel, section 2.5); below 1 the softmax is flat
        model.log_scale.clamp_(0.0, math.log(config.max_logit_scale))
    image_norm, text_norm, rest_norm = norms.unbind()
    seen = _detached(out)
    return StepResult(loss.detach(), norm, image_norm, text_norm, rest_norm, seen.logit_scale, seen)


def _detached(out: CLIPOutput) -> CLIPOutput:
    images, texts, scale, bias = out
    return CLIPOutput(images.detach(), texts.detach(), scale.detach(), None if bias is None else bias.detach().clone())


def by_tower(model: CLIPModel) -> tuple[list[nn.Parameter], list[nn.Parameter], list[nn.Parameter]]:
    """The parameters of the image tower, of the text tower, and the rest: the scale, and the bias if there is one."""
    towers = list(model.image.parameters()), list(model.text.parameters())
    ours = {id(parameter) for tower in towers for parameter in tower}
    return *towers, [parameter for parameter in model.parameters() if id(parameter) not in ours]
