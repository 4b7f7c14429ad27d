"""Arguments of a training step: its loss, its options and its inputs, from settings and batches.

Letters: B batch of all ranks, S image size.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from miniclip.data.augmentation import Augment
from miniclip.data.loader import Batch
from miniclip.inference.model import CLIPModel
from miniclip.losses import contrastive_loss, sigmoid_loss
from miniclip.models.clip import CLIPOutput
from miniclip.models.vision import draw_patches
from miniclip.runtime import distributed, fsdp
from miniclip.runtime.compilation import pad_to_multiple
from miniclip.runtime.devices import send
from miniclip.train.config import TrainConfig
from miniclip.train.step import Inputs, LossFunction, StepOptions
from miniclip.train.variants.resolution import image_size_of_step, resized_images
from miniclip.utils.randomness import generator


def loss_function(config: TrainConfig, model: CLIPModel) -> LossFunction:
    """Return the loss that the settings name, as a function of the model's output.

    Raises:
        ValueError: the loss is "sigmoid" and the model has no bias.
    """
    if config.loss == "contrastive":
        return lambda output: contrastive_loss(output.image_embeddings, output.text_embeddings, output.logit_scale)
    if model.logit_bias is None:
        raise ValueError(
            "loss 'sigmoid' needs a model with a logit bias, and this one was trained with the contrastive loss: start "
            "a new run from it, as `miniclip finetune MODEL DATA --loss sigmoid` does, which adds the bias; in Python, "
            "call model.add_logit_bias() before Trainer(model, …). A resumed run keeps its loss: use loss 'contrastive'"
        )

    def loss(output: CLIPOutput) -> Tensor:
        assert output.logit_bias is not None
        return sigmoid_loss(output.image_embeddings, output.text_embeddings, output.logit_scale, output.logit_bias)

    return loss


def step_options(config: TrainConfig, device: torch.device) -> StepOptions:
    """Return the options of a step in the settings' precision, on any number of ranks, with sharded weights or not."""
    enabled = config.precision == "bfloat16"
    return StepOptions(
        max_grad_norm=config.max_grad_norm,
        max_logit_scale=config.max_logit_scale,
        autocast=functools.partial(torch.autocast, device.type, torch.bfloat16, enabled=enabled),
        average_gradients=distributed.average_gradients,
        gradient_norm=fsdp.gradient_norm,
        clip_gradients=fsdp.clip_gradients,
        update_if=update_if,
    )


@dataclasses.dataclass(frozen=True)
class MicroBatches(Sequence[Inputs]):
    """Inputs of a batch in parts. Each part is sent to the device, augmented and normalised when it is indexed.

    Attributes:
        model: the model that the inputs are for.
        augment: the augmentation.
        parameters: the augmentation's random parameters, one row per image.
        pixels: images on the CPU, uint8.
        tokens: captions on the CPU.
        patch_indices: patches that are computed; None: all.
        parts: rows of each part.
        image_size: side of the images that the model gets, in pixels.
    """

    model: CLIPModel
    augment: Augment
    parameters: Tensor
    pixels: Tensor  # (B, 3, S, S)
    tokens: Tensor  # (B, T)
    patch_indices: Tensor | None  # (B, K)
    parts: Sequence[slice]
    image_size: int

    def __len__(self) -> int:
        return len(self.parts)

    def __getitem__(self, index):  # type: ignore[no-untyped-def]
        """Return the inputs of one part."""
        rows, device = self.parts[index], self.model.device
        pixels = self.augment.apply(send(self.pixels[rows], device), send(self.parameters[rows], device))
        pixels = resized_images(pixels, self.image_size)
        tokens = send(self.tokens[rows], device)
        patch_indices = None if self.patch_indices is None else send(self.patch_indices[rows], device)
        return Inputs(self.model.preprocess.normalise(pixels), tokens, patch_indices)


class InputPreparation:
    """Prepares a batch for the model: augmentation, patch dropout, micro batches.

    Random numbers depend on the seed and the step only, and are drawn for the rows of all ranks. So any number of
    ranks computes the same batch.

    Args:
        model: the model that the inputs are for.
        config: the settings.
        batch_size: B.
        total_steps: steps of the run, for settings that depend on it; 0: as at its end.
    """

    def __init__(self, model: CLIPModel, config: TrainConfig, batch_size: int, total_steps: int = 0) -> None:
        self.model, self.config, self.batch_size, self.total_steps = model, config, batch_size, total_steps
        self.augment = Augment(config.min_crop_area, config.max_rotation_degrees, config.flip, config.color_jitter)

    def __call__(self, batch: Batch, step: int) -> MicroBatches:
        """Return the inputs of this rank's rows at a step, in micro batches of the settings' size."""
        seed, dropout = self.config.seed, self.config.patch_dropout
        parameters = self.augment.draw(self.batch_size, generator(seed, "augment", step))[batch.rows]
        patch_indices = None
        image = self.model.config.image
        size = image_size_of_step(step, self.total_steps, self.config) or image.image_size
        if dropout:
            patches, random = (size // image.patch_size) ** 2, generator(seed, "patches", step)
            patch_indices = draw_patches(self.batch_size, patches, dropout, random)[batch.rows]
        tokens = batch.tokens
        if self.config.compile and self.model.config.text.padding == "masked":
            tokens = pad_to_multiple(tokens, self.model.config.text.context_length)
        parts = split(len(tokens), self.config.micro_batch_size)
        return MicroBatches(self.model, self.augment, parameters, batch.pixels, tokens, patch_indices, parts, size)


def split(size: int, micro_batch_size: int | Literal["auto"] | None) -> list[slice]:
    """Return the rows of each micro batch; None is one micro batch.

    Raises:
        ValueError: the micro batch size is "auto", which must be resolved first.
    """
    if micro_batch_size == "auto":
        raise ValueError("micro_batch_size is 'auto'; a step needs a number: `find_micro_batch_size` finds it")
    width = micro_batch_size or size
    return [slice(start, min(start + width, size)) for start in range(0, size, width)]


def update_if(optimizer: torch.optim.Optimizer, finite: Tensor) -> None:
    """Update the weights if `finite` () is true; otherwise change neither weights nor moments nor step counts.

    Fused kernels read the flag on the device (gradient scalers pass it to them), so that nothing waits for it.
    """
    if optimizer.defaults.get("fused") and not any(
        distributed.is_sharded(p) for g in optimizer.param_groups for p in g["params"]
    ):
        optimizer.found_inf = (~finite).float()  # type: ignore[attr-defined]
        optimizer.step()
    elif finite:
        optimizer.step()
