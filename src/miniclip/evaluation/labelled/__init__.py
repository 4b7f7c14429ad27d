"""Labelled datasets: images with one class each."""
