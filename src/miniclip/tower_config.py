"""Configuration of the image towers that are not a vision transformer of `models/vision.py`.

These come with pretrained weights only: OpenAI's ResNets, and the towers that open_clip builds with timm.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

from miniclip.utils.checks import check_types
from miniclip.utils.config_checks import MOST, KnownFields
from miniclip.utils.formatting import short

STRIDE = 32  # pixels per side of a position of a ResNet's last stage
VIT_FIELDS = frozenset({
    *("patch_size", "width", "layers", "heads", "activation", "mlp_ratio", "mlp_width", "norm_eps", "stem"),
    *("stem_residual_layers", "patch_bias", "class_token", "norm_before", "pooling", "projection", "grid", "patches"),
})  # fmt: skip


class OtherImageConfig(KnownFields):
    """Base class. A setting that only a vision transformer has raises an error, so that no feature guesses it."""

    image_size: int

    @property
    def label(self) -> str:
        """The tower in a message."""
        raise NotImplementedError

    def __getattr__(self, name: str) -> Any:
        """Raise the error for an attribute that does not exist."""
        if name in VIT_FIELDS:
            raise ValueError(
                f"the image tower is {self.label}, without {name!r}: this works only with vision transformers, such as "
                "'vit_b_32'; these towers load, encode, train, and can be evaluated and exported to ONNX and open_clip"
            )
        raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")


@dataclasses.dataclass(frozen=True)
class ResNetConfig(OtherImageConfig):
    """OpenAI's ResNet with attention pooling (Radford et al. 2021, section 2.4, table 19)."""

    image_size: int  # pixels per side, a multiple of 32
    blocks: tuple[int, int, int, int]  # in each stage
    channels: int  # after the stem; a block of the first stage gives four times as many
    pool_heads: int  # in the attention pooling
    kind: Literal["resnet"] = "resnet"

    def __post_init__(self) -> None:
        check_types(self, "image.")
        counts = (*self.blocks, self.channels, self.pool_heads)
        if min(counts) < 1 or max(self.blocks) > MOST["layers"] or self.channels > MOST["width"] or self.channels % 2:
            raise ValueError(f"image tower: blocks {self.blocks}, channels {self.channels}: not those of a ResNet")
        if self.image_size < STRIDE or self.image_size % STRIDE or self.image_size > MOST["image_size"]:
            raise ValueError(f"image.image_size is {self.image_size}; expected a multiple of {STRIDE} for a ResNet")
        if self.features % self.pool_heads:
            raise ValueError(f"image.pool_heads is {self.pool_heads}; expected a divisor of {self.features}")

    @property
    def label(self) -> str:
        """The tower in a message."""
        return "a ResNet"

    @property
    def features(self) -> int:
        """Channels of the last stage."""
        return 32 * self.channels


@dataclasses.dataclass(frozen=True)
class TimmConfig(OtherImageConfig):
    """Tower that timm builds by name, with open_clip's choice of pooling and projection."""

    image_size: int  # for the preprocessing; timm's name fixes the architecture's
    model: str  # name of the architecture in timm, such as "convnext_base"
    pool: str  # timm's global_pool; "": the architecture's own; "abs_attn" or "rot_attn": attention of open_clip's head
    head: Literal["linear", "mlp", "none"] | None  # projection; None: the classifier of timm's architecture
    head_bias: bool = False
    kind: Literal["timm"] = "timm"

    def __post_init__(self) -> None:
        check_types(self, "image.")
        if not 1 <= self.image_size <= MOST["image_size"]:
            raise ValueError(f"image.image_size is {self.image_size}; expected 1 to {MOST['image_size']:,}")

    @property
    def label(self) -> str:
        """The tower in a message."""
        return f"timm's {self.model}"


KINDS: dict[str, type[OtherImageConfig]] = {"resnet": ResNetConfig, "timm": TimmConfig}


def image_config_class(values: Mapping[str, Any], default: type) -> type:
    """Return the class of the image tower in the values of a model's configuration; the default without a `kind`."""
    image = values.get("image") if isinstance(values, Mapping) else None
    kind = image.get("kind") if isinstance(image, Mapping) else None
    if kind is None:
        return default
    if kind not in KINDS:
        raise ValueError(f"image.kind is {short(kind)}; expected one of {', '.join(KINDS)}, or none")
    return KINDS[kind]
