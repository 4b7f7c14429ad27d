"""Checkpoint formats: files and other libraries' layouts."""
