"""What a model is: frozen dataclasses for the two towers and the model, and the presets as one literal table.

A field exists because a preset or a checkpoint needs it. `to_dict` and `from_dict` make a checkpoint's `config.json`.

Sources: Radford et al. 2021, "Learning Transferable Visual Models From Natural Language Supervision" (CLIP), table 19;
Dosovitskiy et al. 2021 (ViT); Devlin et al. 2019 (BERT); Zhai et al. 2023 (SigLIP: the bias, attention pooling, text
that attends to its padding); Li et al. 2023 (CLIPA: averaged patches).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal, TypeVar

from miniclip.utils.checks import check_types, did_you_mean

Activation = Literal["gelu", "gelu_tanh", "quickgelu"]
Projection = Literal["linear", "bias", "none"]  # to the shared space: a matrix, a matrix and a bias, nothing at all

OPENAI_MEAN = (0.48145466, 0.4578275, 0.40821073)
OPENAI_STD = (0.26862954, 0.26130258, 0.27577711)


@dataclasses.dataclass(frozen=True)
class ImageConfig:
    """A vision transformer on square pictures and patches: OpenAI's by its defaults; SigLIP's, CLIPA's by the rest."""

    image_size: int  # pixels on a side; what is left over beyond whole patches is not looked at
    patch_size: int  # pixels on a side
    width: int
    layers: int
    heads: int
    activation: Activation = "gelu"
    mlp_ratio: float = 4.0  # the width between the MLP's two layers, in widths of the tower
    norm_eps: float = 1e-5  # what layer norms add to the variance
    patch_bias: bool = False
    class_token: bool = True
    norm_before: bool = True  # a norm between the positions and the blocks
    pooling: Literal["class", "mean", "attention"] = "class"  # the class token, the patches' mean, or a query's answer
    projection: Projection = "linear"

    def __post_init__(self) -> None:
        check_types(self)
        _check_tower("image", self)
        if not 1 <= self.patch_size <= self.image_size:
            raise ValueError(
                f"patch_size {self.patch_size} with image_size {self.image_size}: expected at least one whole patch"
            )
        if self.pooling == "class" and not self.class_token:
            raise ValueError("image.pooling 'class' without a class token: use pooling 'mean' or 'attention'")

    @property
    def mlp_width(self) -> int:
        """Between the MLP's two layers."""
        return round(self.width * self.mlp_ratio)

    @property
    def grid(self) -> int:
        """Patches on a side."""
        return self.image_size // self.patch_size

    @property
    def patches(self) -> int:
        """Patches of a picture (the class token not counted)."""
        return self.grid**2


@dataclasses.dataclass(frozen=True)
class TextConfig:
    """A text transformer: causal and pooled at its end token (OpenAI), or bidirectional and pooled at its first (BERT).

    SigLIP and CLIPA are bidirectional, attend to the padding as to words, and pool the last position of the context.
    """

    context_length: int  # tokens, start and end included
    vocab_size: int
    width: int
    layers: int
    heads: int
    activation: Activation = "gelu"
    mlp_ratio: float = 4.0  # as in the image tower
    norm_eps: float = 1e-5
    causal: bool = False
    padding: Literal["masked", "attended"] = "masked"  # attended: rows are always as long as the context
    pooling: Literal["end", "first", "last"] = "first"
    end_id: int = -1  # the end token's id; -1 stands for the last one of the vocabulary
    projection: Projection = "linear"

    def __post_init__(self) -> None:
        check_types(self)
        _check_tower("text", self)
        if self.context_length < 3:
            raise ValueError(
                f"text.context_length is {self.context_length}; expected room for start, a word and end: 3"
            )
        if self.causal and self.pooling == "first":
            raise ValueError(
                "text.causal with text.pooling 'first': the first token of a causal transformer sees nothing but "
                "itself; use pooling 'end', or causal=False"
            )
        if self.causal and self.padding == "attended":
            raise ValueError("text.padding 'attended' with text.causal: causal text never sees what follows its end")
        if self.pooling == "last" and self.padding == "masked":
            raise ValueError("text.pooling 'last' is the context's last position; it needs text.padding 'attended'")
        if self.end_id == -1:
            object.__setattr__(self, "end_id", self.vocab_size - 1)
        if not 0 <= self.end_id < self.vocab_size:
            raise ValueError(f"text.end_id {self.end_id} is outside of the vocabulary of {self.vocab_size} tokens")

    @property
    def mlp_width(self) -> int:
        """Between the MLP's two layers."""
        return round(self.width * self.mlp_ratio)


@dataclasses.dataclass(frozen=True)
class CLIPConfig:
    """Two towers and the space that they share, with the pictures' normalisation, which travels with the weights."""

    image: ImageConfig
    text: TextConfig
    embed_dim: int
    logit_scale: float = 1 / 0.07  # the factor that training starts from, not its logarithm
    logit_bias: float | None = None  # where the model has one (the sigmoid loss): the value training starts from
    mean: tuple[float, float, float] = OPENAI_MEAN
    std: tuple[float, float, float] = OPENAI_STD
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    resize: Literal["shortest", "squash"] = "shortest"  # the short side, then a centre crop; or both sides at once
    crop_rounding: Literal["rounded", "floored"] = "rounded"  # half a pixel at the corner: as torchvision, transformers

    def __post_init__(self) -> None:
        check_types(self)
        for name in ("embed_dim", "logit_scale"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} is {getattr(self, name)}; expected a positive number")
        if min(self.std) <= 0:
            raise ValueError(f"std is {self.std}; pixels are divided by it, so expected three positive numbers")
        for name, tower in (("image", self.image), ("text", self.text)):
            if tower.projection == "none" and tower.width != self.embed_dim:
                raise ValueError(
                    f"{name}.projection 'none' with width {tower.width} and embed_dim {self.embed_dim}: without a "
                    "projection the two must be equal"
                )

    def replace_image(self, **changes: Any) -> CLIPConfig:
        """The same configuration with these fields of the image tower changed."""
        return dataclasses.replace(self, image=dataclasses.replace(self.image, **changes))

    def replace_text(self, **changes: Any) -> CLIPConfig:
        """The same configuration with these fields of the text tower changed."""
        return dataclasses.replace(self, text=dataclasses.replace(self.text, **changes))

    def to_dict(self) -> dict[str, Any]:
        """The configuration as plain JSON values; `from_dict` reads it back."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> CLIPConfig:
        """Build a configuration from `to_dict`'s form.

        Raises:
            ValueError: a key is missing or unknown (the nearest known one is named), or a value is out of its range.
        """
        values = dict(values)
        for name, part in (("image", ImageConfig), ("text", TextConfig)):
            if not isinstance(values.get(name), Mapping):
                raise ValueError(  # noqa: TRY004 (a file's content, not an argument of the caller's)
                    f"the configuration has no section '{name}'; a CLIP needs 'image' and 'text'"
                )
            values[name] = _build(part, values[name], f"{name}.")
        for name in ("mean", "std"):
            if isinstance(values.get(name), list):  # as JSON has it
                values[name] = tuple(values[name])
        return _build(cls, values, "")


T = TypeVar("T")


def _build(cls: type[T], values: Mapping[str, Any], prefix: str) -> T:
    fields = {field.name: field for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    for name in values:
        if name not in fields:
            raise ValueError(f"unknown configuration key {prefix + name!r}{did_you_mean(name, fields)}")
    for name, field in fields.items():
        if field.default is dataclasses.MISSING and name not in values:
            raise ValueError(f"the configuration lacks {prefix + name!r}")
    return cls(**values)


def _check_tower(name: str, tower: ImageConfig | TextConfig) -> None:
    width, layers, heads = tower.width, tower.layers, tower.heads
    if layers < 1 or heads < 1 or width < 1 or width % heads:
        raise ValueError(
            f"{name} tower: width {width}, layers {layers}, heads {heads}: all must be positive and the width a "
            "multiple of the heads"
        )
    if tower.mlp_width < 1 or tower.norm_eps <= 0:
        raise ValueError(f"{name} tower: mlp_ratio {tower.mlp_ratio}, norm_eps {tower.norm_eps}: expected more than 0")


def _openai(image: tuple[int, int, int, int, int], text: tuple[int, int, int], embed_dim: int) -> CLIPConfig:
    """OpenAI's CLIP: image (size, patch, width, layers, heads), text (width, layers, heads)."""
    return CLIPConfig(
        ImageConfig(*image, activation="quickgelu"),
        TextConfig(77, 49408, *text, activation="quickgelu", causal=True, pooling="end"),
        embed_dim,
    )


def _bert(
    image: tuple[int, int, int, int, int], text: tuple[int, int, int], embed_dim: int, vocab_size: int = 49408
) -> CLIPConfig:
    """A ViT beside a BERT-style text transformer: image and text as in `_openai`."""
    return CLIPConfig(ImageConfig(*image), TextConfig(77, vocab_size, *text), embed_dim)


# name: (what it is, its configuration)                image: size patch width layers heads  text: width layers heads  E
PRESETS: dict[str, tuple[str, CLIPConfig]] = {
    "bert_vit_b_16": (
        "the reference system: ViT-B/16 and a BERT-style text transformer, 150M",
        _bert((224, 16, 768, 12, 12), (512, 12, 8), 512),
    ),
    "bert_vit_tiny": (
        "64 px pictures, for a minute on two cores, 2M",
        _bert((64, 16, 128, 4, 2), (128, 2, 2), 128, 8192),
    ),
    "bert_vit_small": (
        "64 px pictures, for minutes on two cores, 4M",
        _bert((64, 8, 192, 6, 3), (128, 3, 2), 192, 8192),
    ),
    "vit_b_32": ("OpenAI's CLIP ViT-B/32, 151M", _openai((224, 32, 768, 12, 12), (512, 12, 8), 512)),
    "vit_b_16": ("OpenAI's CLIP ViT-B/16, 150M", _openai((224, 16, 768, 12, 12), (512, 12, 8), 512)),
    "vit_l_14": ("OpenAI's CLIP ViT-L/14, 428M", _openai((224, 14, 1024, 24, 16), (768, 12, 12), 768)),
    "vit_l_14_336": ("OpenAI's CLIP ViT-L/14 at 336 px, 428M", _openai((336, 14, 1024, 24, 16), (768, 12, 12), 768)),
}


def preset(name: str) -> CLIPConfig:
    """The configuration of a preset.

    Raises:
        ValueError: no preset has this name; the nearest is named.
    """
    if name not in PRESETS:
        raise ValueError(f"unknown preset {name!r}{did_you_mean(name, PRESETS)}")
    return PRESETS[name][1]
