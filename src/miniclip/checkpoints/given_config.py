"""Configuration that a caller passes for weights without one: an object, a name, or the path of a file."""

from __future__ import annotations

import functools
import json
import os
import warnings
from pathlib import Path
from typing import Any

from miniclip.checkpoints.formats import open_clip, transformers
from miniclip.checkpoints.native import parse_config, read_json
from miniclip.checkpoints.plans import LoadPlan
from miniclip.config import PRESETS, CLIPConfig, preset
from miniclip.errors import CheckpointError
from miniclip.utils.checks import did_you_mean
from miniclip.utils.items import describe

OPEN_CLIP_MODELS = Path(__file__).parent / "formats" / "open_clip_models.json"  # written by docs/make_architectures.py


def given_plan(config: str | Path | CLIPConfig) -> LoadPlan:
    """Return the plan of a configuration, without the key map, which depends on the weights.

    Args:
        config: a configuration; the name of a preset, such as "vit_b_32", or of one of open_clip's model
            configurations, such as "ViT-B-32"; or the path of a file: miniclip's or transformers' `config.json`, an
            `open_clip_config.json`, or a file of open_clip's `model_configs`.

    Raises:
        TypeError: it is something else.
        ValueError: no file, preset or configuration has this name, or miniclip does not support it.
        CheckpointError: the file is damaged, or miniclip does not support the model.
    """
    if isinstance(config, CLIPConfig):
        return LoadPlan(config, ())
    if not isinstance(config, str | os.PathLike):
        raise TypeError(
            f"config: found {describe(config)}; expected the name of a preset, a path, or a CLIPConfig: from a dict, "
            "CLIPConfig.from_dict(values)"
        )
    path = Path(config)
    if not path.is_file():
        return _named_plan(str(config))
    values = read_json(path)
    try:
        return _plan_of_file(path, values)
    except (TypeError, ValueError) as error:
        raise error if isinstance(error, CheckpointError) else CheckpointError(f"{path}: {error}") from None


def _named_plan(name: str) -> LoadPlan:
    if name in PRESETS:
        return LoadPlan(preset(name), ())
    models = open_clip_models()
    dashed = name.replace("/", "-")
    if name != dashed and f"{dashed}-quickgelu" in models:
        raise ValueError(
            f"config {name!r} has two activations: {dashed!r} is open_clip's configuration, with GELU, and "
            f"'{dashed}-quickgelu' is OpenAI's model, with QuickGELU"
        )
    if name not in models:
        choices, place = (PRESETS, "miniclip.list_models()") if "_" in name else (models, "open_clip.list_models()")
        raise ValueError(f"unknown preset or configuration {name!r}{did_you_mean(name, choices, listed_by=place)}")
    try:
        return _without_preprocessing(name, models[name])
    except ValueError as error:
        raise ValueError(f"open_clip's {name}: {error}") from None


def _plan_of_file(path: Path, values: dict[str, Any]) -> LoadPlan:
    """Return the plan of a file's content, whose keys show the project."""
    if "model_cfg" in values:
        return open_clip.load_plan(values, None)
    if {"embed_dim", "vision_cfg", "text_cfg"} <= values.keys():  # open_clip's model_configs have no more
        return _without_preprocessing(str(path), values)
    if "model_type" in values:
        files = (path.with_name(name) for name in (transformers.PREPROCESSOR, transformers.PROCESSOR))
        return transformers.load_plan(values, next((read_json(file) for file in files if file.is_file()), {}))
    return LoadPlan(parse_config(path, values), ())


def _without_preprocessing(name: str, model_cfg: dict[str, Any]) -> LoadPlan:
    """Return the plan of an open_clip model, with open_clip's preprocessing for a file of weights: OpenAI's."""
    plan = open_clip.load_plan({"model_cfg": model_cfg}, None)
    if plan.config.text.padding == "attended":  # published weights of these kinds were trained with another one
        warnings.warn(
            f"config {name}: images get OpenAI's mean and std, as in open_clip for a file of weights; for weights from "
            "published SigLIP, CLIPA or MobileCLIP models, pass their open_clip_config.json",
            UserWarning,
            stacklevel=6,
        )
    return plan


@functools.cache
def open_clip_models() -> dict[str, dict[str, Any]]:
    """Return open_clip's model configurations by name."""
    models: dict[str, dict[str, Any]] = json.loads(OPEN_CLIP_MODELS.read_text(encoding="utf-8"))
    return models
