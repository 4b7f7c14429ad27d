"""Which precision a device multiplies fastest in, by a short trial: no flag says it for every processor."""

from __future__ import annotations

import time
from typing import Literal

import torch
import torch.nn.functional as F

from miniclip.utils.checks import did_you_mean

Precision = Literal["auto", "float32", "bfloat16"]
DTYPES = ("float32", "bfloat16", "float16")  # of weights, by name
FASTER = 1.2  # bfloat16 is taken where it is at least so many times as fast: casting eats a smaller lead


def resolve(precision: Precision, device: torch.device) -> Precision:
    """`auto` to what this device does best; anything else stays."""
    if precision != "auto":
        return precision
    if device.type == "cuda":
        return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float32"
    if device.type == "cpu":
        return "bfloat16" if _seconds(torch.float32) > FASTER * _seconds(torch.bfloat16) else "float32"
    return "float32"


def dtype_named(name: str, device: torch.device) -> torch.dtype:
    """The type of a name, "auto" being what this device does best.

    Raises:
        ValueError: it is neither "auto" nor the name of a type of weights.
    """
    if name not in ("auto", *DTYPES):
        raise ValueError(f"unknown dtype {name!r}{did_you_mean(name, ('auto', *DTYPES))}")
    found: torch.dtype = getattr(torch, resolve("auto", device) if name == "auto" else name)
    return found


def _seconds(dtype: torch.dtype) -> float:
    """The best of several linear layers of the size that a small model has; some milliseconds in all.

    The best, since another process that takes a core for a moment must not decide.
    """
    x, weight = torch.ones(1024, 256, dtype=dtype), torch.ones(1024, 256, dtype=dtype)
    best = float("inf")
    for _ in range(10):
        start = time.perf_counter()
        F.linear(x, weight)
        best = min(best, time.perf_counter() - start)
    return best
