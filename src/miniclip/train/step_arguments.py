"""Arguments of a training step: its loss, its options and its inputs, from settings and batches.

Letters: B batch of all ranks, C captions per image, S image size.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from miniclip.config import ImageConfig
from miniclip.data.augmentation import Augment
from miniclip.data.loader import Batch
from miniclip.data.sources.captions import caption_keys
from miniclip.inference.model import CLIPModel
from miniclip.losses import contrastive_loss, sigmoid_loss
from miniclip.models.clip import CLIPOutput
from miniclip.models.vision import draw_patches
from miniclip.runtime import distributed, fsdp
from miniclip.runtime.compilation import pad_to_multiple
from miniclip.runtime.devices import send
from miniclip.tokenizer import TextTokenizer
from miniclip.train.config import TrainConfig
from miniclip.train.step import Inputs, LossFunction, StepOptions
from miniclip.train.variants.resolution import image_size_of_step, resized_images
from miniclip.utils.randomness import generator


class TrainingLoss:
    """The loss that the settings name.

    A call with the model's output gives the loss of matching pairs, without label smoothing: validation reports it, so
    that runs with other settings can be compared. `for_batch` gives the loss of a training batch.

    Args:
        config: the settings.
        tokenizer: of the captions.
    """

    def __init__(self, config: TrainConfig, tokenizer: TextTokenizer | None) -> None:
        self.config, self.tokenizer = config, tokenizer

    def __call__(self, output: CLIPOutput, **options: Any) -> Tensor:
        """Return the loss of an output; the options are those of `miniclip.contrastive_loss`."""
        embeddings = output.image_embeddings, output.text_embeddings, output.logit_scale
        if self.config.loss == "contrastive":
            return contrastive_loss(*embeddings, **options)
        assert output.logit_bias is not None
        return sigmoid_loss(*embeddings, output.logit_bias, **options)

    def for_batch(self, batch: Batch) -> LossFunction:
        """Return the loss of this rank's rows of a batch, as a function of the model's output."""
        captions, options = self.config.captions_per_image, dict[str, Any](label_smoothing=self.config.label_smoothing)
        if self.config.positives == "all":
            text_ids = caption_keys(batch.tokens, self.tokenizer)
            options |= {"ids": text_ids.view(-1, captions), "text_ids": text_ids}
        elif captions > 1:
            options |= {"ids": batch.rows, "text_ids": batch.rows.repeat_interleave(captions)}
        return functools.partial(self, **options)


def loss_function(config: TrainConfig, model: CLIPModel) -> TrainingLoss:
    """Return the loss that the settings name.

    Raises:
        ValueError: the loss is "sigmoid" and the model has no bias.
    """
    if config.loss == "sigmoid" and model.logit_bias is None:
        raise ValueError(
            "loss 'sigmoid' needs a model with a logit bias, and this one was trained with the contrastive loss: start "
            "a new run from it, as `miniclip finetune MODEL DATA --loss sigmoid` does, which adds the bias; in Python, "
            "call model.add_logit_bias() before Trainer(model, …). A resumed run keeps its loss: use loss 'contrastive'"
        )
    return TrainingLoss(config, model.tokenizer)


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
        tokens: captions on the CPU, C of each image.
        patch_indices: patches that are computed; None: all.
        parts: images of each part.
        image_size: side of the images that the model gets, in pixels.
    """

    model: CLIPModel
    augment: Augment
    parameters: Tensor
    pixels: Tensor  # (B, 3, S, S)
    tokens: Tensor  # (B * C, T)
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
        tokens = send(self.tokens[self.caption_rows(rows)], device)
        patch_indices = None if self.patch_indices is None else send(self.patch_indices[rows], device)
        pixels = self.model.preprocess.normalise(pixels)
        image = self.model.config.image
        if isinstance(image, ImageConfig) and image.stem == "conv":  # the layout of its norms, faster for convolutions
            pixels = pixels.contiguous(memory_format=torch.channels_last)
        return Inputs(pixels, tokens, patch_indices)

    def caption_rows(self, images: slice) -> slice:
        """Return the rows of the images' captions."""
        captions = len(self.tokens) // len(self.pixels)
        return slice(images.start * captions, images.stop * captions)


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
        flip = config.flip and not config.swap_left_right  # then the loader mirrors images, with their captions
        self.augment = Augment(config.min_crop_area, config.max_rotation_degrees, flip, config.color_jitter)

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
        parts = split(len(batch.pixels), self.config.micro_batch_size)
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
