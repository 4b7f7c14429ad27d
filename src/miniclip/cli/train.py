"""`miniclip train`: start a run or take one up, and say what came out."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import os
import tomllib
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, get_type_hints

from miniclip.cli.evaluate import data_of, in_words, rule_of
from miniclip.cli.models import count
from miniclip.cli.parsing import add_command, add_flag
from miniclip.config import preset
from miniclip.runtime import distributed
from miniclip.train.config import TrainConfig
from miniclip.utils.checks import did_you_mean

DATA, PRESET = "shapes", "bert_vit_tiny"
SHAPES_SETTINGS = {
    "epochs": 10,
    "lr": 2e-3,
    "min_crop_area": 1.0,
}  # the defaults on the drawn set: there a crop could lie

EPILOG = """examples:
  miniclip train                                     the drawn set and a tiny model, about a minute on two cores
  miniclip train --data flickr30k --preset bert_vit_b_16 --epochs 55 --run-dir runs/flickr
  miniclip train --data photos.csv                   paths and captions in a table; `miniclip data inspect` looks at it
  miniclip train --config recipe.toml                the same names, as `epochs = 55`; flags win over the file
  miniclip train --data flickr30k --check            look before a long run; warnings exit with 0, errors with 1
  miniclip train --resume runs/flickr                go on where a run was stopped
  miniclip train --data photos --dry-run             what would be used, and the time and memory it would take
  miniclip train --resume runs/flickr --lr 1e-4 --allow-changes         with another setting, as another run
  torchrun --nproc-per-node 4 -m miniclip train …    on four GPUs, or processes
"""


def add(commands: Any) -> None:
    """Add the command; its flags are made from `TrainConfig`."""
    train = add_command(commands, "train", train_command, "train a model and draw its learning curve", EPILOG)
    train.add_argument(
        "--resume", metavar="RUN", help="go on with a run; what is not given comes from it, and what is, it asks about"
    )
    train.add_argument("--allow-changes", action="store_true", help="with --resume: yes, with other data or settings")
    train.add_argument(
        "--step", type=int, metavar="N", help="with --resume: go back to the state of this step (--keep-checkpoints)"
    )
    train.add_argument("--config", metavar="FILE", help="a TOML file with any of the settings below")
    train.add_argument(
        "--dry-run", action="store_true", help="print what would be used and what it would cost; then end"
    )
    add_flag(
        train,
        "data",
        str | None,
        f"a folder, a table, shards (docs/data.md), or shapes, the drawn set (default {DATA})",
    )
    add_flag(train, "preset", str | None, f"the architecture, with fresh weights (default {PRESET})")
    add_flag(train, "model", str | None, "a checkpoint to start from, in place of a preset")
    add_flag(train, "run_dir", str | None, "where to write (default: the next free runs/NAME)")
    train.add_argument(
        "--check",
        action="store_true",
        default=argparse.SUPPRESS,
        help="look at the data, the memory and the model, overfit a few pairs with a copy of it, say what was found, "
        "and stop; exit code 1 where an error was found",
    )
    add_flag(train, "device", str | None, "cpu, cuda, mps (default: the GPU where there is one)")
    settings = train.add_argument_group("settings")
    hints = get_type_hints(TrainConfig)
    for field in dataclasses.fields(TrainConfig):
        default = "" if field.default is None else f" (default {str(field.default).lower()}"
        if field.name in SHAPES_SETTINGS:
            default += f", on {DATA} {SHAPES_SETTINGS[field.name]}"
        default += ")" if default else ""
        add_flag(settings, field.name, hints[field.name], TrainConfig.help(field.name) + default)


def train_command(resume: str | None, config: str | None, check: bool = False, **flags: Any) -> int:
    """`miniclip train`; torchrun makes of it one process a rank."""
    with distributed.process_group(flags.get("device")), printed_once():
        if check:
            return run_check(resume, config, **flags)
        run_training(resume, config, **flags)
    return 0


@contextlib.contextmanager
def printed_once() -> Iterator[None]:
    """Of several ranks, let rank 0 alone print and warn."""
    if distributed.is_main():
        yield
        return
    with Path(os.devnull).open("w") as nowhere, contextlib.redirect_stdout(nowhere), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def run_check(resume: str | None, config: str | None, dry_run: bool = False, **flags: Any) -> int:
    """Look at what a run would train on and with, and stop (so does a dry run); returns the exit code."""
    from miniclip.diagnostics.check import check
    from miniclip.runtime.precision import resolve

    if resume is not None:
        report = taken_up(resume, config, flags).check()
    else:  # without a trainer, which would read all pictures, and stop at the first that it cannot
        import torch

        refuse_resuming(flags)
        given = arguments({**read_toml(config), **flags} if config else flags)
        device = torch.device(given["device"] or ("cuda" if torch.cuda.is_available() else "cpu"))
        settings = dataclasses.replace(given["config"], precision=resolve(given["config"].precision, device))
        report = check(given["model"].to(device), given["train_data"], given["val_data"], settings)
    print(report)
    if report.worst == "error":
        print("mend the errors, then check again")
        return 1
    print("nothing was trained or written; start the run with the same command without --check")
    return 0


def taken_up(run: str, config: str | None, flags: dict[str, Any]) -> Any:
    """A trainer for a run that goes on, with what the command line changes of it."""
    settings = {**read_toml(config), **flags} if config else dict(flags)
    allow_changes, step = settings.pop("allow_changes", False), settings.pop("step", None)
    return resumed(run, settings, allow_changes, step)


def refuse_resuming(flags: dict[str, Any]) -> None:
    """Take out the flags that only a run which is taken up knows.

    Raises:
        ValueError: one of them was given.
    """
    if flags.pop("allow_changes", False) or flags.pop("step", None) is not None:
        raise ValueError("--allow-changes and --step are for --resume RUN")


def run_training(resume: str | None, config: str | None, dry_run: bool = False, **flags: Any) -> None:
    """Start or take up a run, train to the end, and say what came out; or say what it would be."""
    if resume is not None:
        trainer = taken_up(resume, config, flags)
    else:
        refuse_resuming(flags)
        trainer = started({**read_toml(config), **flags} if config else flags)
    if dry_run:
        from miniclip.cli.dry_run import describe

        print(describe(trainer, resume, read_toml(config) if config else {}, flags))
        return
    print(
        f"{trainer.about.get('preset', 'model')}: {count(trainer.model):,} parameters; {trainer.loader.size:,} "
        f"training pictures, batches of {trainer.loader.batch_size}, {trainer.total_steps:,} steps, "
        f"{trainer.config.precision} on {trainer.model.device}{on_ranks()}; writing to {trainer.run_dir}",
        flush=True,
    )
    try:
        trainer.fit()
    except KeyboardInterrupt:
        print(f"stopped at step {trainer.step}; go on with: miniclip train --resume {trainer.run_dir}")
        raise
    print(summary(trainer))


def on_ranks() -> str:
    """How many processes there are, where there are several."""
    return f", {distributed.world_size()} ranks" if distributed.world_size() > 1 else ""


def started(settings: dict[str, Any]) -> Any:
    """A trainer for a new run."""
    import miniclip

    return miniclip.Trainer(**arguments(settings))


def arguments(settings: dict[str, Any]) -> dict[str, Any]:
    """The data and the model of a new run, and all else that its trainer is made from."""
    import miniclip
    from miniclip.data.opening import absolute_spec, spec_name
    from miniclip.runs.directory import next_run_dir, refuse_a_run

    data, preset_name, checkpoint, run_dir, device = (
        settings.pop(name, None) for name in ("data", "preset", "model", "run_dir", "device")
    )
    if preset_name and checkpoint:
        raise ValueError("preset and model: give one of them, fresh weights or a checkpoint to start from")
    data = DATA if data in (None, DATA) else absolute_spec(data)
    config = TrainConfig.from_dict({**SHAPES_SETTINGS, **settings} if data == DATA else settings)
    run_dir = Path(run_dir) if run_dir else next_run_dir(Path("runs") / spec_name(data))
    refuse_a_run(run_dir)  # before minutes of reading
    train_data, val_data = open_both(data, rule_of(dataclasses.asdict(config)))
    preset_name = preset_name or PRESET
    model = miniclip.load(checkpoint) if checkpoint else fresh_model(preset_name, train_data.captions, config)
    about = {"data": data, **({"model": checkpoint} if checkpoint else {"preset": preset_name})}
    what = {"model": model, "train_data": train_data, "val_data": val_data}
    return {**what, "config": config, "run_dir": run_dir, "device": device, "about": about}


def fresh_model(preset_name: str, captions: Sequence[Sequence[str]], config: TrainConfig) -> Any:
    """A preset with fresh weights by the seed, and a tokenizer learned from the captions."""
    import torch

    import miniclip
    from miniclip.hub import fresh

    architecture = preset(preset_name)
    if config.loss == "sigmoid":  # SigLIP's own start: almost every pair is a wrong one
        architecture = dataclasses.replace(architecture, logit_scale=10.0, logit_bias=-10.0)
    flat = [caption for group in captions for caption in group]
    tokenizer = miniclip.Tokenizer.train(flat, architecture.text.vocab_size)
    torch.manual_seed(config.seed)
    return fresh(architecture, tokenizer)


def resumed(run: str, settings: dict[str, Any], allow_changes: bool, step: int | None) -> Any:
    """A trainer for a run that goes on."""
    import miniclip
    from miniclip.data.opening import absolute_spec
    from miniclip.runs.directory import read_run

    device, data = (settings.pop(name, None) for name in ("device", "data"))
    for name in ("preset", "model", "run_dir"):
        if name in settings:
            flag = name.replace("_", "-")
            raise ValueError(f"--{flag} is for a new run; --resume {run} goes on with that run's: leave it out")
    before = read_run(run)
    data = None if data is None else absolute_spec(data)
    both = open_both(data or data_of(run, before), rule_of(before["train"] | settings))
    about = {} if data is None else {"data": data}
    rest = {"allow_changes": allow_changes, "step": step, "device": device, "about": about}
    return miniclip.Trainer.resume(run, *both, settings=settings, **rest)


def open_both(spec: str, rule: dict[str, Any]) -> tuple[Any, Any]:
    """The training and the validation split."""
    from miniclip.data import open_data

    return open_data(spec, "train", **rule), open_data(spec, "val", **rule)


def read_toml(path: str) -> dict[str, Any]:
    """The settings of a TOML file; dashes in names are taken for underscores."""
    try:
        values = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: there is no such file; --config takes a TOML file") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not TOML ({error})") from None
    values = {name.replace("-", "_"): value for name, value in values.items()}
    known = ["data", "preset", "model", "run_dir", "device", *(f.name for f in dataclasses.fields(TrainConfig))]
    for name in values:
        if name not in known:
            raise ValueError(f"{path}: unknown setting {name!r}{did_you_mean(name, known)}")
    return values


def summary(trainer: Any) -> str:
    """What came out, where it is, and what to try next."""
    from miniclip.train.validation import figure_of

    lines = []
    if trainer.history.evaluations:
        best = max(trainer.history.evaluations, key=lambda record: figure_of(record, trainer.config.monitor))
        last = trainer.history.evaluations[-1]
        for name, record in (("last", last), ("best", best)) if best is not last else (("last, and best", last),):
            lines.append(f"{name} (epoch {record['epoch']}): {in_words(record, trainer.val_data)}")
    run = trainer.run_dir
    return "\n".join(
        [
            *lines,
            f"learning curve: {run / 'learning_curve.png'}",
            f"model: {run / 'best' if lines else run / 'last'}",
            f"next: miniclip eval {run}    or, in Python: miniclip.load({str(run)!r})",
        ]
    )
