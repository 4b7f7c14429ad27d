"""Data of a run, as its directory has saved it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from miniclip.data.skipping import MAX_SKIP_FRACTION

NEEDS_DATA = "{}: does not belong to a run, whose data would be used: add --data, as in `--data photos.csv`"


def data_of_run(checkpoint: str) -> tuple[str, dict[str, Any]]:
    """Return the dataset of the run that a checkpoint belongs to, and its treatment of unreadable images.

    Raises:
        ValueError: it does not belong to a run, or the run was started from Python.
    """
    from miniclip.runs.directory import read_run

    run = Path(checkpoint) if is_run(Path(checkpoint)) else Path(checkpoint).parent
    if not (run / "config.json").is_file() or not is_run(run):
        raise ValueError(NEEDS_DATA.format(checkpoint))
    saved = read_run(run)
    return data_spec_of(str(run), saved), reading_options_of(saved["train"])


def is_run(path: Path) -> bool:
    """Return whether a directory is a run directory with a checkpoint."""
    return (path / "best").exists() or (path / "last").exists()


def data_spec_of(run: str, saved: dict[str, Any]) -> str:
    """Return the dataset spec that a run directory has saved."""
    if "data" not in saved["about"]:
        raise ValueError(
            f"{run} was started from Python and has no path of its data: use Trainer.resume, or add --data"
        )
    return str(saved["about"]["data"])


def reading_options_of(train: dict[str, Any]) -> dict[str, Any]:
    """Return a run's treatment of rows and images that cannot be read."""
    return {
        "on_error": train.get("on_error", "raise"),
        "max_skip_fraction": train.get("max_skip_fraction", MAX_SKIP_FRACTION),
    }
