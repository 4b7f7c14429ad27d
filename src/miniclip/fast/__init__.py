"""Faster forms of the model's layers with the same numbers: `accelerate` puts them in, `plain` takes them out."""

from miniclip.fast.seam import accelerate, plain, plain_forms

__all__ = ["accelerate", "plain", "plain_forms"]
