"""Requirements of a run that need no image: a trainer and `--check` refuse the same models, data and settings."""

from __future__ import annotations

from typing import Any

import torch

from miniclip.data.cache.reading import require_pixels
from miniclip.data.dataset import ImageCaptionDataset
from miniclip.data.replay import batch_and_steps, require_replay
from miniclip.inference.model import CLIPModel
from miniclip.runs.saveable import require_saveable
from miniclip.runtime import fsdp
from miniclip.tokenizer import TextTokenizer
from miniclip.tower_config import OtherImageConfig
from miniclip.train.config import TrainConfig
from miniclip.train.step_arguments import loss_function
from miniclip.train.variants.resolution import require_image_size
from miniclip.utils.items import describe
from miniclip.utils.option_names import option

# settings that need parts of a vision transformer of miniclip's
PARTS = {
    "patch_dropout": "patches to leave out",
    "stochastic_depth": "miniclip's blocks to skip",
    "gradient_checkpointing": "miniclip's blocks to recompute",
}


def require_trainable(
    model: CLIPModel, train_data: ImageCaptionDataset, val_data: ImageCaptionDataset | None, config: TrainConfig
) -> None:
    """Check that a run can start.

    Raises:
        ValueError: the model has float16 weights or no tokenizer, cannot be saved or does not fit the loss; a cache was
            built for another model; a batch has fewer than two pairs, or not the same number on each rank under FSDP;
            no image has as many captions as a step takes; replayed images are validation images, or too few.
        TypeError: the model is not a CLIPModel.
    """
    require_saveable(model)
    require_wide_weights(model)
    require_tokenizer(model)
    require_image_size(model.image, config)
    require_parts(model, config)
    loss_function(config, model)
    pairs = require_pairs(config, train_data)
    require_replay(train_data, val_data)
    require_captions(config, train_data)
    for data in (train_data, val_data):
        require_pixels(data, model)  # now, not after an epoch
    if config.fsdp:
        fsdp.require_even(pairs, skips_samples=config.on_error == "skip")


def require_types(model: Any, config: Any) -> None:
    """Raise TypeError if the arguments of a trainer are a name, a dict, or something else of another type."""
    if not isinstance(model, torch.nn.Module):
        raise TypeError(
            f"model: found {describe(model)}; expected a CLIPModel, as miniclip.load(name) and "
            "CLIPModel(config, tokenizer) return"
        )
    if not isinstance(config, TrainConfig):
        raise TypeError(
            f"config: found {describe(config)}; expected a TrainConfig, as TrainConfig(epochs=3) or, from a dict, "
            "TrainConfig.from_dict(values)"
        )


def require_wide_weights(model: CLIPModel) -> None:
    """Check that no weight is float16, which no precision of training computes with: updates of a weight vanish in it.

    Raises:
        ValueError: a weight is float16.
    """
    for name, weight in model.named_parameters():
        if weight.dtype == torch.float16:
            raise ValueError(
                f"the weight {name} is float16; training needs float32 weights: call model.float() before, and choose "
                f"{option('precision', 'bfloat16')} for speed"
            )


def require_parts(model: CLIPModel, config: TrainConfig) -> None:
    """Raise ValueError if a setting is for parts that the image tower does not have."""
    image = model.config.image
    for name, parts in PARTS.items():
        value = getattr(config, name)
        if value and isinstance(image, OtherImageConfig):
            raise ValueError(f"{name} is {value}, and the image tower is {image.label}, without {parts}: leave it out")


def require_tokenizer(model: CLIPModel) -> TextTokenizer:
    """Return the model's tokenizer.

    Raises:
        ValueError: the model has no tokenizer.
    """
    if model.tokenizer is None:
        raise ValueError(
            "the model has no tokenizer: make one with Tokenizer.train(captions, vocab_size), save it, and load the "
            f"model with {option('tokenizer', 'tokenizer.json')}"
        )
    return model.tokenizer


def require_captions(config: TrainConfig, data: ImageCaptionDataset) -> None:
    """Check that an image has as many captions as a step takes of each.

    Raises:
        ValueError: no image has that many, so that captions would repeat in every row.
    """
    most = max(map(len, data.captions))
    if config.captions_per_image > most:
        raise ValueError(
            f"captions_per_image is {config.captions_per_image}, and no training image has more than {most} "
            f"caption{'' if most == 1 else 's'}: choose {option('captions_per_image', most)} or less"
        )


def require_pairs(config: TrainConfig, data: ImageCaptionDataset) -> int:
    """Return the number of pairs of a batch.

    Raises:
        ValueError: there are fewer than two: a pair without others to compare it with teaches nothing.
    """
    images = len(data)
    if images == 0:
        raise ValueError("the training data are empty; give at least two images")
    if images == 1:
        raise ValueError("the training data have one image; a batch compares an image with others: give at least two")
    if config.batch_size == 1:
        raise ValueError(
            "batch_size is 1; a batch compares each image with the captions of the others, so that it needs at least "
            "two pairs: use a batch_size of 2 or more, as large as possible; with micro_batch_size 1 only one pair is "
            "in memory at a time"
        )
    return batch_and_steps(data, config.batch_size)[0]
