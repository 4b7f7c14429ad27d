"""Export to transformers' layout, described in `transformers.py`."""

from __future__ import annotations

import math
from typing import Any

from miniclip.checkpoints.foreign_config import warn_if_cropped_differently
from miniclip.checkpoints.formats.transformers import ACTIVATIONS, CONFIG, PREPROCESSOR, RESAMPLING, WEIGHTS, key_map
from miniclip.checkpoints.plans import ExportPlan
from miniclip.config import CLIPConfig, ImageConfig, TextConfig
from miniclip.tower_config import OtherImageConfig


def export_plan(config: CLIPConfig) -> ExportPlan:
    """Return the plan for writing a model in transformers' layout.

    Raises:
        ValueError: the library cannot build the model; the message gives the reason.
    """
    if isinstance(config.image, OtherImageConfig):
        raise ValueError(  # noqa: TRY004 (of a configuration)
            f"transformers' CLIPModel cannot have this image tower, {config.image.label}: use the layout open_clip"
        )
    siglip = config.image.pooling == "attention"
    _require_supported(config, siglip)
    warn_if_cropped_differently(config, "floored", "transformers")
    files = {CONFIG: model_config(config, siglip), PREPROCESSOR: processor_config(config, siglip)}
    return ExportPlan(key_map(config), files, WEIGHTS)


def model_config(config: CLIPConfig, siglip: bool) -> dict[str, Any]:
    """Return the content of config.json, for a SiglipModel or a CLIPModel, whether the library can build it or not."""
    image, text = config.image, config.text
    vision_config = {
        **_tower_config(image),
        "model_type": "siglip_vision_model" if siglip else "clip_vision_model",
        "image_size": image.image_size,
        **({"patch_size": image.patch_size} if isinstance(image, ImageConfig) else {}),
    }
    text_config = {
        **_tower_config(text),
        "model_type": "siglip_text_model" if siglip else "clip_text_model",
        "vocab_size": text.vocab_size,
        "max_position_embeddings": text.context_length,
        "eos_token_id": 2 if text.end_id is None else text.end_id,  # 2: the library pools at the highest id
        "bos_token_id": None,  # the default ids may lie outside of the vocabulary; the tokenizer has its own
        "pad_token_id": None,
    }
    if siglip:
        text_config["projection_size"] = config.embed_dim
        top: dict[str, Any] = {"model_type": "siglip", "architectures": ["SiglipModel"]}
    else:
        text_config["projection_dim"] = vision_config["projection_dim"] = config.embed_dim
        top = {"model_type": "clip", "architectures": ["CLIPModel"], "projection_dim": config.embed_dim}
        top["logit_scale_init_value"] = math.log(config.logit_scale)
    return {**top, "vision_config": vision_config, "text_config": text_config}


def _require_supported(config: CLIPConfig, siglip: bool) -> None:
    """Raise `ValueError` unless transformers' CLIPModel or SiglipModel can be built like this model."""
    image, text = config.image, config.text
    expected: dict[str, tuple[Any, Any]] = {
        "image.class_token": (image.class_token, not siglip),
        "image.norm_before": (image.norm_before, not siglip),
        "image.stem": (image.stem, "patch"),
        "image.patch_bias": (image.patch_bias, siglip),
        "image.pooling": (image.pooling, "attention" if siglip else "class"),
        "image.projection": (image.projection, "none" if siglip else "linear"),
        "text.causal": (text.causal, not siglip),
        "text.padding": (text.padding, "attended" if siglip else "masked"),
        "text.pooling": (text.pooling, "last" if siglip else "end"),
        "text.projection": (text.projection, "bias" if siglip else "linear"),
        "logit_bias": (config.logit_bias is not None, siglip),
    }
    name = "SiglipModel" if siglip else "CLIPModel"
    differences = [f"{key} is {value!r}, there {other!r}" for key, (value, other) in expected.items() if value != other]
    if differences:
        raise ValueError(f"transformers' {name} is another model: {'; '.join(differences)}")
    if not siglip and text.end_id == 2:
        raise ValueError("transformers' CLIPModel pools at the highest id instead of an end token with the id 2")


def _tower_config(tower: ImageConfig | OtherImageConfig | TextConfig) -> dict[str, Any]:
    if isinstance(tower, OtherImageConfig):
        return {}  # the library has no such tower, and an ONNX file needs no settings
    names = {activation: name for name, activation in reversed(ACTIVATIONS.items())}
    return {
        "hidden_size": tower.width,
        "num_hidden_layers": tower.layers,
        "num_attention_heads": tower.heads,
        "hidden_act": names[tower.activation],
        "intermediate_size": tower.mlp_width,
        "layer_norm_eps": tower.norm_eps,
    }


def processor_config(config: CLIPConfig, siglip: bool) -> dict[str, Any]:
    """Return the content of preprocessor_config.json.

    Raises:
        ValueError: a SiglipImageProcessor does not resize in the model's way.
    """
    size = config.image.image_size
    square = {"height": size, "width": size}
    crop = {"do_center_crop": config.resize == "shortest", "crop_size": square} if not siglip else {}
    if siglip and config.resize != "squash":
        raise ValueError("transformers' SigLIP squashes images (config.resize) and does not crop them")
    numbers = {name: number for number, name in RESAMPLING.items()}
    return {
        "image_processor_type": "SiglipImageProcessor" if siglip else "CLIPImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": square if config.resize == "squash" else {"shortest_edge": size},
        **crop,
        "resample": numbers[config.interpolation],
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(config.mean),
        "image_std": list(config.std),
    }
