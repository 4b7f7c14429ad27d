"""Evaluation metrics for any model with `encode_image` and `encode_text`."""

from miniclip.evaluation.retrieval import retrieval

__all__ = ["retrieval"]
