"""Encoding images and texts in batches, and zero-shot classification."""
