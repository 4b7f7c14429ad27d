"""Gradient caching: a step on a large batch in the memory of one micro batch.

The loss depends on the towers only through the embeddings. So their gradients are computed first, and then carried
into the weights one micro batch at a time. Both passes use the same random state. Layers that mix rows (batch norm)
see the rows of one micro batch. Gao et al. 2021, https://arxiv.org/abs/2101.06983

Letters: B batch, C captions per image, E embedding.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.optim import Optimizer

from miniclip.inference.model import CLIPModel
from miniclip.models.clip import CLIPOutput
from miniclip.train.step import Inputs, LossFunction, StepOptions, StepResult, plain_step, update
from miniclip.utils.randomness import RandomState, random_state, set_random_state


def cached_step(
    model: CLIPModel, optimizer: Optimizer, micro_batches: Sequence[Inputs], loss: LossFunction, options: StepOptions
) -> StepResult:
    """Train the model on one batch that is given in parts; the result is that of `plain_step` on the whole batch.

    Stochastic depth draws other samples, since each part draws its own.

    Args:
        model: changed in place.
        optimizer: with the learning rate of this step.
        micro_batches: inputs of the parts. Each is indexed twice and must give the same inputs; only one is held.
        loss: function of the output for the whole batch.
        options: as in `plain_step`.
    """
    if len(micro_batches) == 1:
        return plain_step(model, optimizer, micro_batches[0], loss, options)
    images, texts, states = embed_without_graph(model, micro_batches, options)
    output = CLIPOutput(images.requires_grad_(), texts.requires_grad_(), model.log_scale.exp(), model.logit_bias)
    value, gradients = embedding_gradients(output, loss)
    backward_in_parts(model, micro_batches, gradients, states, options)
    return update(model, optimizer, value, output, options)


@torch.no_grad()
def embed_without_graph(
    model: CLIPModel, micro_batches: Sequence[Inputs], options: StepOptions
) -> tuple[Tensor, Tensor, list[RandomState]]:
    """Return image (B, E) and text (B * C, E) embeddings, and the random state before each micro batch."""
    states, embeddings = [], []
    for inputs in micro_batches:
        states.append(random_state(model.device))
        with options.autocast():
            embeddings.append(model(*inputs)[:2])
    images, texts = (torch.cat(side) for side in zip(*embeddings, strict=True))
    return images, texts, states


def embedding_gradients(output: CLIPOutput, loss: LossFunction) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """Return the loss and its gradients with respect to both embeddings; scale and bias get gradients too."""
    value = loss(output)
    value.backward()  # type: ignore[no-untyped-call]
    images, texts = output.image_embeddings.grad, output.text_embeddings.grad
    assert images is not None
    assert texts is not None
    return value.detach(), (images, texts)


def backward_in_parts(
    model: CLIPModel,
    micro_batches: Sequence[Inputs],
    gradients: tuple[Tensor, Tensor],
    states: Sequence[RandomState],
    options: StepOptions,
) -> None:
    """Embed each micro batch again and carry its embeddings' gradients into the weights; frozen towers get none."""
    for inputs, state in zip(micro_batches, states, strict=True):
        set_random_state(model.device, state)
        with options.autocast():
            embeddings = model(*inputs)[:2]
        trained = [index for index, side in enumerate(embeddings) if side.requires_grad]
        if trained:
            parts = [gradients[i][: len(embeddings[i])] for i in trained]
            torch.autograd.backward([embeddings[i] for i in trained], parts)
        gradients = gradients[0][len(embeddings[0]) :], gradients[1][len(embeddings[1]) :]
