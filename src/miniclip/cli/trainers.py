"""Trainers from the settings of the command line: for a new run, and for a resumed one."""

from __future__ import annotations

import dataclasses
import tomllib
import urllib.parse
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from miniclip import recipes
from miniclip.cli.replay import changed_replay, replay_of, with_replay
from miniclip.cli.run_data import data_spec_of, reading_options_of
from miniclip.config import CLIPConfig, preset
from miniclip.train.config import TrainConfig
from miniclip.utils.checks import did_you_mean
from miniclip.utils.files import read_limited
from miniclip.utils.formatting import one_line, short

DEFAULT_DATA, DEFAULT_PRESET = "shapes", "bert_vit_tiny"
SMALL_PRESETS, SMALL_RECIPE = ("bert_vit_tiny", "bert_vit_small"), "few-minutes"
# Defaults for Shapes: its captions name each shape, which a random crop could cut off, and its color.
SHAPES_SETTINGS = {"epochs": 10, "min_crop_area": 1.0, "color_jitter": 0.0}
NEW_RUN_SETTINGS = ("data", "preset", "model", "run_dir", "device", "group_by", "replay")
ARCHITECTURE = ("preset", "model", "architecture")
LOAD_SETTINGS = ("image_size", "context_length")  # options of `load` for a checkpoint to start from
RESUME_FLAGS = ("allow_changes", "step")
MAX_TOML = 1 << 20  # bytes


def merge_settings(config: str | None, flags: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a TOML file, if there is one, overridden by the flags.

    A flag that names an architecture replaces that of the file.
    """
    settings = read_toml(config) if config else {}
    if flags.get("preset") or flags.get("model"):
        settings = {name: value for name, value in settings.items() if name not in ARCHITECTURE}
    return {**settings, **flags}


def read_toml(path: str) -> dict[str, Any]:
    """Return the settings of a TOML file; dashes in names become underscores.

    A table `[model]`, which changes the preset, is returned as "architecture".
    """
    try:
        values = tomllib.loads(read_limited(path, MAX_TOML).decode("utf-8"))
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{error}; --config needs the path of a TOML file") from None
    except (ValueError, RecursionError) as error:  # from the parser, the text, or an integer of 5,000 digits
        raise ValueError(f"{path}: not TOML ({one_line(error)})") from None
    values = {name.replace("-", "_"): value for name, value in values.items()}
    changes = values.pop("model") if isinstance(values.get("model"), dict) else None
    names = [*NEW_RUN_SETTINGS, "replay_share", *(field.name for field in dataclasses.fields(TrainConfig))]
    for name in values:
        if name not in names:
            raise ValueError(f"{path}: unknown setting {short(name)}{did_you_mean(name, names)}")
        if name in NEW_RUN_SETTINGS and not isinstance(values[name], str):
            raise TypeError(f"{path}: {name} is {short(values[name])}; expected text in quotes")
    if changes is not None:
        values["architecture"] = changes
        try:
            recipes.changed(preset(values.get("preset", DEFAULT_PRESET)), changes)
        except (ValueError, TypeError) as error:
            raise type(error)(f"{path}: {one_line(error)}") from None
    return values


def preset_defaults(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the defaults of `miniclip train`: those of the small presets are of a recipe, and Shapes has its own.

    The recipe's changes of the architecture are left out, and every epoch is evaluated.
    """
    is_small = not settings.get("model") and (settings.get("preset") or DEFAULT_PRESET) in SMALL_PRESETS
    measured = read_toml(str(recipes.path_of(SMALL_RECIPE))) if is_small else {}
    optimizer = measured.get("optimizer", "adamw")
    is_other = settings.get("optimizer", optimizer) != optimizer
    left_out = (*ARCHITECTURE, "eval_every", *(["lr"] if is_other else []))  # another optimizer has another rate
    measured = {name: value for name, value in measured.items() if name not in left_out}
    return measured | (SHAPES_SETTINGS if settings.get("data") in (None, DEFAULT_DATA) else {})


def refuse_resume_flags(flags: dict[str, Any]) -> None:
    """Remove the flags of a resumed run.

    Raises:
        ValueError: one of them was given.
    """
    values = [flags.pop(name, None) for name in RESUME_FLAGS]
    if any(value not in (None, False) for value in values):
        raise ValueError("--allow-changes and --step are for --resume RUN")


def new_trainer(settings: dict[str, Any]) -> Any:
    """Return the trainer of a new run."""
    import miniclip

    return miniclip.Trainer(**new_run_arguments(settings))


def new_run_arguments(settings: dict[str, Any]) -> dict[str, Any]:
    """Open the data, build the model, and return the arguments of `Trainer`."""
    from miniclip.data.opening import absolute_spec, parse_spec, spec_name
    from miniclip.runs.directory import next_run_dir, require_free

    data, preset_name, checkpoint, run_dir, device, group, old = (settings.pop(n, None) for n in NEW_RUN_SETTINGS)
    replay = replay_of(old, settings.pop("replay_share", None))
    changes = settings.pop("architecture", {})
    sizes = {name: settings.pop(name) for name in LOAD_SETTINGS if name in settings}
    if sizes and not checkpoint:
        raise ValueError("--image-size and --context-length change a checkpoint: add --model, or remove them")
    if preset_name and checkpoint:
        raise ValueError("--preset and --model exclude each other: give fresh weights or a checkpoint, found both")
    data = DEFAULT_DATA if data in (None, DEFAULT_DATA) else absolute_spec(data)
    data = data if group is None else with_group(data, group)
    config = TrainConfig.from_dict(settings)
    run_dir = Path(run_dir) if run_dir else next_run_dir(Path("runs") / spec_name(data))
    folder = parse_spec(data).path if data != DEFAULT_DATA else None
    require_free(run_dir, folder if folder and folder.is_dir() else None)  # before minutes of reading the data
    train_data, val_data = open_splits(data, replay, reading_options_of(dataclasses.asdict(config)))
    preset_name = preset_name or DEFAULT_PRESET
    if checkpoint:
        model = pretrained_model(checkpoint, config, sizes)
    else:
        require_pixels_of(train_data, preset_name, recipes.changed(preset(preset_name), changes))
        model = fresh_model(preset_name, train_data.captions, config, changes)
    about = {"data": data, **({"model": checkpoint} if checkpoint else {"preset": preset_name})}
    about |= replay | ({"architecture": changes} if changes else {})
    return {
        "model": model,
        "train_data": train_data,
        "val_data": val_data,
        "config": config,
        "run_dir": run_dir,
        "device": device,
        "about": about,
    }


def with_group(data: str, column: str) -> str:
    """Return a dataset spec whose drawn split keeps the images of a group together.

    Raises:
        ValueError: the data have no columns.
    """
    from miniclip.data.opening import split_query

    if data == DEFAULT_DATA:
        raise ValueError("--group-by is for tables with a column of groups; shapes has none: add --data, or remove it")
    return f"{data}{'&' if split_query(data)[1] else '?'}group={urllib.parse.quote(column)}"


def pretrained_model(checkpoint: str, config: TrainConfig, sizes: Mapping[str, int]) -> Any:
    """Return a checkpoint's model, with a logit bias if the loss needs one.

    Half-precision weights become float32: small updates vanish in them.

    Raises:
        ValueError: only adapters would train, so that a new logit bias and scale would stay at their first values.
    """
    import miniclip

    model = miniclip.load(checkpoint, **sizes)  # type: ignore[arg-type]
    model = model.float() if model.log_scale.itemsize < 4 else model
    if config.loss == "sigmoid" and model.logit_bias is None:
        if "lora" in (parts := {config.tune_image, config.tune_text}) and parts <= {"lora", "frozen"}:
            raise ValueError(
                f"{checkpoint} has no logit bias, and a new one would not train with adapters only: use --loss "
                "contrastive, or train weights of a tower too, as with --tune-text full"
            )
        model.add_logit_bias()
        print(
            f"{checkpoint} has no logit bias: added one of {model.config.logit_bias:g}, with a logit scale of "
            f"{model.config.logit_scale:g}, as the sigmoid loss needs"
        )
    return model


def require_pixels_of(data: Any, preset_name: str, architecture: CLIPConfig) -> None:
    """Check that a cache was built for a model's preprocessing, before a tokenizer is trained on its captions.

    Raises:
        ValueError: it was built for another; the message names the presets that fit.
    """
    from miniclip.config import PRESETS
    from miniclip.data.cache.reading import CachedDataset
    from miniclip.data.preprocess import Preprocess

    if not isinstance(data, CachedDataset):
        return
    fitting = [name for name in PRESETS if Preprocess(preset(name)).pixel_settings == data.pixel_settings]
    if Preprocess(architecture).pixel_settings != data.pixel_settings:
        size, expected = data.pixel_settings["size"], architecture.image.image_size
        choices = ", ".join(fitting) or "none"
        raise ValueError(
            f"{data.path}: the cache holds images of {size} px, and the preset {preset_name} takes images of "
            f"{expected} px: add --preset with a preset that fits ({choices}) or --model with a checkpoint that does, "
            f"or build another cache with `miniclip data cache … --preset {preset_name}`"
        )


def fresh_model(
    preset_name: str,
    captions: Sequence[Sequence[str]],
    config: TrainConfig,
    changes: Mapping[str, Any] = MappingProxyType({}),
) -> Any:
    """Return a preset with seeded fresh weights and a tokenizer that is trained on the captions.

    Args:
        preset_name: the architecture.
        captions: of each training image.
        config: the settings.
        changes: a recipe's table `[model]`.
    """
    import torch

    import miniclip
    from miniclip.hub import fresh

    architecture = recipes.changed(preset(preset_name), changes)
    if config.loss == "sigmoid":  # SigLIP's initialisation: almost every pair of a batch is a negative
        architecture = dataclasses.replace(architecture, logit_scale=10.0, logit_bias=-10.0)
    texts = [caption for group in captions for caption in group]
    tokenizer = miniclip.Tokenizer.train(texts, architecture.text.vocab_size)
    torch.manual_seed(config.seed)
    return fresh(architecture, tokenizer)


def resumed_trainer(run: str, settings: dict[str, Any]) -> Any:
    """Return the trainer of a resumed run.

    Args:
        run: the run directory.
        settings: changed settings, and the flags of RESUME_FLAGS.
    """
    import miniclip
    from miniclip.data.opening import absolute_spec
    from miniclip.runs.directory import read_run

    allow_changes, step, device, data = (settings.pop(name, None) for name in (*RESUME_FLAGS, "device", "data"))
    for name in ("preset", "model", "run_dir", "group_by", *LOAD_SETTINGS, "architecture"):
        if name in settings:
            what = "the table [model]" if name == "architecture" else f"--{name.replace('_', '-')}"
            raise ValueError(f"{what} is for a new run; --resume {run} continues that run: remove {what}")
    saved = read_run(run)
    about = {} if data is None else {"data": absolute_spec(data)}
    about |= changed_replay(saved["about"], settings.pop("replay", None), settings.pop("replay_share", None))
    data, replay = about.get("data") or data_spec_of(run, saved), saved["about"] | about
    splits = open_splits(data, replay, reading_options_of(saved["train"] | settings))
    return miniclip.Trainer.resume(
        run,
        *splits,
        settings=settings,
        allow_changes=bool(allow_changes),
        step=step,
        device=device,
        about=about,
    )


def open_splits(spec: str, replay: Mapping[str, Any], options: dict[str, Any]) -> tuple[Any, Any]:
    """Return the training split of a dataset, with old images if `replay` names them, and its validation split."""
    from miniclip.data import open_data

    train_data, val_data = open_data(spec, "train", **options), open_data(spec, "val", **options)
    return with_replay(train_data, replay, options), val_data
