"""Export to open_clip's layout, described in `open_clip.py`."""

from __future__ import annotations

import math
from typing import Any

from miniclip.checkpoints.foreign_config import mlp_ratio, warn_if_cropped_differently
from miniclip.checkpoints.formats.open_clip import CONFIG, WEIGHTS, key_map, uses_timm
from miniclip.checkpoints.formats.timm_towers import TIMM_TOWERS, timm_name
from miniclip.checkpoints.plans import ExportPlan
from miniclip.config import CLIPConfig, ImageConfig, TextConfig
from miniclip.tower_config import OtherImageConfig, TimmConfig


def export_plan(config: CLIPConfig, tokenizer: str | None = None) -> ExportPlan:
    """Return the plan for writing a model in open_clip's layout.

    Args:
        config: of the model.
        tokenizer: the repository or file of the tokenizer; None: OpenAI's, which is part of open_clip.

    Raises:
        ValueError: open_clip cannot build the model; the message gives the reason.
    """
    text = config.text
    if not text.causal and text.padding == "masked":
        raise ValueError("open_clip has no bidirectional text tower with masked padding, such as this BERT-style one")
    warn_if_cropped_differently(config, "rounded", "open_clip")
    image, quick_gelu = config.image, text.activation == "quickgelu"
    is_timm = uses_timm(image)
    is_own = isinstance(image, ImageConfig) and not is_timm
    if is_own and quick_gelu != (image.activation == "quickgelu"):
        raise ValueError("open_clip has QuickGELU in both towers or in none")
    model = {
        "embed_dim": config.embed_dim,
        "quick_gelu": quick_gelu,
        "init_logit_scale": math.log(config.logit_scale),
        "init_logit_bias": config.logit_bias,
        "vision_cfg": _vision_cfg(image) if isinstance(image, ImageConfig) else _other_cfg(image),
        "text_cfg": _text_cfg(text) | ({"hf_tokenizer_name": tokenizer} if tokenizer else {}),
        **({"custom_text": True} if is_timm else {}),
    }
    files = {CONFIG: {"model_cfg": model, "preprocess_cfg": preprocess_cfg(config)}}
    return ExportPlan(key_map(config), files, WEIGHTS)


def preprocess_cfg(config: CLIPConfig) -> dict[str, Any]:
    """Return the preprocessing that follows the image's size, in open_clip's words."""
    return {
        "mean": list(config.mean),
        "std": list(config.std),
        "interpolation": config.interpolation,
        "resize_mode": config.resize,
    }


def _other_cfg(image: OtherImageConfig) -> dict[str, Any]:
    if isinstance(image, TimmConfig):
        bias = {"timm_proj_bias": True} if image.head_bias else {}
        return timm_cfg(image.image_size, image.model, image.pool, image.head) | bias
    return {
        "image_size": image.image_size,
        "layers": list(image.blocks),
        "width": image.channels,
        "head_width": image.features // image.pool_heads,
    }


def _vision_cfg(image: ImageConfig) -> dict[str, Any]:
    if name := timm_name(image):
        pool, proj = ("map", "none") if image.pooling == "attention" else ("token", None)
        return timm_cfg(image.image_size, name, pool, proj)
    if image.stem != "patch":
        raise ValueError(f"open_clip cannot build this image tower: image.stem is {image.stem!r}, there 'patch'")
    if image.patch_bias or not image.class_token or image.pooling == "attention" or image.projection != "linear":
        raise ValueError(
            "open_clip cannot build this image tower: its own has a class token, no bias in patches and "
            f"projection, and no attention pooling, and none of timm's equals it: {', '.join(TIMM_TOWERS)}"
        )
    mean = {"pool_type": "avg", "final_ln_after_pool": True} if image.pooling == "mean" else {}
    return {
        "image_size": image.image_size,
        "patch_size": image.patch_size,
        "width": image.width,
        "layers": image.layers,
        "head_width": image.width // image.heads,
        "mlp_ratio": mlp_ratio(image.width, image.mlp_width),
        **({} if image.norm_before else {"no_ln_pre": True}),
        **mean,
        **_kwargs(image),
    }


def timm_cfg(image_size: int, name: str, pool: str, proj: str | None) -> dict[str, Any]:
    """Return the settings of a tower that open_clip builds with timm."""
    return {
        "image_size": image_size,
        "timm_model_name": name,
        "timm_model_pretrained": False,
        "timm_pool": pool,
        "timm_proj": proj,
    }


def _text_cfg(text: TextConfig) -> dict[str, Any]:
    argmax = text.end_id in (None, text.vocab_size - 1)  # else an added token may have the highest id
    pool = {"first": "first", "last": "last", "end": "argmax" if argmax else "eos"}[text.pooling]
    return {
        "context_length": text.context_length,
        "vocab_size": text.vocab_size,
        "width": text.width,
        "layers": text.layers,
        "heads": text.heads,
        "mlp_ratio": mlp_ratio(text.width, text.mlp_width),
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
