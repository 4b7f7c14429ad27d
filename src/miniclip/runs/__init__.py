"""Run directory: settings, training state, checkpoints, history, resume."""
