"""Plots of a run: learning curve, similarity matrix, confusions."""
