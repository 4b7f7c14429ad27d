"""Interface of a system: steps of training, and an encoder that can be scored."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any, NamedTuple, Protocol

import torch

from benchmarks.learning.sets import Pictures

Settings = Mapping[str, Any]


class System(Protocol):
    """A model in training.

    Attributes:
        batch_size: pairs of a step.
        facts: values for the record of a run, such as the precision.
    """

    batch_size: int
    facts: dict[str, Any]

    def batches(self) -> Iterator[Any]:
        """Yield batches without end."""

    def step(self, batch: Any, progress: float) -> None:
        """Train on a batch; `progress` is the consumed part of the budget, which sets the learning rate."""

    def warm_up(self) -> None:
        """Make some steps, so that compilation and first allocations are done, and undo them."""

    def encoder(self) -> AbstractContextManager[Any]:
        """Context of a model with `encode_image` and `encode_text`, in evaluation mode."""


class Start(NamedTuple):
    """Arguments of a system."""

    train: Pictures
    settings: Settings
    seed: int
    device: torch.device


def build(name: str, start: Start) -> System:
    """Return the named system with fresh weights."""
    return builders()[name](start)


def builders() -> dict[str, Callable[[Start], System]]:
    from benchmarks.learning.miniclip_system import MiniclipSystem
    from benchmarks.learning.open_clip_system import OpenClipSystem

    return {"miniclip": MiniclipSystem, "open_clip": OpenClipSystem}
