"""Model configuration: frozen dataclasses for the two towers and the model, and the presets as one table.

Sources: CLIP (Radford et al. 2021, table 19), ViT (Dosovitskiy et al. 2021), BERT (Devlin et al. 2019), SigLIP (Zhai et
al. 2023: bias, attention pooling, attended padding), CLIPA (Li et al. 2023: mean pooling).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

from miniclip.tower_config import OtherImageConfig, image_config_class
from miniclip.utils.checks import did_you_mean
from miniclip.utils.config_checks import KnownFields, build_dataclass, check_clip, check_image, check_text

Activation = Literal["gelu", "gelu_tanh", "quickgelu"]
ImageSizes = tuple[int, int, int, int, int]  # image size, patch size, width, layers, heads
Projection = Literal["linear", "bias", "none"]  # to the shared space: a matrix, a matrix with a bias, nothing

OPENAI_MEAN = (0.48145466, 0.4578275, 0.40821073)
OPENAI_STD = (0.26862954, 0.26130258, 0.27577711)


@dataclasses.dataclass(frozen=True)
class ImageConfig(KnownFields):
    """Vision transformer. The defaults are CLIP's pooling and norms; other values are SigLIP's and CLIPA's."""

    image_size: int  # pixels per side; a remainder smaller than a patch is ignored
    patch_size: int  # pixels per side
    width: int
    layers: int
    heads: int
    activation: Activation = "gelu"
    mlp_ratio: float = 4.0  # hidden width of the MLP over the width
    norm_eps: float = 1e-5
    stem: Literal["patch", "conv"] = "patch"  # one convolution, or several that overlap (Xiao et al. 2021)
    stem_residual_layers: int = 0  # after each of these convolutions (He et al. 2015)
    patch_bias: bool = False
    class_token: bool = True
    norm_before: bool = True  # layer norm between the positions and the blocks
    pooling: Literal["class", "mean", "attention"] = "class"  # class token, mean of the patches, learned query
    projection: Projection = "linear"

    def __post_init__(self) -> None:
        check_image(self)

    @property
    def mlp_width(self) -> int:
        """Hidden width of the MLP."""
        return round(self.width * self.mlp_ratio)

    @property
    def grid(self) -> int:
        """Patches per side."""
        return self.image_size // self.patch_size

    @property
    def patches(self) -> int:
        """Patches per image, without the class token."""
        return self.grid**2


@dataclasses.dataclass(frozen=True)
class TextConfig(KnownFields):
    """Text transformer: causal and pooled at the end token (OpenAI), or bidirectional and pooled at the first (BERT).

    SigLIP and CLIPA are bidirectional, attend to padding and pool the last position.
    """

    context_length: int  # tokens, with start and end token
    vocab_size: int
    width: int
    layers: int
    heads: int
    activation: Activation = "gelu"
    mlp_ratio: float = 4.0
    norm_eps: float = 1e-5
    causal: bool = False
    padding: Literal["masked", "attended"] = "masked"  # attended: rows are padded to the context length
    pooling: Literal["end", "first", "last"] = "first"
    end_id: int | None = -1  # id of the end token; -1: the last of the vocabulary; None: the highest id of a row
    projection: Projection = "linear"

    def __post_init__(self) -> None:
        if self.end_id == -1 and hasattr(self.vocab_size, "__index__"):  # else `check_text` raises
            object.__setattr__(self, "end_id", self.vocab_size - 1)
        check_text(self)

    @property
    def mlp_width(self) -> int:
        """Hidden width of the MLP."""
        return round(self.width * self.mlp_ratio)


@dataclasses.dataclass(frozen=True)
class CLIPConfig(KnownFields):
    """Two towers, the shared space, and the preprocessing of images that belongs to the weights."""

    image: ImageConfig | OtherImageConfig  # a vision transformer, or a tower of `tower_config.py`
    text: TextConfig
    embed_dim: int
    logit_scale: float = 1 / 0.07  # initial factor on the similarities (not its logarithm)
    logit_bias: float | None = None  # initial bias on the similarities, for the sigmoid loss
    mean: tuple[float, float, float] = OPENAI_MEAN
    std: tuple[float, float, float] = OPENAI_STD
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    resize: Literal["shortest", "squash"] = "shortest"  # the short side and a center crop, or both sides
    crop_rounding: Literal["rounded", "floored"] = "rounded"  # half a pixel: torchvision rounds, transformers floors

    def __post_init__(self) -> None:
        check_clip(self)

    def replace_image(self, **changes: Any) -> CLIPConfig:
        """Copy with some fields of the image tower changed."""
        return dataclasses.replace(self, image=dataclasses.replace(self.image, **changes))  # type: ignore[type-var]

    def replace_text(self, **changes: Any) -> CLIPConfig:
        """Copy with some fields of the text tower changed; give `end_id` with `vocab_size`, or the id stays."""
        return dataclasses.replace(self, text=dataclasses.replace(self.text, **changes))

    def to_dict(self) -> dict[str, Any]:
        """JSON values, as in a checkpoint's `config.json`."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> CLIPConfig:
        """Build a configuration from the values of `to_dict`.

        Raises:
            ValueError: a key is missing or unknown, or a value is out of range.
        """
        return build_dataclass(cls, values, {"image": image_config_class(values, ImageConfig), "text": TextConfig})


def _openai(image: ImageSizes, text: tuple[int, int, int], embed_dim: int) -> CLIPConfig:
    text_config = TextConfig(77, 49408, *text, activation="quickgelu", causal=True, pooling="end")
    return CLIPConfig(ImageConfig(*image, activation="quickgelu"), text_config, embed_dim)


def _bert(image: ImageSizes, text: tuple[int, int, int], embed_dim: int, vocab_size: int = 49408) -> CLIPConfig:
    return CLIPConfig(ImageConfig(*image), TextConfig(77, vocab_size, *text), embed_dim)


# name: (description, configuration); image (size, patch, width, layers, heads), text (width, layers, heads), embed_dim
PRESETS: dict[str, tuple[str, CLIPConfig]] = {
    "bert_vit_b_16": ("the reference system: ViT and BERT, 150M", _bert((224, 16, 768, 12, 12), (512, 12, 8), 512)),
    "bert_vit_tiny": ("64 px images, a minute on two cores, 2M", _bert((64, 16, 128, 4, 2), (128, 2, 2), 128, 8192)),
    "bert_vit_small": ("64 px images, minutes on two cores, 4M", _bert((64, 8, 192, 6, 3), (128, 3, 2), 192, 8192)),
    "vit_b_32": ("OpenAI's CLIP ViT-B/32, 151M", _openai((224, 32, 768, 12, 12), (512, 12, 8), 512)),
    "vit_b_16": ("OpenAI's CLIP ViT-B/16, 150M", _openai((224, 16, 768, 12, 12), (512, 12, 8), 512)),
    "vit_l_14": ("OpenAI's CLIP ViT-L/14, 428M", _openai((224, 14, 1024, 24, 16), (768, 12, 12), 768)),
    "vit_l_14_336": ("OpenAI's CLIP ViT-L/14 at 336 px, 428M", _openai((336, 14, 1024, 24, 16), (768, 12, 12), 768)),
}


def preset(name: str) -> CLIPConfig:
    """Return the configuration of a preset.

    Raises:
        ValueError: no preset has this name.
    """
    if name not in PRESETS:
        raise ValueError(f"unknown preset {name!r}{did_you_mean(name, PRESETS)}")
    return PRESETS[name][1]
