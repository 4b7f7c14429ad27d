"""Data of `miniclip eval --against`: the new data, on which fine-tuning gains, and the old data, on which it loses."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

from miniclip.cli.evaluation.measuring import Evaluation
from miniclip.cli.run_data import data_of_run
from miniclip.data import open_data
from miniclip.data.splits import Split
from miniclip.errors import DataError
from miniclip.evaluation import open_labelled


def compared_sets(
    run: str, data: str | None, old_data: str | None, task: str | None, **options: Any
) -> list[Evaluation]:
    """Return the evaluations on the new data, and on the old data if they are given.

    Args:
        run: the fine-tuned model, whose run has the data if `data` is None.
        data: new data.
        old_data: old data, which may end with ":" and a split.
        task: the task on both; None: retrieval for data with captions, zero-shot classification for data with classes.
        **options: those of `Evaluation`.
    """
    split = options.pop("split")
    spec, reading = (data, {}) if data else data_of_run(run)
    sets = [("new data", spec, split, reading)]
    if old_data is not None:
        sets.append(("old data", *spec_and_split(old_data, split), {}))
    evaluations = []
    for label, spec, split, reading in sets:
        chosen = task or task_of(str(spec), split, reading)
        evaluations.append(Evaluation(chosen, run, spec, split, label=label, reading=reading, **options))
    return evaluations


def spec_and_split(text: str, split: str) -> tuple[str, str]:
    """Split "photos.csv:val" into spec and split; without a split at its end, return the given one."""
    spec, _, last = text.rpartition(":")
    if spec and last in get_args(Split) and not Path(text).exists():
        return spec, last
    return text, split


def task_of(spec: str, split: Any, reading: dict[str, Any]) -> str:
    """Return "retrieval" for data with captions, and "zero-shot" for data with classes.

    Raises:
        DataError: the data have neither.
    """
    if spec.startswith(("torchvision:", "shapes:")) or "label=" in spec.rpartition("?")[2]:
        return "zero-shot"
    try:
        open_data(spec, split, **reading)
    except DataError as error:
        try:
            open_labelled(spec, split)
        except (DataError, ValueError, ImportError) as other:
            raise DataError(f"{spec}: neither captions ({error}) nor classes ({other})") from None
        return "zero-shot"
    return "retrieval"
