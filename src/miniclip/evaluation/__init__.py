"""How good a model is: metrics as pure functions, over any model with `encode_image` and `encode_text`."""

from miniclip.evaluation.retrieval import retrieval

__all__ = ["retrieval"]
