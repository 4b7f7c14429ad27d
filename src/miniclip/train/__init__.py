"""Training: the step, the schedule, the optimizer and the trainer that runs them."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from miniclip.runs.history import History
    from miniclip.train.callbacks import Callback
    from miniclip.train.config import TrainConfig
    from miniclip.train.trainer import Trainer

# Imported on first use, so that an import of `miniclip.train.config` does not import the trainer.
_MODULES = {
    "Callback": "miniclip.train.callbacks",
    "History": "miniclip.runs.history",
    "TrainConfig": "miniclip.train.config",
    "Trainer": "miniclip.train.trainer",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'miniclip.train' has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)


__all__ = ["Callback", "History", "TrainConfig", "Trainer"]
