"""Loggers of a run: the console, TensorBoard, Weights & Biases."""
