"""Plots of a run: the learning curve, the similarity matrix, confusions."""
