"""`miniclip finetune`: train a pretrained model on new data, with defaults that change it little.

Full fine-tuning uses the contrastive loss of pretraining itself (FLYP; Goyal et al. 2023).
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping
from typing import Any

from miniclip import recipes
from miniclip.cli.parsing import add_command
from miniclip.cli.train import add_place_flags, add_run_flags, add_settings, recipe_file, train_command
from miniclip.cli.trainers import merge_settings

# 1e-5 with AdamW, weight decay 0.1 and ten epochs: full fine-tuning in WiSE-FT (Wortsman et al. 2022, appendix) and
# FLYP. Pretraining used 5e-4; at such a rate the first steps destroy what it learned.
DEFAULTS = {"epochs": 10, "lr": 1e-5, "weight_decay": 0.1, "evaluate_first": True}
# Adapters start at zero and are few, so that they need and tolerate a higher rate (Hu et al. 2022; Zanella and Ben Ayed
# 2024 use 2e-4, and a decay of 0.01, for CLIP).
LORA_DEFAULTS = {"lr": 1e-4, "weight_decay": 0.01}
METHODS = "full, lora, lit or last-N"

EPILOG = """examples:
  miniclip finetune vit_b_32 products.csv --run-dir runs/products
  miniclip finetune vit_b_32 products.csv --method lora --lora-rank 8
  miniclip finetune vit_b_32 products.csv --method last-2 --epochs 20 --batch-size 256
  miniclip finetune vit_b_32 products.csv --replay flickr30k:train   old images in every batch, against forgetting
  miniclip finetune small-model products.csv --recipe tune-full     measured settings; flags override them
  miniclip finetune --resume runs/products           continue an interrupted run

The model is evaluated before the first step, as epoch 0, so that harm shows. best/ holds the best evaluation, which can
be that one. The page Fine-tuning of the documentation leads from a table of products to an exported model.
"""


def add(commands: Any) -> None:
    """Add the command."""
    text = "train a pretrained model on new data"
    finetune = add_command(commands, "finetune", finetune_command, text, EPILOG)
    finetune.set_defaults(announce=announce)
    help_of = {"model": "a checkpoint, a name, a run or a Hub repository", "data": "images with captions, as in train"}
    for name, text in help_of.items():
        finetune.add_argument(name, nargs="?", default=argparse.SUPPRESS, metavar=name.upper(), help=text)
    finetune.add_argument(
        "--method",
        type=method,
        metavar="full|lora|lit|last-N",
        help="the parts that train: all weights (full, the default), adapters in both towers (lora), the text tower "
        "(lit), or the last N blocks of both towers; --tune-image and --tune-text set each tower",
    )
    add_run_flags(finetune, tuning_recipe)
    add_place_flags(finetune)
    add_settings(finetune.add_argument_group("settings"), "here", DEFAULTS)


def method(text: str) -> str:
    """Check the name of a method; argparse prints it: "invalid method value"."""
    if not re.fullmatch(r"full|lora|lit|last-[1-9]\d*", text):
        raise ValueError(text)
    return text


def tuning_recipe(name: str) -> str:
    """Return the file of a recipe for fine-tuning, for argparse."""
    path = recipe_file(name)
    if not recipes.is_for_tuning(name):
        names = ", ".join(filter(recipes.is_for_tuning, recipes.names()))
        raise argparse.ArgumentTypeError(
            f"{name} is for fresh weights: use `miniclip train --recipe {name}`, or one of {names}"
        )
    return path


def tower_settings(method: str | None) -> dict[str, str]:
    """Return the settings of both towers that a method stands for."""
    if method is None:
        return {}
    if method == "lit":  # locked-image tuning (Zhai et al. 2022)
        return {"tune_image": "frozen", "tune_text": "full"}
    return {"tune_image": method, "tune_text": method}


def defaults(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the defaults of fine-tuning for what trains."""
    adapters = "lora" in (settings.get("tune_image"), settings.get("tune_text"))
    return DEFAULTS | (LORA_DEFAULTS if adapters else {})


def announce(options: Mapping[str, Any]) -> None:
    """Check the arguments and print a first line at once, before the import of torch.

    Raises:
        ValueError: model and data are missing, or given with --resume.
    """
    run, given = options["resume"], [options[name] for name in ("model", "data") if name in options]
    if run is None and not {"model", "data"} <= merge_settings(options["recipe"], options).keys():
        raise ValueError("expected a model and data, as in `miniclip finetune vit_b_32 products.csv`")
    if run is not None and (given or options["method"]):
        found = ", ".join([*given, *(["--method"] if options["method"] else [])])
        raise ValueError(f"--resume {run} continues that run with its own model, data and method: remove {found}")
    from miniclip.cli import train

    train.announce(options)


def finetune_command(method: str | None, resume: str | None, **options: Any) -> int:
    """Run `miniclip finetune`."""
    if resume is not None:
        return train_command(resume, **options)
    return train_command(None, defaults=defaults, **(tower_settings(method) | options))
