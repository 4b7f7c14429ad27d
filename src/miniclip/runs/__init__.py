"""The run directory: state, checkpoints, history, resume."""
