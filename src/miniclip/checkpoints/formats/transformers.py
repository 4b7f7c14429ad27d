"""The transformers library's layout: `config.json` of a CLIPModel, a MetaClip2Model or a SiglipModel, beside weights.

Source: https://github.com/huggingface/transformers, src/transformers/models/{clip,metaclip_2,siglip}. Files on the Hub
name only what differs from the classes' defaults, which therefore stand here.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, Literal

from miniclip.checkpoints.key_maps import TRANSFORMERS_CLIP, TRANSFORMERS_SIGLIP, Row
from miniclip.checkpoints.layout import Plan, Settings, Written, triple, warn_of_crops
from miniclip.config import Activation, CLIPConfig, ImageConfig, TextConfig

CONFIG, PREPROCESSOR, PROCESSOR = "config.json", "preprocessor_config.json", "processor_config.json"
WEIGHTS = "model.safetensors"
OPENAI_VOCABULARY = 49408
TABLES = {"clip": TRANSFORMERS_CLIP, "metaclip_2": TRANSFORMERS_CLIP, "siglip": TRANSFORMERS_SIGLIP}
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


def plan(config: Mapping[str, Any], processor: Mapping[str, Any]) -> Plan:
    """The model that a `config.json` is, with the preprocessing of a `preprocessor_config.json` ({}: the defaults).

    Raises:
        ValueError: it is none of these models, or has parts that miniclip has not; the message names them.
    """
    kind = config.get("model_type")
    if kind not in TABLES:
        raise ValueError(f"model_type is {kind!r}; of transformers' models miniclip reads {', '.join(TABLES)}")
    vision = Settings(_section(config, "vision"), "vision_config", SIGLIP_VISION if kind == "siglip" else CLIP_VISION)
    text = Settings(_section(config, "text"), "text_config", SIGLIP_TEXT if kind == "siglip" else CLIP_TEXT)
    build = _siglip if kind == "siglip" else _clip
    # other settings are not looked at: the class that model_type names does not look at them either
    return Plan(_with_preprocessing(build(config, vision, text), processor, kind), TABLES[kind])


def _section(config: Mapping[str, Any], name: str) -> Any:
    """A tower's settings; the second section that files of 2021 and 2022 may have stands in place of the first."""
    second = config.get(f"{name}_config_dict")
    return (config.get(f"{name}_config") or {}) if second is None else second


def _clip(config: Mapping[str, Any], vision: Settings, text: Settings) -> CLIPConfig:
    end = text.number("eos_token_id")
    if end == 2 and config["model_type"] == "clip":
        # the 2 of early files was a mistake, for which the library looks for the highest id: OpenAI's end token
        end = min(text.number("vocab_size"), OPENAI_VOCABULARY) - 1
    return CLIPConfig(
        ImageConfig(**_image(vision), **_tower(vision)),
        TextConfig(**_text(text), **_tower(text), causal=True, pooling="end", end_id=end),
        embed_dim=Settings(config, "config", {"projection_dim": 512}).number("projection_dim"),
        logit_scale=math.exp(float(config.get("logit_scale_init_value", 2.6592))),
        crop_rounding="floored",
    )


def _siglip(config: Mapping[str, Any], vision: Settings, text: Settings) -> CLIPConfig:
    if not vision.take("vision_use_head"):
        raise ValueError("vision_config.vision_use_head is False: pictures are not pooled, so they have no embedding")
    image = ImageConfig(
        **_image(vision),
        **_tower(vision),
        patch_bias=True,
        class_token=False,
        norm_before=False,
        pooling="attention",
        projection="none",
    )
    projected = text.take("projection_size") or text.number("hidden_size")
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


def _tower(section: Settings) -> dict[str, Any]:
    width = section.number("hidden_size", least=1)
    return {
        "width": width,
        "layers": section.number("num_hidden_layers"),
        "heads": section.number("num_attention_heads"),
        "activation": section.choose("hidden_act", ACTIVATIONS),
        "mlp_ratio": section.number("intermediate_size") / width,
        "norm_eps": section.real("layer_norm_eps"),
    }


def _image(section: Settings) -> dict[str, Any]:
    if section.number("num_channels") != 3:
        raise ValueError(f"vision_config.num_channels is {section.values['num_channels']}; pictures have 3")
    return {"image_size": section.number("image_size"), "patch_size": section.number("patch_size")}


def _text(section: Settings) -> dict[str, Any]:
    return {
        "context_length": section.number("max_position_embeddings"),
        "vocab_size": section.number("vocab_size"),
    }


def _with_preprocessing(config: CLIPConfig, processor: Mapping[str, Any], kind: str) -> CLIPConfig:
    """The configuration with what the file of preprocessing says.

    Raises:
        ValueError: it says something that miniclip does not do.
    """
    values = dict(processor.get("image_processor", processor))
    size = config.image.image_size
    for key in ("do_resize", "do_rescale", "do_normalize"):
        if values.get(key) is False:
            raise ValueError(f"preprocessing: {key} is False; miniclip resizes, scales to 0..1 and normalises")
    if abs(values.get("rescale_factor", 1 / 255) - 1 / 255) > 1e-8:
        raise ValueError(f"preprocessing: rescale_factor is {values['rescale_factor']}; expected 1/255")
    target = values.get("size", {"height": size, "width": size} if kind == "siglip" else {"shortest_edge": size})
    resize, sides = _resize(target)
    if values.get("do_center_crop", kind != "siglip"):
        sides |= _sides(values.get("crop_size", size))
    elif resize == "shortest":
        raise ValueError("preprocessing: pictures are neither squashed nor cropped to a square")
    if sides != {size}:
        raise ValueError(f"preprocessing resizes or crops to {sorted(sides)} pixels; the image tower takes {size}")
    resample = values.get("resample", 3)
    if resample not in RESAMPLING:
        raise ValueError(f"preprocessing: resample is {resample}; expected 2 (bilinear) or 3 (bicubic)")
    return dataclasses.replace(
        config,
        resize=resize,
        interpolation=RESAMPLING[resample],
        mean=triple(values.get("image_mean") or config.mean, "image_mean"),
        std=triple(values.get("image_std") or config.std, "image_std"),
    )


def _resize(target: Any) -> tuple[Literal["shortest", "squash"], set[int]]:
    """How pictures are resized, and to what sides: by a number or by a dictionary, as it has been over the years."""
    if isinstance(target, Mapping) and "shortest_edge" not in target:
        return "squash", _sides(target)
    return "shortest", {target["shortest_edge"] if isinstance(target, Mapping) else target}


def _sides(target: Any) -> set[int]:
    if isinstance(target, int):
        return {target}
    if not isinstance(target, Mapping) or not {"height", "width"} <= target.keys():
        raise ValueError(f"preprocessing: a size is {target!r}; expected a height and a width")
    return {target["height"], target["width"]}


def rows(config: CLIPConfig) -> tuple[Row, ...]:
    """The rows of a model."""
    return TRANSFORMERS_SIGLIP if config.image.pooling == "attention" else TRANSFORMERS_CLIP


def written(config: CLIPConfig) -> Written:
    """How a model becomes transformers'.

    Raises:
        ValueError: the library has no such model; the message says why.
    """
    siglip = config.image.pooling == "attention"
    _require(config, siglip)
    warn_of_crops(config, "floored", "transformers")
    image, text = config.image, config.text
    vision_config = {
        **_written_tower(image),
        "model_type": "siglip_vision_model" if siglip else "clip_vision_model",
        "image_size": image.image_size,
        "patch_size": image.patch_size,
    }
    text_config = {
        **_written_tower(text),
        "model_type": "siglip_text_model" if siglip else "clip_text_model",
        "vocab_size": text.vocab_size,
        "max_position_embeddings": text.context_length,
        "eos_token_id": text.end_id,
        "bos_token_id": None,  # the tokenizer's affair; the defaults may lie outside of the vocabulary
        "pad_token_id": None,
    }
    if siglip:
        text_config["projection_size"] = config.embed_dim
        top: dict[str, Any] = {"model_type": "siglip", "architectures": ["SiglipModel"]}
    else:
        text_config["projection_dim"] = vision_config["projection_dim"] = config.embed_dim
        top = {"model_type": "clip", "architectures": ["CLIPModel"], "projection_dim": config.embed_dim}
        top["logit_scale_init_value"] = math.log(config.logit_scale)
    settings = {**top, "vision_config": vision_config, "text_config": text_config}
    files = {CONFIG: settings, PREPROCESSOR: _processor(config, siglip)}
    return Written(rows(config), files, WEIGHTS)


def _require(config: CLIPConfig, siglip: bool) -> None:
    """Raise `ValueError` unless transformers' CLIPModel or SiglipModel has all parts as they are here."""
    image, text = config.image, config.text
    expected: dict[str, tuple[Any, Any]] = {
        "image.class_token": (image.class_token, not siglip),
        "image.norm_before": (image.norm_before, not siglip),
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
    found = [f"{key} is {value!r}, there {there!r}" for key, (value, there) in expected.items() if value != there]
    if found:
        raise ValueError(f"transformers' {name} is another model: {'; '.join(found)}")
    if not siglip and text.end_id == 2:
        raise ValueError("transformers' CLIPModel does not look for an end token with the id 2, but for the highest id")


def _written_tower(tower: ImageConfig | TextConfig) -> dict[str, Any]:
    names = {ours: theirs for theirs, ours in reversed(ACTIVATIONS.items())}
    return {
        "hidden_size": tower.width,
        "num_hidden_layers": tower.layers,
        "num_attention_heads": tower.heads,
        "hidden_act": names[tower.activation],
        "intermediate_size": tower.mlp_width,
        "layer_norm_eps": tower.norm_eps,
    }


def _processor(config: CLIPConfig, siglip: bool) -> dict[str, Any]:
    size = config.image.image_size
    square = {"height": size, "width": size}
    crop = {"do_center_crop": config.resize == "shortest", "crop_size": square} if not siglip else {}
    if siglip and config.resize != "squash":
        raise ValueError("transformers' SigLIP squashes pictures (config.resize), and does not crop them")
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
