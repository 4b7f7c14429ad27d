"""Callbacks of a training run: logging, plots, progress. Derive from `Callback` to write your own."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from miniclip.data.dataset import ImageCaptionDataset
from miniclip.evaluation.retrieval import Embeddings
from miniclip.inference.model import CLIPModel
from miniclip.runs.history import History, Record
from miniclip.train.config import TrainConfig


class TrainerProtocol(Protocol):
    """The part of a trainer that callbacks use.

    Attributes:
        model: the model in training, with the weights of the last step.
        config: the settings.
        run_dir: the run directory.
        about: facts about the run that the user gave, JSON values.
        train_data: the training dataset.
        val_data: the validation dataset, or None.
        train_captions: number of captions in the training dataset.
        truncated_captions: number of them that are longer than the context.
        embedded: embeddings of the validation dataset at the last evaluation; None before the first.
        total_steps: number of steps of the whole run.
        epochs: number of epochs of the whole run.
    """

    model: CLIPModel
    config: TrainConfig
    run_dir: Path
    about: dict[str, Any]
    train_data: ImageCaptionDataset
    val_data: ImageCaptionDataset | None
    train_captions: int
    truncated_captions: int
    embedded: Embeddings | None
    total_steps: int
    epochs: int

    @property
    def history(self) -> History:
        """All records so far."""

    @property
    def step(self) -> int:
        """Number of completed steps."""

    @property
    def epoch(self) -> int:
        """Number of completed epochs."""


class Callback:
    """Base class of callbacks: every method does nothing. Records are shared between callbacks: do not edit them.

    Attributes:
        optional: whether the run continues if a method raises. True for callbacks that only display the run.
        failed: name of the first method that raised, if the callback is optional.
    """

    optional = False
    failed: str | None = None

    def on_start(self, trainer: TrainerProtocol) -> None:
        """Called before the first step of a new or resumed run."""

    def on_step(self, trainer: TrainerProtocol, record: Record) -> None:
        """Called for each step, in order, with a delay: metrics are read every `log_every` steps."""

    def on_skip(self, trainer: TrainerProtocol, record: Record) -> None:
        """Called for each non-finite step, which changed nothing; `record["skipped"]` is the cause."""

    def on_evaluate(self, trainer: TrainerProtocol, record: Record) -> None:
        """Called after each evaluation; `trainer.history` contains its record."""

    def after_evaluate(self, trainer: TrainerProtocol, record: Record) -> None:
        """Called after every callback's `on_evaluate`, when the plots of the evaluation are on disk."""

    def on_save(self, trainer: TrainerProtocol) -> None:
        """Called before a training state is written."""

    def on_end(self, trainer: TrainerProtocol) -> None:
        """Called after the last step, also if the run is interrupted or fails."""


def call(callbacks: Sequence[Callback], event: str, *arguments: Any) -> None:
    """Call one method of every callback. An optional callback that raises is reported once, and the run continues."""
    for callback in callbacks:
        if callback.failed == "on_start":
            continue
        try:
            getattr(callback, event)(*arguments)
        except Exception as error:
            if not callback.optional:
                raise
            if callback.failed is None:
                callback.failed = event
                name, reason = type(callback).__name__, " ".join(str(error).split())
                warnings.warn(
                    f"{name}: {type(error).__name__}: {reason}; the run continues, and metrics.jsonl is complete",
                    stacklevel=2,
                )
