"""Free memory of a device, of the machine and of the container."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch

DEFAULT_BYTES = 4 << 30  # default for a machine that does not report its memory


def free_bytes(device: torch.device) -> int:
    """Memory of a device that this process can still allocate."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        return int(torch.cuda.mem_get_info(device)[0])
    return available_bytes()


def available_bytes() -> int:
    """Memory of the machine, or of its container, that this process can still allocate.

    Without `/proc/meminfo`, half of the installed memory; if that is unknown too, `DEFAULT_BYTES`.
    """
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
        used = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, StopIteration):
        try:
            return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
        except (AttributeError, ValueError, OSError):
            return DEFAULT_BYTES
    return max(0, min(free, _container_limit() - used))


def _container_limit() -> int:
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):  # cgroup v2 and v1
        try:
            return int(Path(path).read_text(encoding="ascii"))
        except (OSError, ValueError):  # no such file, or "max"
            continue
    return sys.maxsize
