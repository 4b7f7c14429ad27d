"""The processor's maker, CPU cores that this process may use, and those that other programs use meanwhile."""

from __future__ import annotations

import functools
import os
import platform
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from miniclip.runtime import distributed

CPU_INFO = Path("/proc/cpuinfo")  # Linux
MIN_SECONDS = 5.0  # between two values: each takes milliseconds, and CPU time is counted in hundredths of a second


@functools.cache
def is_intel() -> bool:
    """Whether the processor is one of Intel's; False if the system does not name its maker."""
    try:
        return "GenuineIntel" in CPU_INFO.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return "GenuineIntel" in platform.processor()  # Windows


def available_cores() -> int:
    """Return the number of CPU cores of this process: its share among the ranks of the machine."""
    cores = os.cpu_count() or 1
    with suppress(AttributeError):  # Linux only; containers and schedulers grant fewer cores than the machine has
        cores = len(os.sched_getaffinity(0))
    return max(1, int(min(cores, _container_limit())) // distributed.local_world_size())


def _container_limit() -> float:
    """Return the CPU time that the container may use per second: `docker run --cpus`."""
    with suppress(OSError, ValueError):  # no such file, or "max"
        limit, period = Path("/sys/fs/cgroup/cpu.max").read_text(encoding="ascii").split()  # cgroup v2
        return int(limit) / int(period)
    with suppress(OSError, ValueError, ZeroDivisionError):
        folder = Path("/sys/fs/cgroup/cpu")  # cgroup v1; -1: no limit
        limit, period = ((folder / f"cpu.cfs_{name}_us").read_text(encoding="ascii") for name in ("quota", "period"))
        return int(limit) / int(period) if int(limit) > 0 else float("inf")
    return float("inf")


class OtherPrograms:
    """Measure of the CPU cores that other programs use.

    It is the CPU time of this process's cores, without that of this process, of its children, and of the other ranks.
    """

    def __init__(self) -> None:
        self._start = self._now()

    def cores(self) -> float | None:
        """Return the mean number of cores that other programs have used since the last value was returned.

        Returns:
            A number from 0. None within 5 seconds of the last value, and if the system has no `/proc`. None in a
            container with a limit on its CPU time too: programs on the machine's other cores do not affect it.
        """
        if self._start is None or time.monotonic() - self._start[0] < MIN_SECONDS or (now := self._now()) is None:
            return None
        (start, total, own), self._start = self._start, now
        return max(0.0, (now[1] - total) - (now[2] - own)) / (now[0] - start)

    @staticmethod
    def _now() -> tuple[float, float, float] | None:
        """Return the time, and the CPU seconds of all programs and of this one; None if they cannot be compared."""
        try:
            if _container_limit() < len(os.sched_getaffinity(0)):
                return None
            tick = os.sysconf("SC_CLK_TCK")
            return time.monotonic(), _total_ticks() / tick, _own_ticks() / tick
        except (OSError, ValueError, AttributeError):
            return None


def _total_ticks() -> int:
    """Return the CPU time of all programs on the cores of this process, also that of other virtual machines."""
    names = {f"cpu{number}" for number in os.sched_getaffinity(0)}
    total = 0
    for line in Path("/proc/stat").read_text(encoding="ascii").splitlines():
        name, *ticks = line.split()
        if name in names:
            user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, ticks[:8])
            total += user + nice + system + irq + softirq + steal
    return total


def _own_ticks() -> int:
    """Return the CPU time of this process and its descendants; with several ranks, of all that their parent started."""
    processes = dict(_processes())
    own = {os.getppid() if distributed.local_world_size() > 1 else os.getpid()}
    size = 0
    while size < len(own):
        size = len(own)
        own |= {process for process, (parent, _) in processes.items() if parent in own}
    return sum(processes[process][1] for process in own if process in processes)


def _processes() -> Iterator[tuple[int, tuple[int, int]]]:
    """Yield each process's id, its parent, and its CPU time with that of its ended children."""
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal():
            with suppress(OSError):  # it has ended
                fields = (folder / "stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
                yield int(folder.name), (int(fields[1]), sum(map(int, fields[11:15])))
