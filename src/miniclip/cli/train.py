"""`miniclip train`: start or resume a run, check it first, or print its plan."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, get_type_hints

from miniclip import recipes
from miniclip.cli.evaluate import format_recalls
from miniclip.cli.finetuning.summary import comparison_with_start, next_commands
from miniclip.cli.models import count_parameters
from miniclip.cli.parsing import CONTEXT_HELP, IMAGE_HELP, add_command, add_flag
from miniclip.cli.replay import require_old_data
from miniclip.cli.trainers import (
    DEFAULT_DATA,
    DEFAULT_PRESET,
    SHAPES_SETTINGS,
    merge_settings,
    new_run_arguments,
    new_trainer,
    preset_defaults,
    refuse_resume_flags,
    resumed_trainer,
)
from miniclip.train.config import TrainConfig
from miniclip.utils.formatting import format_command

Defaults = Callable[[Mapping[str, Any]], dict[str, Any]]

EPILOG = """examples:
  miniclip train                                     Shapes and a tiny model, about a minute on two cores
  miniclip train --data flickr30k --preset bert_vit_b_16 --epochs 55 --run-dir runs/flickr
  miniclip train --data photos.csv                   a table of paths and captions; see `miniclip data inspect`
  miniclip train --config recipe.toml                settings from a file, as `epochs = 55`; flags override it
  miniclip train --data photos --recipe small-set    measured settings; `miniclip recipes` lists them
  miniclip train --data flickr30k --check            check data, memory and model; exit code 1 if there are errors
  miniclip train --data photos --dry-run             print the settings, and the estimated time and memory
  miniclip train --resume runs/flickr                continue an interrupted run
  miniclip train --resume runs/flickr --lr 1e-4 --allow-changes    continue it with another setting
  torchrun --nproc-per-node 4 -m miniclip train …    four GPUs, or four processes

Fresh weights of a small preset have other defaults than those below: the settings of its recipe. --dry-run shows them.
"""


def add(commands: Any) -> None:
    """Add the command; its flags are generated from `TrainConfig`."""
    train = add_command(commands, "train", train_command, "train a model and draw its learning curve", EPILOG)
    train.set_defaults(announce=announce)
    add_run_flags(train, fresh_recipe)
    data_help = f"a folder, a table, tar shards (docs/data.md), or shapes, a synthetic dataset (default {DEFAULT_DATA})"
    add_flag(train, "data", str | None, data_help)
    add_flag(train, "preset", str | None, f"the architecture, with fresh weights (default {DEFAULT_PRESET})")
    add_flag(train, "model", str | None, "a checkpoint to start from, instead of a preset")
    add_place_flags(train)
    add_settings(train.add_argument_group("settings"), "on shapes", SHAPES_SETTINGS)


def add_place_flags(parser: argparse.ArgumentParser) -> None:
    """Add the groups of the data, old data, the run directory, the device, and the sizes of a checkpoint."""
    add_flag(parser, "group_by", str | None, "column of a table: rows with the same value, as a product, share a split")
    replay = "old data of which every batch has a share, so that the model keeps what it could do (docs/finetuning.md)"
    add_flag(parser, "replay", str, replay)
    add_flag(parser, "replay_share", float, "with --replay, the part of every batch that is old (default 0.5)")
    add_flag(parser, "run_dir", str | None, "the run directory (default: the next free runs/NAME)")
    add_flag(parser, "device", str | None, "cpu, cuda or mps (default: the GPU if there is one)")
    add_flag(parser, "image_size", int, IMAGE_HELP)
    add_flag(parser, "context_length", int, CONTEXT_HELP)


def recipe_file(name: str) -> str:
    """Return the file of a recipe, for argparse."""
    try:
        return str(recipes.path_of(name))
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def fresh_recipe(name: str) -> str:
    """Return the file of a recipe for fresh weights, for argparse."""
    path = recipe_file(name)
    if recipes.is_for_tuning(name):
        raise argparse.ArgumentTypeError(
            f"{name} is for fine-tuning: use `miniclip finetune MODEL DATA --recipe {name}`"
        )
    return path


def add_run_flags(parser: argparse.ArgumentParser, recipe: Callable[[str], str]) -> None:
    """Add the flags that resume a run, read settings from a file or a recipe, or only check.

    Args:
        parser: of the command.
        recipe: returns the file of a recipe that the command takes.
    """
    parser.add_argument("--resume", metavar="RUN", help="continue a run with its own data and settings")
    parser.add_argument("--allow-changes", action="store_true", help="with --resume: accept changed data or settings")
    parser.add_argument(
        "--step", type=int, metavar="N", help="with --resume: restart from the state of this step (--keep-checkpoints)"
    )
    files = parser.add_mutually_exclusive_group()
    files.add_argument("--config", dest="recipe", metavar="FILE", help="a TOML file with any of the settings below")
    files.add_argument("--recipe", type=recipe, metavar="NAME", help="measured settings; `miniclip recipes` lists them")
    parser.add_argument("--dry-run", action="store_true", help="print settings and estimated costs, then exit")
    parser.add_argument(
        "--check",
        action="store_true",
        default=argparse.SUPPRESS,
        help="check the data and the memory, overfit a few pairs with a copy of the model, print the findings, and "
        "exit; the exit code is 1 if there are errors",
    )


def add_settings(parser: Any, case: str, defaults: Mapping[str, Any]) -> None:
    """Add a flag for every field of `TrainConfig`.

    Args:
        parser: parser, or group of one.
        case: where other defaults apply, for the help.
        defaults: these defaults.
    """
    hints = get_type_hints(TrainConfig)
    for field in dataclasses.fields(TrainConfig):
        default = "" if field.default is None else f" (default {str(field.default).lower()}"
        if field.name in defaults:
            default += f", {case} {str(defaults[field.name]).lower()}"
        default += ")" if default else ""
        add_flag(parser, field.name, hints[field.name], TrainConfig.help(field.name) + default)


def with_defaults(settings: dict[str, Any], defaults: Defaults) -> dict[str, Any]:
    """Return settings with the defaults of a command for those that are not given."""
    return {**defaults(settings), **settings}


def announce(options: Mapping[str, Any]) -> None:
    """Print a first line at once, before the import of torch, which takes seconds.

    Raises:
        ValueError: old images are needed and not given.
    """
    settings = merge_settings(options["recipe"], options)
    if not options["resume"]:
        require_old_data(settings.get("replay"), settings.get("replay_share"))
    if os.environ.get("RANK", "0") == "0":  # torchrun sets it
        run = options["resume"]
        print(f"resuming {run}" if run else f"reading {settings.get('data') or DEFAULT_DATA}", flush=True)


def train_command(
    resume: str | None, recipe: str | None, check: bool = False, defaults: Defaults = preset_defaults, **flags: Any
) -> int:
    """Run `miniclip train`; under torchrun, each rank runs it. `defaults` are those of another command."""
    from miniclip.runtime import distributed
    from miniclip.runtime.devices import select_device

    if resume and recipe and Path(recipe).parent == recipes.FOLDER:
        raise ValueError(f"--recipe is for a new run; --resume {resume} has settings of its own: remove --recipe")
    device = select_device(merge_settings(recipe, flags).get("device"))
    with distributed.process_group(device), main_rank_output():
        if check:
            return run_check(resume, recipe, defaults, **flags)
        run_training(resume, recipe, defaults, **flags)
    return 0


@contextlib.contextmanager
def main_rank_output() -> Iterator[None]:
    """Silence the output and the warnings of all ranks except rank 0."""
    from miniclip.runtime import distributed

    if distributed.is_main():
        yield
        return
    with Path(os.devnull).open("w") as devnull, contextlib.redirect_stdout(devnull), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def run_check(resume: str | None, config: str | None, defaults: Defaults, dry_run: bool = False, **flags: Any) -> int:
    """Check the data, the memory and the model of a run without training it; return the exit code."""
    from miniclip.diagnostics.check import check
    from miniclip.finetuning.requirements import require_tunable
    from miniclip.loggers.defaults import logger_callbacks
    from miniclip.runtime.precision import resolve
    from miniclip.train.requirements import require_trainable

    if resume is not None:
        report = resumed_trainer(resume, merge_settings(config, flags)).check()
    else:  # without a Trainer, which stops at the first image that it cannot read
        from miniclip.runtime.devices import select_device

        refuse_resume_flags(flags)
        arguments = new_run_arguments(with_defaults(merge_settings(config, flags), defaults))
        device = select_device(arguments["device"])
        data = arguments["train_data"], arguments["val_data"]
        model, settings = arguments["model"], arguments["config"]
        require_trainable(model, *data, settings)
        require_tunable(model, settings)
        logger_callbacks(settings)  # their packages must be there
        settings = dataclasses.replace(settings, precision=resolve(settings.precision, device))
        report = check(model.to(device), *data, settings)
    print(report)
    if report.worst == "error":
        print("fix the errors, then check again")
        return 1
    print("nothing was trained or written; to start the run, repeat the command without --check")
    return 0


def run_training(
    resume: str | None, config: str | None, defaults: Defaults, dry_run: bool = False, **flags: Any
) -> None:
    """Start or resume a run, train to the end and print a summary; with `dry_run`, print the plan only."""
    if resume is not None:
        trainer = resumed_trainer(resume, merge_settings(config, flags))
    else:
        refuse_resume_flags(flags)
        trainer = new_trainer(with_defaults(merge_settings(config, flags), defaults))
    if dry_run:
        from miniclip.cli.dry_run import Origins, format_plan

        case = "for this preset and dataset" if defaults is preset_defaults else "for fine-tuning"
        print(format_plan(trainer, Origins(resume, merge_settings(config, {}), flags, case)))
        return
    print(format_start(trainer), flush=True)
    if trainer.config.evaluate_first and trainer.val_data is not None and trainer.step == 0:
        print("the figures of the model as it is, before the first step, are those of epoch 0", flush=True)
    try:
        trainer.fit()
    except KeyboardInterrupt:
        command = format_command("miniclip", "train", "--resume", trainer.run_dir)
        print(f"stopped at step {trainer.step}; to continue: {command}")
        raise
    print(format_summary(trainer))


def format_start(trainer: Any) -> str:
    """Return the line before the first step: model, data, steps, device and run directory."""
    from miniclip.runtime import distributed

    ranks = f", {distributed.world_size()} ranks" if distributed.world_size() > 1 else ""
    return (
        f"{trainer.about.get('preset', 'model')}: {count_parameters(trainer.model):,} parameters; "
        f"{trainer.loader.size:,} training images{format_replay(trainer.loader)}, batches of "
        f"{trainer.loader.batch_size}, {trainer.total_steps:,} steps, {trainer.config.precision} on "
        f"{trainer.model.device}{ranks}; writing to {trainer.run_dir}"
    )


def format_replay(loader: Any) -> str:
    """Return the number of replayed images, "" without any."""
    replayed = getattr(loader, "replayed", 0)
    if not replayed:
        return ""
    return f" and {replayed * loader.steps:,} replayed ones an epoch ({replayed} in a batch)"


def format_summary(trainer: Any) -> str:
    """Return the last and the best evaluation, the paths of the results, and commands to try next.

    The last line names a result at chance.
    """
    from miniclip.data.shapes import Shapes
    from miniclip.diagnostics.chance import loss_at_chance, recall_at_chance

    lines, at_chance = [], loss_at_chance(trainer.history)
    if trainer.history.evaluations:
        first, last = trainer.history.evaluations[0], trainer.history.evaluations[-1]
        in_best = [r for r in trainer.history.evaluations if r["step"] == trainer.progress.best_step]
        best = in_best[-1] if in_best else last
        records = [("last and best" if in_best else "last", last)] if best is last else [("last", last), ("best", best)]
        at_chance = recall_at_chance(best)
        lines = comparison_with_start(first, best, trainer.val_data)
        lines += [f"{name} (epoch {r['epoch']}): {format_recalls(r, trainer.val_data)}" for name, r in records]
    run = trainer.run_dir
    lines += [
        f"learning curve: {run / 'learning_curve.png'}",
        f"model: {run / 'best' if lines else run / 'last'}",
        f"next: {next_commands(trainer.about.get('model'), run, trainer.config.evaluate_first)}",
    ]
    if isinstance(trainer.train_data, Shapes):
        lines += [
            f"      {format_command('miniclip', 'eval', run, '--task', task, '--data', 'shapes', '--split', 'test')}"
            for task in ("zero-shot", "probe")
        ]
        lines.append(f"      {format_command('miniclip', 'explain', run, 'shapes:7')}")
    if at_chance is not None:
        lines.append(
            f"no better than chance: {at_chance}. After {trainer.step:,} steps the model has not learned anything of "
            "use: train for more epochs (--epochs), and check that captions match images (--check)"
        )
    return "\n".join(lines)
