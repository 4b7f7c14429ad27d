"""Checks of a model configuration, and its construction from JSON values."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Self, TypeVar

from miniclip.utils.checks import check_types, did_you_mean
from miniclip.utils.formatting import short

T = TypeVar("T")

# Larger values are mistakes or damage, and building such a model takes all memory. Published models have at most a
# tenth of the whole numbers. Outside of the ranges of the others, float32 overflows.
MOST = {
    "image_size": 1 << 14,
    "width": 1 << 16,
    "layers": 1 << 10,
    "stem_residual_layers": 1 << 10,
    "mlp_ratio": 1 << 10,
    "norm_eps": 1,
    "context_length": 1 << 20,
    "vocab_size": 1 << 24,
    "embed_dim": 1 << 16,
    "logit_scale": 1e6,
}
MAX_GRID = 512  # patches per side
STD_RANGE = (1e-6, 1e6)


def check_image(config: Any) -> None:
    """Raise ValueError or TypeError if an `ImageConfig` is not possible."""
    _check_tower("image", config)
    if not 1 <= config.patch_size <= config.image_size:
        raise ValueError(
            f"patch_size {config.patch_size} with image_size {config.image_size}: expected at least one patch"
        )
    if config.grid > MAX_GRID:
        raise ValueError(
            f"image_size {config.image_size} with patch_size {config.patch_size}: {config.grid} patches per side; "
            f"expected at most {MAX_GRID}"
        )
    if config.stem_residual_layers < 0 or (config.stem_residual_layers and config.stem != "conv"):
        raise ValueError(
            f"image.stem_residual_layers is {config.stem_residual_layers} with image.stem {config.stem!r}; expected at "
            "least 0, and 0 without stem 'conv'"
        )
    if config.stem == "conv":
        _check_stem(config)
    if config.pooling == "class" and not config.class_token:
        raise ValueError("image.pooling 'class' without a class token: use pooling 'mean' or 'attention'")


def _check_stem(config: Any) -> None:
    """Raise ValueError unless convolutions of stride 4, 2, 2, ... give the patches."""
    patch, size, width = config.patch_size, config.image_size, config.width
    if patch < 4 or patch & (patch - 1):
        raise ValueError(f"image.stem 'conv' with patch_size {patch}: expected a power of two, at least 4")
    if size % patch:
        raise ValueError(f"image.stem 'conv' with image_size {size}: expected a multiple of the patch_size {patch}")
    if width % (patch // 4):
        raise ValueError(
            f"image.stem 'conv' with width {width}: expected a multiple of {patch // 4}, a fourth of the patch_size, "
            "since the channels double from layer to layer"
        )


def check_text(config: Any) -> None:
    """Raise ValueError or TypeError if a `TextConfig` is not possible."""
    _check_tower("text", config)
    if config.context_length < 3:
        raise ValueError(f"text.context_length is {config.context_length}; expected room for 3 tokens")
    if config.causal and config.pooling == "first":
        raise ValueError(
            "text.causal with text.pooling 'first': the first token attends to itself only; use pooling 'end', or "
            "causal=False"
        )
    if config.causal and config.padding == "attended":
        raise ValueError("text.padding 'attended' with text.causal: no token attends to the padding after it")
    if config.pooling == "last" and config.padding == "masked":
        raise ValueError("text.pooling 'last' needs text.padding 'attended': the last position is padding")
    if config.end_id is not None and not 0 <= config.end_id < config.vocab_size:
        raise ValueError(f"text.end_id {config.end_id} is outside of the vocabulary of {config.vocab_size} tokens")


def check_clip(config: Any) -> None:
    """Raise ValueError or TypeError if a `CLIPConfig` is not possible."""
    check_types(config)
    for name in ("embed_dim", "logit_scale"):
        if getattr(config, name) <= 0:
            raise ValueError(f"{name} is {getattr(config, name)}; expected a positive number")
    _refuse_large(config)
    if min(config.std) <= 0:
        raise ValueError(f"std is {config.std}; expected three positive numbers")
    if not (STD_RANGE[0] <= min(config.std) and max(*config.std, *map(abs, config.mean)) <= STD_RANGE[1]):
        raise ValueError(f"mean is {config.mean}, std is {config.std}; expected numbers near those of pixels in 0..1")
    if config.logit_scale < 1e-30 or abs(config.logit_bias or 0) > 1e30:
        raise ValueError(
            f"logit_scale is {config.logit_scale}, logit_bias is {config.logit_bias}; float32 needs a scale of at "
            "least 1e-30 and a bias within 1e30"
        )
    for name, tower in (("image", config.image), ("text", config.text)):
        if not hasattr(tower, "kind") and tower.projection == "none" and tower.width != config.embed_dim:
            raise ValueError(
                f"{name}.projection 'none' with width {tower.width} and embed_dim {config.embed_dim}: expected the two "
                "to be equal"
            )


def _check_tower(name: str, tower: Any) -> None:
    check_types(tower, f"{name}.")
    _refuse_large(tower, f"{name}.")
    width, layers, heads = tower.width, tower.layers, tower.heads
    if min(width, layers, heads) < 1 or width % heads:
        raise ValueError(
            f"{name} tower: width {width}, layers {layers}, heads {heads}: expected positive numbers, and a width that "
            "is a multiple of the heads"
        )
    if min(tower.mlp_ratio, tower.norm_eps) <= 0 or tower.mlp_width < 1:
        raise ValueError(f"{name} tower: mlp_ratio {tower.mlp_ratio}, norm_eps {tower.norm_eps}: expected more than 0")


def _refuse_large(config: Any, prefix: str = "") -> None:
    """Raise ValueError if a number is larger than in any model that fits in memory."""
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if field.name in MOST and value > MOST[field.name]:
            raise ValueError(f"{prefix}{field.name} is {short(value)}; expected at most {MOST[field.name]:,}")


def build_dataclass(cls: type[T], values: Mapping[str, Any], parts: Mapping[str, type], prefix: str = "") -> T:
    """Build a dataclass from JSON values.

    Args:
        cls: the dataclass.
        values: a value for each field; fields with a default may be missing.
        parts: fields that are dataclasses themselves, with their class.
        prefix: put before the names in error messages.

    Raises:
        ValueError: a key is missing or unknown, or a value is out of range.
        TypeError: the values are not a dict.
    """
    if not isinstance(values, Mapping):
        raise TypeError(f"the configuration is a {type(values).__name__}; expected a dict")
    values = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
    fields = {field.name: field for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    for name, part in parts.items():
        if not isinstance(values.get(name), Mapping):
            raise ValueError(f"the configuration has no section {name!r}")  # noqa: TRY004 (content of a file)
        values[name] = build_dataclass(part, values[name], {}, f"{name}.")
    for name in values:
        if name not in fields:
            raise ValueError(f"unknown configuration key {short(prefix + name)}{did_you_mean(name, fields)}")
    for name, field in fields.items():
        if field.default is dataclasses.MISSING and name not in values:
            raise ValueError(f"the configuration has no key {prefix + name!r}")
    return cls(**values)


class KnownFields:
    """Base class of a dataclass whose constructor names the nearest field for an unknown one."""

    def __new__(cls, *args: Any, **values: Any) -> Self:
        """Create the instance.

        Raises:
            TypeError: a keyword is not the name of a field.
        """
        names = [field.name for field in dataclasses.fields(cls)]  # type: ignore[arg-type]  # its subclasses are
        for name in values:
            if name not in names:
                raise TypeError(f"{cls.__name__} has no setting {name!r}{did_you_mean(name, names)}")
        return super().__new__(cls)
