"""The losses: `reference.py` is the specification."""

from miniclip.losses.reference import contrastive_loss, sigmoid_loss

__all__ = ["contrastive_loss", "sigmoid_loss"]
