"""Shared parts of the benchmarks: interleaved timing, rows of the table, the description of the machine.

A part is a module with `rows(scale)`, which yields a `Row` for each line of the table. It compares the results of all
implementations before it times them.
"""

import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

MINICLIP = "miniclip"
PACKAGES = ("torch", "torchvision", "open_clip_torch", "transformers", "sentence-transformers", "tokenizers", "pillow")


@dataclass
class Scale:
    """Size of a benchmark.

    Attributes:
        small: use sizes that take a minute, to check that everything works; their numbers mean nothing.
        rounds: number of timed, interleaved rounds.
        device: "cpu" or "cuda".
    """

    small: bool = False
    rounds: int = 7
    device: str = "cpu"


@dataclass
class Row:
    """A line of the table.

    Attributes:
        part: the function that is measured, such as "encode_image".
        case: its inputs, such as "batch 8, float32".
        unit: of the values, such as "images/s".
        values: by implementation, one value a round; `miniclip` is one of them.
        targets: by baseline, the smallest speedup that counts as reached.
        lower_is_better: True for seconds and bytes.
        note: further information, such as how far the results differ.
    """

    part: str
    case: str
    unit: str
    values: dict[str, list[float]]
    targets: dict[str, float]
    lower_is_better: bool = False
    note: str = ""

    @property
    def baselines(self) -> list[str]:
        return [name for name in self.values if name != MINICLIP]

    def speedups(self, baseline: str) -> list[float]:
        """Return how many times as good as a baseline miniclip is, round by round."""
        pairs = zip(self.values[MINICLIP], self.values[baseline], strict=True)
        return [other / own if self.lower_is_better else own / other for own, other in pairs]

    def speedup(self, baseline: str) -> float:
        """Return the median of the rounds' speedups: a slowdown of a whole round cancels out."""
        return statistics.median(self.speedups(baseline))

    def median(self, name: str) -> float:
        return statistics.median(self.values[name])

    def reached(self) -> bool:
        """Return whether every target is reached."""
        return all(self.speedup(baseline) >= target for baseline, target in self.targets.items())


def interleaved(
    calls: dict[str, Callable[[], Any]],
    rounds: int,
    work: float | dict[str, float] = 1.0,
    clock: Callable[[], float] | None = None,
    setups: dict[str, Callable[[], Any]] | None = None,
) -> dict[str, list[float]]:
    """Time every call once a round, and start each round with another one; a warm-up call is not counted.

    Args:
        calls: by name.
        rounds: number of rounds.
        work: units of work of one call, for all alike or by name.
        clock: in seconds; None: wall time, after the device is done.
        setups: by name, a function that runs before each call and is not timed.

    Returns:
        Units per second, by name, one value a round.
    """
    clock, setups = clock or synchronized_clock, setups or {}
    names, values = list(calls), {name: [] for name in calls}
    for name in names:
        setups.get(name, lambda: None)()
        calls[name]()
    for number in range(rounds):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            setups.get(name, lambda: None)()
            start = clock()
            calls[name]()
            units = work[name] if isinstance(work, dict) else work
            values[name].append(units / (clock() - start))
    return values


def synchronized_clock() -> float:
    """Return the wall time in seconds, after the device has finished its work."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return time.perf_counter()


def require_agreement(results: dict[str, Any], tolerance: float, what: str) -> float:
    """Exit if tensors differ from the first one by more than the tolerance.

    Args:
        results: by implementation, tensors of one shape.
        tolerance: relative to the largest magnitude of the first tensor.
        what: name of the result, for the message.

    Returns:
        The largest such difference.
    """
    first, *others = results
    expected = results[first].double()
    largest = 0.0
    for name in others:
        difference = float((results[name].double() - expected).abs().max() / expected.abs().max())
        largest = max(largest, difference)
        if not difference <= tolerance:
            raise SystemExit(f"{what}: {name} and {first} differ by {difference:.1e} of the largest value")
    return largest


def describe_machine() -> dict[str, Any]:
    """Return the hardware and the versions of the packages."""
    machine: dict[str, Any] = {"cores": os.cpu_count(), "python": platform.python_version()}
    machine["system"] = platform.system()
    info = Path("/proc/cpuinfo")
    names = [line for line in info.read_text().splitlines() if "model name" in line] if info.exists() else []
    machine["processor"] = names[0].split(":")[1].strip() if names else platform.processor() or platform.machine()
    if hasattr(os, "getloadavg"):
        machine["load"] = round(os.getloadavg()[0], 1)
    import torch

    machine["cpu_capability"] = torch.backends.cpu.get_cpu_capability()
    if torch.cuda.is_available():
        machine["gpu"] = torch.cuda.get_device_name()
    machine["versions"] = dict(package_versions(PACKAGES))
    return machine


def package_versions(packages: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Yield name and version of the packages that are installed."""
    for package in packages:
        try:
            yield package, version(package)
        except PackageNotFoundError:
            continue
