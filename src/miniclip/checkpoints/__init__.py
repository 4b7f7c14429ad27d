"""Checkpoints on disk: reading and converting any project's layout safely, and writing atomically."""

from miniclip.checkpoints.native import save_checkpoint
from miniclip.checkpoints.reading import CheckpointReader

__all__ = ["CheckpointReader", "save_checkpoint"]
