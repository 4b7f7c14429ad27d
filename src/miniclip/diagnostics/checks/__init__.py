"""Checks before a run, one module per subject."""
