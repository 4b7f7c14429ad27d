"""Checkpoints on disk: read safely, written atomically."""

from miniclip.checkpoints.files import load_checkpoint, save_checkpoint

__all__ = ["load_checkpoint", "save_checkpoint"]
