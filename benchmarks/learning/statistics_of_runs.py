"""Means, spreads and the p-value of a difference."""

import statistics
from collections.abc import Sequence

import numpy as np


def mean_and_spread(values: Sequence[float]) -> tuple[float, float]:
    """Return the mean and the sample standard deviation; 0 for one value."""
    return statistics.mean(values), statistics.stdev(values) if len(values) > 1 else 0.0


def p_value(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Return the two-sided p-value of Welch's t-test; None with fewer than two values, or without any spread."""
    from scipy.stats import ttest_ind

    if min(len(first), len(second)) < 2 or not (np.ptp(first) or np.ptp(second)):
        return None
    return float(ttest_ind(first, second, equal_var=False).pvalue)


def time_to_reach(curves: Sequence[Sequence[tuple[float, float]]], figure: float) -> float | None:
    """Return the seconds after which the mean of curves reaches a figure, by linear interpolation; None: never.

    Args:
        curves: one a seed, of points (seconds, recall); the curves start at (0, 0).
        figure: the recall.
    """
    end = min(curve[-1][0] for curve in curves)
    grid = np.linspace(0, end, 1001)
    paths = [np.interp(grid, [0, *(s for s, _ in curve)], [0, *(r for _, r in curve)]) for curve in curves]
    reached = np.mean(paths, axis=0) >= figure
    return float(grid[int(reached.argmax())]) if reached.any() else None
