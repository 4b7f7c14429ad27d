"""open_clip's layout: `open_clip_config.json` beside the weights, for its own vision transformers and some of timm's.

Source: https://github.com/mlfoundations/open_clip, src/open_clip/{model,transformer,factory,transform}.py, version 3.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from miniclip.checkpoints.formats.timm_towers import TIMM_TOWERS
from miniclip.checkpoints.key_maps import (
    OPENAI_IMAGE,
    OPENAI_MARKS,
    OPENAI_TEXT,
    SCALARS,
    TEXT_LINEAR,
    TEXT_MATRIX,
    TIMM_IMAGE,
    Row,
    prefixed,
)
from miniclip.checkpoints.layout import Plan, Settings, Written, ratio, triple, warn_of_crops
from miniclip.checkpoints.operations import Shape
from miniclip.config import OPENAI_MEAN, OPENAI_STD, Activation, CLIPConfig, ImageConfig, TextConfig

CONFIG, WEIGHTS = "open_clip_config.json", "open_clip_model.safetensors"
OPENAI_VOCABULARY = 49408

MODEL = {"quick_gelu": False, "init_logit_scale": math.log(1 / 0.07), "init_logit_bias": None}
VISION = {
    "layers": 12, "width": 768, "head_width": 64, "mlp_ratio": 4.0, "patch_size": 16, "image_size": 224,
    "no_ln_pre": False, "final_ln_after_pool": False, "pool_type": "tok", "act_kwargs": None, "norm_kwargs": None,
    "timm_model_name": None, "timm_pool": "avg", "timm_proj": "linear",
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


def plan(config: Mapping[str, Any], shapes: Mapping[str, Shape]) -> Plan:
    """The model that an `open_clip_config.json` is.

    Raises:
        ValueError: it has parts that miniclip has not; the message names them.
    """
    model = Settings(config.get("model_cfg", {}), "model_cfg", {"vision_cfg": {}, "text_cfg": {}, "embed_dim": None})
    text = dict(model.take("text_cfg"))
    parsed = model_config(model.values, config.get("preprocess_cfg", {}))
    name = text.get("hf_tokenizer_name")
    # the defaults of its HFTokenizer, and of the one with OpenAI's vocabulary that it has built in
    options = {"clean": "whitespace" if name else "lower", **(text.get("tokenizer_kwargs") or {})}
    return Plan(parsed, rows(parsed, shapes), options, name)


def model_config(model_cfg: Mapping[str, Any], preprocess_cfg: Mapping[str, Any]) -> CLIPConfig:
    """open_clip's settings as ours.

    Raises:
        ValueError: a setting has no counterpart.
    """
    model = Settings(model_cfg, "model_cfg", {**MODEL, "vision_cfg": {}, "text_cfg": {}, "embed_dim": None})
    model.refuse("multimodal_cfg")  # CoCa
    model.ignore("custom_text", "nonscalar_logit_scale", "output_dict")
    quick = bool(model.take("quick_gelu"))
    bias = model.take("init_logit_bias")
    result = CLIPConfig(
        _image(Settings(model.take("vision_cfg"), "vision_cfg", VISION), quick),
        _text(Settings(model.take("text_cfg"), "text_cfg", TEXT), quick),
        model.number("embed_dim"),
        logit_scale=math.exp(model.real("init_logit_scale")),
        logit_bias=None if bias is None else float(bias),
        **_preprocess(Settings(preprocess_cfg, "preprocess_cfg", PREPROCESS)),
    )
    model.done()
    return result


def _image(vision: Settings, quick: bool) -> ImageConfig:
    vision.ignore(
        "patch_dropout", "output_tokens", "pos_embed_type", "timm_model_pretrained", "timm_drop", "timm_drop_path",
        "timm_proj_bias", "attn_pooler_queries", "attn_pooler_heads",
    )  # fmt: skip
    if vision.take("timm_model_name"):
        return _timm(vision)
    vision.ignore("timm_pool", "timm_proj")
    if isinstance(vision.values["layers"], list):
        raise ValueError("vision_cfg.layers is a list: a ResNet, which miniclip has no part for")  # noqa: TRY004
    vision.refuse("ls_init_value", "attentional_pool", *CUSTOM_BLOCK)
    pooling = vision.choose("pool_type", {"tok": "class", "avg": "mean"})
    if not vision.take("final_ln_after_pool") and pooling == "mean":
        raise ValueError("vision_cfg.pool_type is 'avg' over normalised patches; miniclip normalises their mean")
    width = vision.number("width", least=1)
    image = ImageConfig(
        vision.number("image_size"),
        vision.number("patch_size"),
        width,
        vision.number("layers"),
        heads=width // vision.number("head_width", least=1),
        activation=_activation(vision, quick),
        mlp_ratio=int(width * vision.real("mlp_ratio")) / width,
        norm_eps=_norm_eps(vision),
        norm_before=not vision.take("no_ln_pre"),
        pooling=pooling,
    )
    vision.done()
    return image


def _timm(vision: Settings) -> ImageConfig:
    name = vision.values["timm_model_name"]
    if name not in TIMM_TOWERS:
        raise ValueError(f"vision_cfg.timm_model_name is {name!r}, which is no plain vision transformer of miniclip's")
    image = TIMM_TOWERS[name]
    expected = ("map", "none") if image.pooling == "attention" else ("token", None)
    found = vision.take("timm_pool"), vision.take("timm_proj")
    if found != expected:
        raise ValueError(f"vision_cfg.timm_pool and timm_proj are {found}; for {name} miniclip has {expected}")
    if vision.number("image_size") != image.image_size:
        raise ValueError(f"vision_cfg.image_size is {vision.values['image_size']}; {name} takes {image.image_size}")
    return image  # open_clip does not look at the other settings of a tower that has a name


def _text(text: Settings, quick: bool) -> TextConfig:
    text.refuse("hf_model_name", "embed_cls", "ls_init_value", *CUSTOM_BLOCK)
    text.ignore(
        "hf_tokenizer_name", "tokenizer_kwargs", "tokenizer_mode", "pad_id", "output_tokens", "hf_model_pretrained",
        "hf_proj_type", "hf_pooler_type",
    )  # fmt: skip
    pool = text.take("pool_type")
    vocab_size, end = text.number("vocab_size"), text.number("eos_id")
    causal = not text.take("no_causal_mask")
    width = text.number("width", least=1)
    projection = "bias" if text.take("proj_bias") else "linear"
    result = TextConfig(
        text.number("context_length"),
        vocab_size,
        width,
        text.number("layers"),
        text.number("heads"),
        activation=_activation(text, quick),
        mlp_ratio=int(width * text.real("mlp_ratio")) / width,
        norm_eps=_norm_eps(text),
        causal=causal,
        padding="masked" if causal else "attended",
        pooling=text.choose("pool_type", {"argmax": "end", "eos": "end", "first": "first", "last": "last"}),
        end_id=end if pool == "eos" else min(vocab_size, OPENAI_VOCABULARY) - 1,  # argmax: the highest id of a row
        projection=text.choose("proj_type", {"linear": projection, "none": "none"}),
    )
    text.done()
    return result


def _activation(tower: Settings, quick: bool) -> Activation:
    options = tower.take("act_kwargs") or {}
    if not options:
        return "quickgelu" if quick else "gelu"
    if quick or options not in ({"approximate": "tanh"}, {"approximate": "none"}):
        raise ValueError(f"{tower.name}.act_kwargs is {options!r}, which miniclip has no part for")
    return "gelu_tanh" if options["approximate"] == "tanh" else "gelu"


def _norm_eps(tower: Settings) -> float:
    options = dict(tower.take("norm_kwargs") or {})
    eps = options.pop("eps", 1e-5)
    if options or not isinstance(eps, float):
        raise ValueError(f"{tower.name}.norm_kwargs is {tower.values['norm_kwargs']!r}; miniclip knows 'eps' alone")
    return eps


def _preprocess(settings: Settings) -> dict[str, Any]:
    settings.ignore("size", "fill_color")  # open_clip takes the tower's size too; nothing is filled without 'longest'
    settings.choose("mode", {"RGB": "RGB"})
    values = {
        "mean": triple(settings.take("mean"), "preprocess_cfg.mean"),
        "std": triple(settings.take("std"), "preprocess_cfg.std"),
        # 'random' is of its training alone
        "interpolation": settings.choose(
            "interpolation", {"bicubic": "bicubic", "bilinear": "bilinear", "random": "bicubic"}
        ),
        "resize": settings.choose("resize_mode", {"shortest": "shortest", "squash": "squash"}),
    }
    settings.done()
    return values


def rows(config: CLIPConfig, keys: Mapping[str, Shape] | None = None) -> tuple[Row, ...]:
    """The rows of a model; a file's keys say whether its text tower has a prefix (without a file: SigLIP's have)."""
    own = "visual.conv1.weight" in keys if keys is not None else _timm_name(config.image) is None
    custom = "text.token_embedding.weight" in keys if keys is not None else not own
    text = OPENAI_TEXT + (TEXT_LINEAR if config.text.projection == "bias" else TEXT_MATRIX)
    image = OPENAI_IMAGE if own else TIMM_IMAGE
    return (*image, *(prefixed(text, "text.") if custom else text), *SCALARS, *OPENAI_MARKS)


def written(config: CLIPConfig, tokenizer: str | None = None) -> Written:
    """How a model becomes open_clip's.

    Args:
        config: the model's.
        tokenizer: the repo that open_clip shall take the tokenizer from; None: OpenAI's, which it has built in.

    Raises:
        ValueError: open_clip has no such model; the message says why.
    """
    text = config.text
    if not text.causal and text.padding == "masked":
        raise ValueError("open_clip has no bidirectional text tower with masked padding, such as this BERT-style one")
    warn_of_crops(config, "rounded", "open_clip")
    timm = _timm_name(config.image)
    quick = text.activation == "quickgelu"
    if timm is None and quick != (config.image.activation == "quickgelu"):
        raise ValueError("open_clip has QuickGELU in both towers or in none")
    model = {
        "embed_dim": config.embed_dim,
        "quick_gelu": quick,
        "init_logit_scale": math.log(config.logit_scale),
        "init_logit_bias": config.logit_bias,
        "vision_cfg": _vision_cfg(config.image) if timm is None else _timm_cfg(config.image, timm),
        "text_cfg": _text_cfg(text) | ({"hf_tokenizer_name": tokenizer} if tokenizer else {}),
        **({"custom_text": True} if timm else {}),
    }
    preprocess = {
        "mean": list(config.mean),
        "std": list(config.std),
        "interpolation": config.interpolation,
        "resize_mode": config.resize,
    }
    return Written(rows(config), {CONFIG: {"model_cfg": model, "preprocess_cfg": preprocess}}, WEIGHTS)


def _vision_cfg(image: ImageConfig) -> dict[str, Any]:
    if image.patch_bias or not image.class_token or image.pooling == "attention" or image.projection != "linear":
        raise ValueError(
            "open_clip's own image tower has a class token, patches without a bias, a projection without one, and no "
            f"attention pooling as here; of timm's it could name none is as this one: {', '.join(TIMM_TOWERS)}"
        )
    mean = {"pool_type": "avg", "final_ln_after_pool": True} if image.pooling == "mean" else {}
    return {
        "image_size": image.image_size,
        "patch_size": image.patch_size,
        "width": image.width,
        "layers": image.layers,
        "head_width": image.width // image.heads,
        "mlp_ratio": ratio(image.width, image.mlp_width),
        **({} if image.norm_before else {"no_ln_pre": True}),
        **mean,
        **_kwargs(image),
    }


def _timm_cfg(image: ImageConfig, name: str) -> dict[str, Any]:
    pool, proj = ("map", "none") if image.pooling == "attention" else ("token", None)
    return {
        "image_size": image.image_size,
        "timm_model_name": name,
        "timm_model_pretrained": False,
        "timm_pool": pool,
        "timm_proj": proj,
    }


def _timm_name(image: ImageConfig) -> str | None:
    return next((name for name, tower in TIMM_TOWERS.items() if tower == image), None)


def _text_cfg(text: TextConfig) -> dict[str, Any]:
    argmax = text.end_id == text.vocab_size - 1  # else a word that was added is the highest id
    pool = {"first": "first", "last": "last", "end": "argmax" if argmax else "eos"}[text.pooling]
    return {
        "context_length": text.context_length,
        "vocab_size": text.vocab_size,
        "width": text.width,
        "layers": text.layers,
        "heads": text.heads,
        "mlp_ratio": ratio(text.width, text.mlp_width),
        "pool_type": pool,
        **({"eos_id": text.end_id} if pool == "eos" else {}),
        **({} if text.causal else {"no_causal_mask": True}),
        **({"proj_bias": True} if text.projection == "bias" else {}),
        **({"proj_type": "none"} if text.projection == "none" else {}),
        **_kwargs(text),
    }


def _kwargs(tower: ImageConfig | TextConfig) -> dict[str, Any]:
    return {
        **({"act_kwargs": {"approximate": "tanh"}} if tower.activation == "gelu_tanh" else {}),
        **({"norm_kwargs": {"eps": tower.norm_eps}} if tower.norm_eps != 1e-5 else {}),
    }
