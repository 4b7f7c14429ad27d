"""Selection of what TensorBoard and Weights & Biases receive: steps, scalars and plots."""

from __future__ import annotations

from pathlib import Path

from miniclip.plots.callbacks import EVALUATION_PLOTS
from miniclip.runs.history import Record
from miniclip.train.callbacks import TrainerProtocol

POSITION = ("step", "epoch")  # keys of a record that are not metrics


def is_logged(trainer: TrainerProtocol, record: Record) -> bool:
    """Return whether a step is logged: the first, the last and every `log_every`-th. `metrics.jsonl` has all steps."""
    step: int = record["step"]
    return step % trainer.config.log_every == 0 or step in (1, trainer.total_steps)


def scalars(record: Record) -> dict[str, float]:
    """Return the numbers of a record by name; nested names are joined, as in `text_to_image/R@1`."""
    result: dict[str, float] = {}
    for name, value in record.items():
        if isinstance(value, dict):
            result |= {f"{name}/{key}": number for key, number in scalars(value).items()}
        elif isinstance(value, int | float) and name not in POSITION:
            result[name] = value
    return result


def plot_paths(trainer: TrainerProtocol) -> list[Path]:
    """Return the paths of the evaluation plots in the run directory."""
    return [path for name in EVALUATION_PLOTS if (path := trainer.run_dir / name).exists()]
