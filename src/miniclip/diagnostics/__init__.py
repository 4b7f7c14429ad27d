"""Checks before a run and rules that watch it."""
