"""Callbacks of a training run: logging, plots, progress. Derive from `Callback` to write your own."""

from __future__ import annotations

import json
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
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
        changes: data and settings of a resumed run that differ from before, each with both values.
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
    changes: dict[str, tuple[Any, Any]]
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

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs of this callback, JSON values; every training state holds it."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take the values that `state_dict` returned when the resumed state was saved; called before `on_start`."""


def callback_states(callbacks: Sequence[Callback]) -> dict[str, Any]:
    """Return copies of the states of the callbacks that have one, by the names of `named_callbacks`.

    Raises:
        TypeError: a state holds something else than JSON values.
    """
    states = {name: state for name, callback in named_callbacks(callbacks) if (state := callback.state_dict())}
    for name, state in states.items():
        try:
            states[name] = json.loads(json.dumps(state))  # the callback may change its own while a thread writes
        except (TypeError, ValueError) as error:
            raise TypeError(f"{name}.state_dict() returns {state!r}; expected JSON values ({error})") from None
    return states


def restore_callbacks(callbacks: Sequence[Callback], states: Mapping[str, Any]) -> None:
    """Give each callback its state of a resumed run."""
    for name, callback in named_callbacks(callbacks):
        if name in states:
            callback.load_state_dict(states[name])


def named_callbacks(callbacks: Sequence[Callback]) -> Iterator[tuple[str, Callback]]:
    """Yield callbacks with the names of their classes; the second of a class is "Name 2"."""
    counts = Counter[str]()
    for callback in callbacks:
        name = type(callback).__name__
        counts[name] += 1
        yield (name if counts[name] == 1 else f"{name} {counts[name]}"), callback


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
