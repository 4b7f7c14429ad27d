"""The transformers library's layout: `config.json` of a CLIPModel, a MetaClip2Model or a SiglipModel, beside weights.

Source: https://github.com/huggingface/transformers, src/transformers/models/{clip,metaclip_2,siglip}. Files on the Hub
contain only the settings that differ from the classes' defaults, which are copied here. `transformers_export.py` writes
the layout.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

from miniclip.checkpoints.foreign_config import ConfigSection, end_of_argmax, exp, rgb_triple
from miniclip.checkpoints.key_maps import TRANSFORMERS_CLIP, TRANSFORMERS_SIGLIP, Row
from miniclip.checkpoints.plans import LoadPlan
from miniclip.config import Activation, CLIPConfig, ImageConfig, TextConfig
from miniclip.utils.formatting import short

CONFIG, PREPROCESSOR, PROCESSOR = "config.json", "preprocessor_config.json", "processor_config.json"
WEIGHTS = "model.safetensors"
KEY_MAPS = {"clip": TRANSFORMERS_CLIP, "metaclip_2": TRANSFORMERS_CLIP, "siglip": TRANSFORMERS_SIGLIP}
ACTIVATIONS: dict[str, Activation] = {
    "quick_gelu": "quickgelu",
    "gelu": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",  # the same formula
}
CLIP_VISION = {
    "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12,
    "num_channels": 3, "image_size": 224, "patch_size": 32, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5,
}  # fmt: skip
CLIP_TEXT = {
    "vocab_size": 49408, "hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 12,
    "num_attention_heads": 8, "max_position_embeddings": 77, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5,
    "eos_token_id": 49407,
}  # fmt: skip
SIGLIP_VISION = {
    **CLIP_VISION, "patch_size": 16, "hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6, "vision_use_head": True,
}  # fmt: skip
SIGLIP_TEXT = {
    **CLIP_TEXT, "vocab_size": 32000, "hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12,
    "max_position_embeddings": 64, "hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6, "projection_size": None,
}  # fmt: skip
RESAMPLING: dict[int, Literal["bicubic", "bilinear"]] = {2: "bilinear", 3: "bicubic"}  # Pillow's numbers


def load_plan(config: Mapping[str, Any], processor: Mapping[str, Any]) -> LoadPlan:
    """Return the plan for weights beside a `config.json`.

    Args:
        config: of the model.
        processor: the preprocessing, of a `preprocessor_config.json`; {}: the defaults.

    Raises:
        ValueError: miniclip does not support the model; the message names the setting.
    """
    kind = config.get("model_type")
    if not isinstance(kind, str) or kind not in KEY_MAPS:
        raise ValueError(f"model_type is {short(kind)}; of transformers' models miniclip has {', '.join(KEY_MAPS)}")
    siglip = kind == "siglip"
    vision = ConfigSection(_section(config, "vision"), "vision_config", SIGLIP_VISION if siglip else CLIP_VISION)
    text = ConfigSection(_section(config, "text"), "text_config", SIGLIP_TEXT if siglip else CLIP_TEXT)
    build = _siglip if siglip else _clip
    # other settings are ignored, as the class of this model_type ignores them
    return LoadPlan(_with_preprocessing(build(config, vision, text), processor, kind), KEY_MAPS[kind])


def _section(config: Mapping[str, Any], name: str) -> Any:
    """Return a tower's settings; files of 2021 and 2022 may have a second section, which takes precedence."""
    override = config.get(f"{name}_config_dict")
    return (config.get(f"{name}_config") or {}) if override is None else override


def _clip(config: Mapping[str, Any], vision: ConfigSection, text: ConfigSection) -> CLIPConfig:
    end: int | None = text.integer("eos_token_id")
    if end == 2 and config["model_type"] == "clip":
        # the 2 of early files is a mistake; the library then pools at the highest id
        end = end_of_argmax(text.integer("vocab_size"))
    model = ConfigSection(config, "config", {"projection_dim": 512, "logit_scale_init_value": 2.6592})
    return CLIPConfig(
        ImageConfig(**_image(vision), **_tower(vision)),
        TextConfig(**_text(text), **_tower(text), causal=True, pooling="end", end_id=end),
        embed_dim=model.integer("projection_dim"),
        logit_scale=exp(model.number("logit_scale_init_value"), "logit_scale_init_value"),
        crop_rounding="floored",
    )


def _siglip(config: Mapping[str, Any], vision: ConfigSection, text: ConfigSection) -> CLIPConfig:
    if not vision.flag("vision_use_head"):
        raise ValueError("vision_config.vision_use_head is False: images are not pooled, so they have no embedding")
    image = ImageConfig(
        **_image(vision),
        **_tower(vision),
        patch_bias=True,
        class_token=False,
        norm_before=False,
        pooling="attention",
        projection="none",
    )
    projected = text.integer("projection_size" if text.get("projection_size") else "hidden_size")
    return CLIPConfig(
        image,
        TextConfig(**_text(text), **_tower(text), padding="attended", pooling="last", projection="bias"),
        embed_dim=projected,
        logit_scale=10.0,
        logit_bias=-10.0,
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
        resize="squash",
        crop_rounding="floored",
    )


def _tower(section: ConfigSection) -> dict[str, Any]:
    width = section.integer("hidden_size", minimum=1)
    return {
        "width": width,
        "layers": section.integer("num_hidden_layers"),
        "heads": section.integer("num_attention_heads"),
        "activation": section.choice("hidden_act", ACTIVATIONS),
        "mlp_ratio": section.integer("intermediate_size") / width,
        "norm_eps": section.number("layer_norm_eps"),
    }


def _image(section: ConfigSection) -> dict[str, Any]:
    if section.integer("num_channels") != 3:
        raise ValueError(
            f"vision_config.num_channels is {section.values['num_channels']}; expected 3, the colors of an image"
        )
    return {"image_size": section.integer("image_size"), "patch_size": section.integer("patch_size")}


def _text(section: ConfigSection) -> dict[str, Any]:
    return {
        "context_length": section.integer("max_position_embeddings"),
        "vocab_size": section.integer("vocab_size"),
    }


def _with_preprocessing(config: CLIPConfig, processor: Mapping[str, Any], kind: str) -> CLIPConfig:
    """Return the configuration with the settings of the preprocessing.

    Raises:
        ValueError: miniclip does not support a setting.
    """
    size, given = config.image.image_size, processor.get("image_processor", processor)
    if not isinstance(given, Mapping):
        raise ValueError(f"preprocessing: image_processor is {short(given)}; expected an object")  # noqa: TRY004
    defaults = {
        "do_resize": True, "do_rescale": True, "do_normalize": True, "do_center_crop": kind != "siglip",
        "rescale_factor": 1 / 255, "resample": 3, "crop_size": size,
        "size": {"height": size, "width": size} if kind == "siglip" else {"shortest_edge": size},
    }  # fmt: skip
    values = ConfigSection({k: v for k, v in given.items() if v is not None}, "preprocessing", defaults)
    for key in ("do_resize", "do_rescale", "do_normalize"):
        if not values.flag(key):
            raise ValueError(
                f"preprocessing: {key} is False; expected True: miniclip resizes, scales to 0..1 and normalises"
            )
    if abs((factor := values.number("rescale_factor")) - 1 / 255) > 1e-8:
        raise ValueError(f"preprocessing: rescale_factor is {factor}; expected 1/255")
    resize, sides = _resize(values.get("size"))
    if values.flag("do_center_crop"):
        sides |= _sides(values.get("crop_size"))
    elif resize == "shortest":
        raise ValueError("preprocessing: images are neither squashed nor cropped to a square")
    if sides != {size}:
        raise ValueError(f"preprocessing resizes or crops to {sorted(sides)} pixels; the image tower takes {size}")
    resample = values.integer("resample")
    if resample not in RESAMPLING:
        raise ValueError(f"preprocessing: resample is {resample}; expected 2 (bilinear) or 3 (bicubic)")
    return dataclasses.replace(
        config,
        resize=resize,
        interpolation=RESAMPLING[resample],
        mean=rgb_triple(values.values.get("image_mean") or config.mean, "image_mean"),
        std=rgb_triple(values.values.get("image_std") or config.std, "image_std"),
    )


def _resize(target: Any) -> tuple[Literal["shortest", "squash"], set[int]]:
    """Return the kind of resizing and the sides in pixels, from a number or a dictionary of any version."""
    if isinstance(target, Mapping) and "shortest_edge" not in target:
        return "squash", _sides(target)
    return "shortest", {_side(target["shortest_edge"] if isinstance(target, Mapping) else target)}


def _sides(target: Any) -> set[int]:
    if not isinstance(target, Mapping):
        return {_side(target)}
    if not {"height", "width"} <= target.keys():
        raise ValueError(f"preprocessing: a size is {short(target)}; expected a height and a width")
    return {_side(target["height"]), _side(target["width"])}


def _side(value: Any) -> int:
    """Return the pixels of a side."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"preprocessing: a size is {short(value)}; expected a whole number of pixels")  # noqa: TRY004
    return value


def key_map(config: CLIPConfig) -> tuple[Row, ...]:
    """Return the key map of a model."""
    return TRANSFORMERS_SIGLIP if config.image.pooling == "attention" else TRANSFORMERS_CLIP
