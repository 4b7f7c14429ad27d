"""The machine, and its speed: matrix products in bf16, float32 and TF32, and copies on the device."""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch

from benchmarks.gpu.table import MACHINE, PEAK, GpuRow, Session
from benchmarks.harness import MINICLIP, describe_machine, synchronized_clock


def rows(session: Session) -> None:
    """Write the machine and the rows."""
    machine = {**describe_machine(), "time": time.strftime("%Y-%m-%d", time.gmtime())}
    if torch.cuda.is_available():
        machine["gpu_memory_gib"] = round(torch.cuda.get_device_properties(0).total_memory / 2**30, 1)
        machine["cuda"] = torch.version.cuda
    (session.folder / MACHINE).write_text(json.dumps(machine, indent=1) + "\n", encoding="utf-8")
    side = 256 if session.small else 8192
    for name, dtype, tf32 in (
        (PEAK, torch.bfloat16, False),
        ("matrix product in float32", torch.float32, False),
        ("matrix product in TF32", torch.float32, True),
    ):
        session.measure(
            name, f"{side:,} x {side:,} of normal numbers", partial(_products, session, side, dtype, tf32), 2
        )
    session.measure("copy on the device", "read and written", partial(_copies, session), 2)


def _products(session: Session, side: int, dtype: torch.dtype, tf32: bool, row: GpuRow) -> None:
    a, b = (torch.randn(side, side, device=session.device).to(dtype) for _ in range(2))  # zeros would be faster
    row.unit = "TFLOP/s"
    with allow_tf32(tf32):
        row.values[MINICLIP] = [2 * side**3 / 1e12 / seconds for seconds in _times(lambda: a @ b, session)]


def _copies(session: Session, row: GpuRow) -> None:
    size = (1 << 20) if session.small else (4 << 30)
    a, b = (torch.empty(size, dtype=torch.uint8, device=session.device) for _ in range(2))
    row.unit = "TB/s"
    row.values[MINICLIP] = [2 * size / 1e12 / seconds for seconds in _times(lambda: b.copy_(a), session)]


def _times(call: Callable[[], Any], session: Session) -> list[float]:
    """Seconds of a call, each the mean of ten."""
    repeats = 1 if session.small else 10
    call()
    seconds = []
    for _ in range(session.rounds):
        start = synchronized_clock()
        for _ in range(repeats):
            call()
        seconds.append((synchronized_clock() - start) / repeats)
    return seconds


@contextmanager
def allow_tf32(allowed: bool) -> Iterator[None]:
    """Context in which float32 matrix products may use TF32, or not."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = allowed
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before
