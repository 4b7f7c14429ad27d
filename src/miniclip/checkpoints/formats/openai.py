"""OpenAI's layout: a state dict and no settings; all but the number of heads is in the shapes, and those are 64 wide.

Source: `build_model` in https://github.com/openai/CLIP, clip/model.py.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from miniclip.checkpoints.key_maps import OPENAI_IMAGE, OPENAI_MARKS, OPENAI_TEXT, SCALARS, TEXT_MATRIX, Row
from miniclip.checkpoints.layout import Plan, Written, layers, shape_of, side, warn_of_crops
from miniclip.checkpoints.operations import Shape
from miniclip.config import OPENAI_MEAN, OPENAI_STD, CLIPConfig, ImageConfig, TextConfig

HEAD = 64  # the width of a head
OPENAI_VOCABULARY = 49408
ROWS: tuple[Row, ...] = (*OPENAI_IMAGE, *OPENAI_TEXT, *TEXT_MATRIX, *SCALARS[:1])
WEIGHTS = "model.pt"


def plan(shapes: Mapping[str, Shape]) -> Plan:
    """The model that a state dict is.

    Raises:
        ValueError: it is none of OpenAI's vision transformers.
    """
    width, _, patch, _ = shape_of(shapes, "visual.conv1.weight", 4)
    text_width, embed_dim = shape_of(shapes, "text_projection", 2)
    vocab_size, _ = shape_of(shapes, "token_embedding.weight", 2)
    image = ImageConfig(
        image_size=patch * side(shape_of(shapes, "visual.positional_embedding", 2)[0], tokens=1),
        patch_size=patch,
        width=width,
        layers=layers(shapes, "visual.transformer.resblocks.{i}.ln_1.weight"),
        heads=width // HEAD,
        activation="quickgelu",
    )
    text = TextConfig(
        context_length=shape_of(shapes, "positional_embedding", 2)[0],
        vocab_size=vocab_size,
        width=text_width,
        layers=layers(shapes, "transformer.resblocks.{i}.ln_1.weight"),
        heads=text_width // HEAD,
        activation="quickgelu",
        causal=True,
        pooling="end",
        end_id=min(vocab_size, OPENAI_VOCABULARY) - 1,  # its code takes the highest id of a row
    )
    return Plan(CLIPConfig(image, text, embed_dim), (*ROWS, *OPENAI_MARKS), {"clean": "lower"})


def marks(config: CLIPConfig) -> dict[str, Tensor]:
    """The three numbers in OpenAI's own state dicts, which tell them from open_clip's; its code leaves them out."""
    numbers = (config.image.image_size, config.text.context_length, config.text.vocab_size)
    return {str(row.theirs): torch.tensor(number) for row, number in zip(OPENAI_MARKS, numbers, strict=True)}


def written(config: CLIPConfig) -> Written:
    """How a model becomes OpenAI's state dict.

    Raises:
        ValueError: OpenAI's code cannot build it; the message says why.
    """
    image, text = config.image, config.text
    for name, tower in (("image", image), ("text", text)):
        if tower.width % HEAD:
            raise ValueError(f"OpenAI's heads are {HEAD} wide, and {name}.width is {tower.width}: no multiple of it")
    expected = CLIPConfig(
        ImageConfig(
            image.grid * image.patch_size,
            image.patch_size,
            image.width,
            image.layers,
            image.width // HEAD,
            activation="quickgelu",
        ),
        TextConfig(
            text.context_length,
            text.vocab_size,
            text.width,
            text.layers,
            text.width // HEAD,
            activation="quickgelu",
            causal=True,
            pooling="end",
        ),
        config.embed_dim,
        logit_scale=config.logit_scale,
        mean=OPENAI_MEAN,
        std=OPENAI_STD,
        crop_rounding=config.crop_rounding,
    )
    warn_of_crops(config, "rounded", "OpenAI's code")
    differences = _differences(expected.to_dict(), config.to_dict())
    if differences:
        raise ValueError(f"OpenAI's layout has no settings, and its code builds another model: {differences}")
    return Written(ROWS, {}, WEIGHTS)


def _differences(expected: Mapping[str, object], found: Mapping[str, object], prefix: str = "") -> str:
    """`image.activation is 'gelu', there 'quickgelu'; …`."""
    parts = []
    for key, value in expected.items():
        other = found[key]
        if isinstance(value, Mapping) and isinstance(other, Mapping):
            parts.append(_differences(value, other, f"{prefix}{key}."))
        elif value != other:
            parts.append(f"{prefix}{key} is {other!r}, there {value!r}")
    return "; ".join(part for part in parts if part)
