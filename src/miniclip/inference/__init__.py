"""Inference: encode images and texts in batches, classify without training."""
