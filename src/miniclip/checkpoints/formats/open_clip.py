"""open_clip's layout: `open_clip_config.json` beside the weights, for its own vision transformers and some of timm's.

Source: https://github.com/mlfoundations/open_clip, src/open_clip/{model,transformer,factory,transform}.py, version 3.
`open_clip_export.py` writes it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from miniclip.checkpoints.foreign_config import OPENAI_VOCABULARY, ConfigSection, end_of_argmax, exp, rgb_triple
from miniclip.checkpoints.formats.timm_towers import TIMM_TOWERS, timm_name
from miniclip.checkpoints.key_maps import (
    OPENAI_IMAGE,
    OPENAI_SIZES,
    OPENAI_TEXT,
    SCALARS,
    TEXT_LINEAR,
    TEXT_MATRIX,
    TIMM_IMAGE,
    Row,
    prefixed,
)
from miniclip.checkpoints.operations import SAME, Shape, positions
from miniclip.checkpoints.plans import LoadPlan
from miniclip.config import OPENAI_MEAN, OPENAI_STD, Activation, CLIPConfig, ImageConfig, TextConfig
from miniclip.inference.image_towers import POSITIONS, tower_weights
from miniclip.tower_config import OtherImageConfig, ResNetConfig, TimmConfig
from miniclip.utils.formatting import short

CONFIG, WEIGHTS = "open_clip_config.json", "open_clip_model.safetensors"
MAX_MLP_RATIO = 1024

MODEL = {"quick_gelu": False, "init_logit_scale": math.log(1 / 0.07), "init_logit_bias": None}
VISION = {
    "layers": 12, "width": 768, "head_width": 64, "mlp_ratio": 4.0, "patch_size": 16, "image_size": 224,
    "no_ln_pre": False, "final_ln_after_pool": False, "pool_type": "tok", "act_kwargs": None, "norm_kwargs": None,
    "timm_model_name": None, "timm_pool": "avg", "timm_proj": "linear", "timm_proj_bias": False,
}  # fmt: skip
TEXT = {
    "context_length": 77, "vocab_size": OPENAI_VOCABULARY, "width": 512, "heads": 8, "layers": 12, "mlp_ratio": 4.0,
    "eos_id": 2, "no_causal_mask": False, "pool_type": "argmax", "proj_bias": False, "proj_type": "linear",
    "act_kwargs": None, "norm_kwargs": None, "hf_tokenizer_name": None, "tokenizer_kwargs": None,
}  # fmt: skip
PREPROCESS = {
    "size": None, "mode": "RGB", "mean": OPENAI_MEAN, "std": OPENAI_STD, "interpolation": "bicubic",
    "resize_mode": "shortest",
}  # fmt: skip
CUSTOM_BLOCK = (
    "block_type",
    "qk_norm",
    "scaled_cosine_attn",
    "scale_heads",
    "scale_attn_inner",
    "scale_attn",
    "scale_fc",
)


def load_plan(config: Mapping[str, Any], shapes: Mapping[str, Shape] | None) -> LoadPlan:
    """Return the plan for weights beside an `open_clip_config.json`.

    Args:
        config: its content.
        shapes: of the weights, by name; None: names that open_clip reads.

    Raises:
        ValueError: the model has parts that miniclip does not support; the message names them.
    """
    defaults: dict[str, Any] = {"vision_cfg": {}, "text_cfg": {}, "embed_dim": None}
    model = ConfigSection(config.get("model_cfg", {}), "model_cfg", defaults)
    text = ConfigSection(model.get("text_cfg"), "text_cfg", TEXT)
    parsed = model_config(model.values, config.get("preprocess_cfg", {}))
    name = text.get("hf_tokenizer_name")
    if not isinstance(name, str | None):
        raise ValueError(f"text_cfg.hf_tokenizer_name is {short(name)}; expected the name of a repository")  # noqa: TRY004 (of a file)
    tokenizer = ConfigSection(text.get("tokenizer_kwargs") or {}, "text_cfg.tokenizer_kwargs", {})
    # the defaults of open_clip's HFTokenizer, and of its tokenizer with OpenAI's vocabulary
    options = {"clean": "whitespace" if name else "lower", **tokenizer.values}
    return LoadPlan(parsed, key_map(parsed, shapes), options, name)


def model_config(model_cfg: Mapping[str, Any], preprocess_cfg: Mapping[str, Any]) -> CLIPConfig:
    """Convert open_clip's configuration.

    Raises:
        ValueError: miniclip does not support a setting.
    """
    model = ConfigSection(model_cfg, "model_cfg", {**MODEL, "vision_cfg": {}, "text_cfg": {}, "embed_dim": None})
    model.require_unset("multimodal_cfg")  # CoCa
    model.ignore("custom_text", "nonscalar_logit_scale", "output_dict")
    quick_gelu = model.flag("quick_gelu")
    bias = model.get("init_logit_bias")
    result = CLIPConfig(
        _image(ConfigSection(model.get("vision_cfg"), "vision_cfg", VISION), quick_gelu),
        _text(ConfigSection(model.get("text_cfg"), "text_cfg", TEXT), quick_gelu),
        model.integer("embed_dim"),
        logit_scale=exp(model.number("init_logit_scale"), "model_cfg.init_logit_scale"),
        logit_bias=None if bias is None else model.number("init_logit_bias"),
        **_preprocess(ConfigSection(preprocess_cfg, "preprocess_cfg", PREPROCESS)),
    )
    model.require_all_read()
    return result


def _image(vision: ConfigSection, quick_gelu: bool) -> ImageConfig | OtherImageConfig:
    vision.ignore(
        "patch_dropout", "output_tokens", "pos_embed_type", "timm_model_pretrained", "timm_drop", "timm_drop_path",
        "attn_pooler_queries", "attn_pooler_heads",
    )  # fmt: skip
    if vision.get("timm_model_name"):
        return _timm(vision)
    vision.ignore("timm_pool", "timm_proj", "timm_proj_bias")
    if isinstance(vision.values["layers"], list):
        return _resnet(vision)
    vision.require_unset("ls_init_value", "attentional_pool", *CUSTOM_BLOCK)
    pooling = vision.choice("pool_type", {"tok": "class", "avg": "mean"})
    if not vision.flag("final_ln_after_pool") and pooling == "mean":
        raise ValueError("vision_cfg.pool_type is 'avg' over normalised patches; miniclip normalises only their mean")
    width = vision.integer("width", minimum=1)
    image = ImageConfig(
        vision.integer("image_size"),
        vision.integer("patch_size"),
        width,
        vision.integer("layers"),
        heads=width // vision.integer("head_width", minimum=1),
        activation=_activation(vision, quick_gelu),
        mlp_ratio=int(width * vision.number("mlp_ratio", most=MAX_MLP_RATIO)) / width,
        norm_eps=_norm_eps(vision),
        norm_before=not vision.flag("no_ln_pre"),
        pooling=pooling,
    )
    vision.require_all_read()
    return image


def _resnet(vision: ConfigSection) -> ResNetConfig:
    """Return OpenAI's ResNet; open_clip ignores the other settings of one."""
    width = vision.integer("width", minimum=1)
    heads = 32 * width // vision.integer("head_width", minimum=1)
    return ResNetConfig(vision.integer("image_size"), tuple(vision.get("layers")), width, heads)


def _timm(vision: ConfigSection) -> ImageConfig | TimmConfig:
    """Return a tower from timm, in miniclip's own form if it has one; open_clip ignores the other settings."""
    name, pooling = vision.values["timm_model_name"], (vision.get("timm_pool"), vision.get("timm_proj"))
    if not isinstance(name, str) or not isinstance(pooling[0], str):
        raise ValueError(  # noqa: TRY004 (of a file)
            f"vision_cfg.timm_model_name is {short(name)}, timm_pool {short(pooling[0])}; expected names"
        )
    image = TIMM_TOWERS.get(name)
    if image is None or pooling != (("map", "none") if image.pooling == "attention" else ("token", None)):
        heads: dict[Any, Any] = {"linear": "linear", "mlp": "mlp", "none": "none", "": None, None: None}
        head = vision.choice("timm_proj", heads)
        return TimmConfig(vision.integer("image_size"), name, pooling[0], head, vision.flag("timm_proj_bias"))
    if vision.integer("image_size") != image.image_size:
        raise ValueError(
            f"vision_cfg.image_size is {vision.values['image_size']}; expected {image.image_size} for {name}"
        )
    return image


def _text(text: ConfigSection, quick_gelu: bool) -> TextConfig:
    text.require_unset("hf_model_name", "embed_cls", "ls_init_value", *CUSTOM_BLOCK)
    text.ignore(
        "hf_tokenizer_name", "tokenizer_kwargs", "tokenizer_mode", "pad_id", "output_tokens", "hf_model_pretrained",
        "hf_proj_type", "hf_pooler_type",
    )  # fmt: skip
    pool = text.get("pool_type")
    vocab_size = text.integer("vocab_size")
    causal = not text.flag("no_causal_mask")
    width = text.integer("width", minimum=1)
    projection = "bias" if text.flag("proj_bias") else "linear"
    result = TextConfig(
        text.integer("context_length"),
        vocab_size,
        width,
        text.integer("layers"),
        text.integer("heads"),
        activation=_activation(text, quick_gelu),
        mlp_ratio=int(width * text.number("mlp_ratio", most=MAX_MLP_RATIO)) / width,
        norm_eps=_norm_eps(text),
        causal=causal,
        padding="masked" if causal else "attended",
        pooling=text.choice("pool_type", {"argmax": "end", "eos": "end", "first": "first", "last": "last"}),
        end_id=_end_id(text, pool, vocab_size),
        projection=text.choice("proj_type", {"linear": projection, "none": "none"}),
    )
    text.require_all_read()
    return result


def _end_id(text: ConfigSection, pool: str, vocab_size: int) -> int | None:
    end = text.integer("eos_id")
    if pool == "argmax":
        return end_of_argmax(vocab_size)
    return end if pool == "eos" else -1


def _activation(tower: ConfigSection, quick_gelu: bool) -> Activation:
    options = tower.get("act_kwargs") or {}
    if not options:
        return "quickgelu" if quick_gelu else "gelu"
    if quick_gelu or options not in ({"approximate": "tanh"}, {"approximate": "none"}):
        raise ValueError(f"{tower.name}.act_kwargs is {short(options)}, which miniclip does not support")
    return "gelu_tanh" if options["approximate"] == "tanh" else "gelu"


def _norm_eps(tower: ConfigSection) -> float:
    options = ConfigSection(tower.get("norm_kwargs") or {}, f"{tower.name}.norm_kwargs", {"eps": 1e-5})
    if options.values.keys() != {"eps"}:
        raise ValueError(f"{options.name} is {short(options.values)}; miniclip supports only 'eps'")
    return options.number("eps")


def _preprocess(settings: ConfigSection) -> dict[str, Any]:
    settings.ignore("size", "fill_color")  # open_clip uses the tower's size too, and fills only with 'longest'
    settings.choice("mode", {"RGB": "RGB"})
    values = {
        "mean": rgb_triple(settings.get("mean"), "preprocess_cfg.mean"),
        "std": rgb_triple(settings.get("std"), "preprocess_cfg.std"),
        # 'random' is used in training only
        "interpolation": settings.choice(
            "interpolation", {"bicubic": "bicubic", "bilinear": "bilinear", "random": "bicubic"}
        ),
        "resize": settings.choice("resize_mode", {"shortest": "shortest", "squash": "squash"}),
    }
    settings.require_all_read()
    return values


def other_rows(config: CLIPConfig, keys: Iterable[str]) -> tuple[Row, ...]:
    """Return the rows of an image tower that is not a vision transformer, whose names are open_clip's."""
    names = tower_weights(config.image, config.embed_dim)
    rows = [Row(f"visual.{name}", f"image.{name}", positions() if name == POSITIONS else SAME) for name in names]
    return (*rows, *(Row(key, None) for key in keys if key.endswith(".num_batches_tracked")))


def uses_timm(image: ImageConfig | OtherImageConfig) -> bool:
    """Check whether open_clip builds an image tower with timm."""
    return isinstance(image, TimmConfig) or (isinstance(image, ImageConfig) and timm_name(image) is not None)


def key_map(config: CLIPConfig, keys: Mapping[str, Shape] | None = None) -> tuple[Row, ...]:
    """Return the key map of a model.

    Args:
        config: of the model.
        keys: the names in a file, which show whether its text tower has a prefix; None: names that open_clip reads.
    """
    other = isinstance(config.image, OtherImageConfig)
    is_timm = "visual.conv1.weight" not in keys if keys is not None else uses_timm(config.image)
    has_prefix = "text.token_embedding.weight" in keys if keys is not None else is_timm
    text = OPENAI_TEXT + (TEXT_LINEAR if config.text.projection == "bias" else TEXT_MATRIX)
    image = other_rows(config, keys or ()) if other else TIMM_IMAGE if is_timm else OPENAI_IMAGE
    return (*image, *(prefixed(text, "text.") if has_prefix else text), *SCALARS, *OPENAI_SIZES)
