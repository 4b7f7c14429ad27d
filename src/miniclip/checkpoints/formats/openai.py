"""OpenAI's layout: a state dict without a configuration. Everything but the number of heads follows from its shapes.

Source: `build_model` in https://github.com/openai/CLIP, clip/model.py.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from miniclip.checkpoints.foreign_config import (
    count_layers,
    end_of_argmax,
    grid_side,
    shape_of,
    warn_if_cropped_differently,
)
from miniclip.checkpoints.formats.open_clip import other_rows
from miniclip.checkpoints.key_maps import OPENAI_IMAGE, OPENAI_SIZES, OPENAI_TEXT, SCALARS, TEXT_MATRIX, Row
from miniclip.checkpoints.operations import Shape
from miniclip.checkpoints.plans import ExportPlan, LoadPlan
from miniclip.config import OPENAI_MEAN, OPENAI_STD, CLIPConfig, ImageConfig, TextConfig
from miniclip.inference.image_towers import POSITIONS
from miniclip.tower_config import STRIDE, OtherImageConfig, ResNetConfig, TimmConfig

HEAD_WIDTH = 64
RESNET_KEY = "visual.layer1.0.conv1.weight"  # only a ResNet has it
TEXT_ROWS: tuple[Row, ...] = (*OPENAI_TEXT, *TEXT_MATRIX, *SCALARS[:1])
WEIGHTS = "model.pt"


def load_plan(shapes: Mapping[str, Shape]) -> LoadPlan:
    """Return the plan for a state dict.

    Raises:
        ValueError: it is not one of OpenAI's models.
    """
    text_width, embed_dim = shape_of(shapes, "text_projection", 2)
    vocab_size, _ = shape_of(shapes, "token_embedding.weight", 2)
    text = TextConfig(
        context_length=shape_of(shapes, "positional_embedding", 2)[0],
        vocab_size=vocab_size,
        width=text_width,
        layers=count_layers(shapes, "transformer.resblocks.{i}.ln_1.weight"),
        heads=text_width // HEAD_WIDTH,
        activation="quickgelu",
        causal=True,
        pooling="end",
        end_id=end_of_argmax(vocab_size),
    )
    image = _resnet(shapes) if RESNET_KEY in shapes else _vision_transformer(shapes)
    config = CLIPConfig(image, text, embed_dim)
    return LoadPlan(config, (*key_map(config, shapes), *OPENAI_SIZES), {"clean": "lower"})


def key_map(config: CLIPConfig, keys: Iterable[str] = ()) -> tuple[Row, ...]:
    """Return the key map of a model; `keys` are the names in a file, of which a ResNet's counters are ignored."""
    is_resnet = isinstance(config.image, ResNetConfig)
    return (*(other_rows(config, keys) if is_resnet else OPENAI_IMAGE), *TEXT_ROWS)


def _vision_transformer(shapes: Mapping[str, Shape]) -> ImageConfig:
    width, _, patch, _ = shape_of(shapes, "visual.conv1.weight", 4)
    return ImageConfig(
        image_size=patch * grid_side(shape_of(shapes, "visual.positional_embedding", 2)[0], class_tokens=1),
        patch_size=patch,
        width=width,
        layers=count_layers(shapes, "visual.transformer.resblocks.{i}.ln_1.weight"),
        heads=width // HEAD_WIDTH,
        activation="quickgelu",
    )


def _resnet(shapes: Mapping[str, Shape]) -> ResNetConfig:
    channels = shape_of(shapes, RESNET_KEY, 4)[0]
    side = grid_side(shape_of(shapes, f"visual.{POSITIONS}", 2)[0], class_tokens=1)
    first, second, third, fourth = (
        count_layers(shapes, f"visual.layer{stage}.{{i}}.conv1.weight") for stage in (1, 2, 3, 4)
    )
    return ResNetConfig(STRIDE * side, (first, second, third, fourth), channels, 32 * channels // HEAD_WIDTH)


def size_tensors(config: CLIPConfig) -> dict[str, Tensor]:
    """Return the three integers in OpenAI's own state dicts, by which they differ from open_clip's."""
    numbers = (config.image.image_size, config.text.context_length, config.text.vocab_size)
    return {str(row.keys): torch.tensor(number) for row, number in zip(OPENAI_SIZES, numbers, strict=True)}


def export_plan(config: CLIPConfig) -> ExportPlan:
    """Return the plan for writing a model as OpenAI's state dict.

    Raises:
        ValueError: OpenAI's code cannot build the model; the message gives the reason.
    """
    if isinstance(config.image, TimmConfig):
        raise ValueError(  # noqa: TRY004 (of a configuration)
            f"OpenAI's code cannot build this image tower, {config.image.label}: use the layout open_clip"
        )
    image_width = config.image.features if isinstance(config.image, ResNetConfig) else config.image.width
    for name, width in (("image", image_width), ("text", config.text.width)):
        if width % HEAD_WIDTH:
            raise ValueError(f"OpenAI's heads are {HEAD_WIDTH} wide; {name}.width {width} is not a multiple of it")
    warn_if_cropped_differently(config, "rounded", "OpenAI's code")
    differences = _differences(_rebuilt(config).to_dict(), config.to_dict())
    if differences:
        raise ValueError(f"OpenAI's layout has no configuration, and its code builds another model: {differences}")
    return ExportPlan(key_map(config), {}, WEIGHTS)


def _rebuilt(config: CLIPConfig) -> CLIPConfig:
    """Return the model that OpenAI's code builds from the weights of this one."""
    image, text = config.image, config.text
    return CLIPConfig(
        _rebuilt_image(image),
        TextConfig(
            text.context_length,
            text.vocab_size,
            text.width,
            text.layers,
            text.width // HEAD_WIDTH,
            activation="quickgelu",
            causal=True,
            pooling="end",
            end_id=None if text.end_id is None else -1,  # its code takes the highest id of a row
        ),
        config.embed_dim,
        logit_scale=config.logit_scale,
        mean=OPENAI_MEAN,
        std=OPENAI_STD,
        crop_rounding=config.crop_rounding,
    )


def _rebuilt_image(image: ImageConfig | OtherImageConfig) -> ImageConfig | OtherImageConfig:
    if isinstance(image, ResNetConfig):
        return dataclasses.replace(image, pool_heads=image.features // HEAD_WIDTH)
    return ImageConfig(
        image.grid * image.patch_size,
        image.patch_size,
        image.width,
        image.layers,
        image.width // HEAD_WIDTH,
        activation="quickgelu",
    )


def _differences(expected: Mapping[str, object], values: Mapping[str, object], prefix: str = "") -> str:
    """Describe the differences, such as `image.activation is 'gelu', there 'quickgelu'; …`."""
    parts = []
    for key, value in expected.items():
        other = values[key]
        if isinstance(value, Mapping) and isinstance(other, Mapping):
            parts.append(_differences(value, other, f"{prefix}{key}."))
        elif value != other:
            parts.append(f"{prefix}{key} is {other!r}, there {value!r}")
    return "; ".join(part for part in parts if part)
