"""Training: settings, the loop, what happens around it."""

from miniclip.train.callbacks import Callback
from miniclip.train.history import History
from miniclip.train.settings import TrainConfig
from miniclip.train.trainer import Trainer

__all__ = ["Callback", "History", "TrainConfig", "Trainer"]
