"""Differences between the data and settings of a run and those it is resumed with."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from miniclip.data.dataset import ImageCaptionDataset
from miniclip.data.replay import batch_and_steps
from miniclip.runs.progress import Progress, run_length
from miniclip.train.callbacks import Callback, named_callbacks
from miniclip.train.config import TrainConfig
from miniclip.train.schedule import learning_rate
from miniclip.utils.formatting import format_command
from miniclip.utils.option_names import option

Changes = dict[str, tuple[Any, Any]]  # name to (before, now)

LENGTH = ("epochs", "max_steps")  # settings that change the number of steps, hence the schedule of the learning rate

# Settings that change how a run is observed and stored, but not its result. `max_steps` is not one of them: the
# learning rate depends on the number of steps.
NEUTRAL = {
    "about",
    "eval_every",
    "save_every",
    "save_minutes",
    "save_in_background",
    "keep_checkpoints",
    "log_every",
    "num_workers",
    "max_nonfinite_steps",
    "tensorboard",
    "wandb",
}

# Settings whose effect is in a run's state, the parts of its model and the kinds of its moments: a resumed run cannot
# change them.
APPLIED = ("optimizer", "tune_image", "tune_text", "lora_rank", "lora_alpha", "lora_targets")


def changed_settings(before: TrainConfig, now: TrainConfig) -> Changes:
    """Return the settings that differ."""
    old, new = before.to_dict(), now.to_dict()
    return {name: (old[name], value) for name, value in new.items() if old[name] != value}


def changed_data(before: dict[str, Any], now: dict[str, Any]) -> Changes:
    """Return the datasets ("train data", "val data") whose fingerprints differ."""
    return {
        f"{part} data": (describe_data(before.get(part)), describe_data(value))
        for part, value in now.items()
        if before.get(part) != value
    }


def numerics() -> dict[str, Any]:
    """Return torch's settings for the whole process on which the numbers of a run depend."""
    return {
        "torch.get_default_dtype": str(torch.get_default_dtype()),
        "torch.are_deterministic_algorithms_enabled": torch.are_deterministic_algorithms_enabled(),
        "torch.get_float32_matmul_precision": torch.get_float32_matmul_precision(),
    }


def changed_numerics(before: Mapping[str, Any]) -> Changes:
    """Return torch's settings that differ from those of a run, by the function that returns them."""
    return {name: (before[name], value) for name, value in numerics().items() if before.get(name, value) != value}


def changed_callbacks(states: Mapping[str, Any], callbacks: Sequence[Callback]) -> Changes:
    """Return the callbacks whose state a run has, and that are not among `callbacks`."""
    names = {name for name, _ in named_callbacks(callbacks)} if states else set()
    return {f"callback {name}": ("with a state", "missing from callbacks=") for name in states if name not in names}


@dataclasses.dataclass(frozen=True)
class ScheduleChange:
    """Effect of another number of epochs or steps on the learning rate.

    Attributes:
        before: the settings of the run.
        now: the settings that it is resumed with.
        progress: the position of the run.
        data: the training data.
    """

    before: TrainConfig
    now: TrainConfig
    progress: Progress
    data: ImageCaptionDataset

    def __str__(self) -> str:
        (old, old_rate), (new, new_rate) = map(self._length_and_rate, (self.before, self.now))
        return (
            f"the number of steps sets the schedule of the learning rate: after step {self.progress.step:,} the rate "
            f"would be {new_rate:.2g} (schedule of {new:,} steps), not {old_rate:.2g} (schedule of {old:,} steps)"
        )

    def _length_and_rate(self, config: TrainConfig) -> tuple[int, float]:
        """Return the number of steps, and the rate of the next step; 0 after the last."""
        steps, _ = run_length(config, self.progress, max(1, batch_and_steps(self.data, config.batch_size)[1]))
        warmup, step = config.warmup_steps(steps), self.progress.step
        return steps, learning_rate(step, peak=config.lr, warmup=warmup, total=steps) if step < steps else 0.0


def require_same_parts(run_dir: Path, changes: Changes) -> None:
    """Check that the trained parts and the optimizer are those that the run started with.

    Raises:
        ValueError: a setting of `APPLIED` has changed.
    """
    applied = {name: changes[name] for name in APPLIED if name in changes}
    if applied:
        text = "; ".join(f"{name}: started with {before}, now {now}" for name, (before, now) in applied.items())
        again = format_command("miniclip", "train", "--model", run_dir / "last")
        raise ValueError(
            f"{run_dir}: {text}. The trained parts are state of the run, as is the optimizer; to change them, start "
            f"a new run from its weights: `{again}` with these settings"
        )


def require_allowed(
    run_dir: Path, changes: Changes, schedule: ScheduleChange, about: Mapping[str, Any], step: int | None = None
) -> None:
    """Check that nothing that affects the result has changed.

    Args:
        run_dir: the run.
        changes: data, settings and parts that differ.
        schedule: effect of another length.
        about: the run's `about`; the command line can resume it if it has the path of the data.
        step: that of the state, if the user chose it.

    Raises:
        ValueError: something has changed; the message has the command that accepts it.
    """
    affecting = {name: change for name, change in changes.items() if name not in NEUTRAL}
    if not affecting:
        return
    text = "; ".join(f"{name}: started with {before}, now {now}" for name, (before, now) in affecting.items())
    if any(name in affecting for name in LENGTH):
        text += f". {str(schedule).capitalize()}"
    raise ValueError(
        f"{run_dir}: {text}. To resume with these differences, whose result is not that of the original run, "
        f"{accepting_command(run_dir, affecting, about, step)}"
    )


def accepting_command(run_dir: Path, changes: Changes, about: Mapping[str, Any], step: int | None = None) -> str:
    """Return the advice that accepts changes: a command, if the command line can make all of them, else Python."""
    values = {name: now for name, (_, now) in changes.items() if not name.endswith(" data")}
    allow = option("allow_changes", True)
    is_possible = "data" in about and None not in values.values() and values.keys() <= TrainConfig().to_dict().keys()
    if not (allow.startswith("--") and is_possible):
        return f"add {allow}"
    words = [] if step is None else ["--step", str(step)]
    words += ["--data", about["data"]] if len(values) < len(changes) else []
    replay = {name: about[name] for name in ("replay", "replay_share") if name in about and "train data" in changes}
    words += [word for name, value in replay.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    for name, value in values.items():
        flag = name.replace("_", "-")
        words += [f"--{'' if value else 'no-'}{flag}"] if isinstance(value, bool) else [f"--{flag}", str(value)]
    resume = format_command("miniclip", "train", "--resume", run_dir, *words, "--allow-changes")
    advice = f"use `{resume}`"
    if any(name in values for name in LENGTH):
        lengths = [word for name in LENGTH if name in values for word in (f"--{name.replace('_', '-')}", values[name])]
        again = format_command("miniclip", "train", "--model", run_dir / "last", "--data", about["data"], *lengths)
        advice += f"; `{again}` starts a new run from the weights, with a schedule of its own"
    return advice


def describe_data(fingerprint: dict[str, Any] | None) -> str:
    """Return a dataset's fingerprint as text."""
    if fingerprint is None:
        return "(none)"
    share = f", share {fingerprint['share']:g} of {fingerprint['old']} old images" if "share" in fingerprint else ""
    return (
        f"({fingerprint['images']} images, {fingerprint['captions']} captions, digest {fingerprint['sha256']}{share})"
    )
