"""Checkpoints on disk: whoever's are read, safely, and ours and theirs are written, atomically."""

from miniclip.checkpoints.native import save_checkpoint
from miniclip.checkpoints.reading import CheckpointReader

__all__ = ["CheckpointReader", "save_checkpoint"]
