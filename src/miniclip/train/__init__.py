"""Training: the step, the schedule, the optimizer and the trainer that runs them."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from miniclip.runs.history import History
    from miniclip.train.callbacks import Callback
    from miniclip.train.config import TrainConfig
    from miniclip.train.trainer import Trainer

# Imported on first use: `miniclip.train.config` alone needs no trainer, and modules below the trainer import it.
_HOMES = {
    "Callback": "miniclip.train.callbacks",
    "History": "miniclip.runs.history",
    "TrainConfig": "miniclip.train.config",
    "Trainer": "miniclip.train.trainer",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'miniclip.train' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


__all__ = ["Callback", "History", "TrainConfig", "Trainer"]
