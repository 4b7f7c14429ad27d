"""The learning rate as a function of the step."""

import math


def learning_rate(step: int, *, peak: float, warmup: int, total: int) -> float:
    """Return the rate of a step: linear warmup, then a half cosine to 0 (Loshchilov and Hutter 2017), as in CLIP.

    With peak 1, warmup 2 and total 6, steps 0 to 5 take 0.5, 1, 1, 0.85, 0.5, 0.15.

    Args:
        step: in 0..total - 1.
        peak: the maximum rate, reached at step `warmup - 1`.
        warmup: number of warmup steps.
        total: number of steps.
    """
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))
