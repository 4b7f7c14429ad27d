"""The learning rate as a pure function of the step."""

import math


def learning_rate(step: int, *, peak: float, warmup: int, total: int) -> float:
    """Linear warmup, then half a cosine down to 0 (Loshchilov and Hutter 2017), as CLIP was trained.

    With peak 1, warmup 2 and total 6, steps 0 to 5 take 0.5, 1, 1, 0.85, 0.5, 0.15.

    Args:
        step: 0 .. total - 1.
        peak: the greatest rate.
        warmup: steps in which it rises; step `warmup - 1` has the peak.
        total: steps in all.
    """
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))
