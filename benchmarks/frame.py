"""What the parts of the benchmark have in common: runs in turns, rows of figures, the machine they were taken on.

A part is a module with `rows(scale)`, which yields a `Row` for each line of the table. It checks that all results
agree before it times them.
"""

import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

OURS = "miniclip"
PACKAGES = ("torch", "torchvision", "open_clip_torch", "transformers", "sentence-transformers", "tokenizers", "pillow")


@dataclass
class Scale:
    """How much is measured.

    Attributes:
        small: sizes that show in a minute that everything works, and whose figures mean nothing.
        rounds: how often everything is timed, in turns.
        device: "cpu" or "cuda".
    """

    small: bool = False
    rounds: int = 7
    device: str = "cpu"


@dataclass
class Row:
    """A line of the table.

    Attributes:
        part: what is measured, such as "encode_image".
        case: with what, such as "batch 8, float32".
        unit: of the values, such as "pictures/s".
        values: by contender, one a round; `miniclip` is one of them.
        reach: by peer, the lead that is asked for: how many times as good `miniclip` shall be at least.
        less: whether less is better, as of seconds and bytes.
        note: what else there is to say, such as how far the results are apart.
        figures: further numbers, for the JSON alone.
    """

    part: str
    case: str
    unit: str
    values: dict[str, list[float]]
    reach: dict[str, float]
    less: bool = False
    note: str = ""
    figures: dict[str, Any] = field(default_factory=dict)

    @property
    def peers(self) -> list[str]:
        return [name for name in self.values if name != OURS]

    def leads(self, peer: str) -> list[float]:
        """How many times as good as a peer, round by round."""
        pairs = zip(self.values[OURS], self.values[peer], strict=True)
        return [theirs / ours if self.less else ours / theirs for ours, theirs in pairs]

    def lead(self, peer: str) -> float:
        """The median of the rounds' leads: what slows a whole round does not count."""
        return statistics.median(self.leads(peer))

    def median(self, name: str) -> float:
        return statistics.median(self.values[name])

    def reached(self) -> bool:
        return all(self.lead(peer) >= times for peer, times in self.reach.items())


def in_turns(
    contenders: dict[str, Callable[[], Any]],
    rounds: int,
    work: float | dict[str, float] = 1.0,
    clock: Callable[[], float] | None = None,
    before: dict[str, Callable[[], Any]] | None = None,
) -> dict[str, list[float]]:
    """Time all of them in each round, each round starting with another one; a first run of each is not counted.

    Args:
        contenders: by name, what to time.
        rounds: how often.
        work: what one call does, in units, for all alike or by name: the values are units a second.
        clock: in seconds; None: the wall's, after the device is done.
        before: by name, what is done before each run of it, and not timed.
    """
    clock, before = clock or settled, before or {}

    def prepared(name: str) -> Callable[[], Any]:
        if name in before:
            before[name]()
        return contenders[name]

    for name in contenders:
        prepared(name)()
    names, values = list(contenders), {name: [] for name in contenders}
    for number in range(rounds):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            call = prepared(name)
            start = clock()
            call()
            done = work[name] if isinstance(work, dict) else work
            values[name].append(done / (clock() - start))
    return values


def settled() -> float:
    """The wall's clock, once the device has done what it was given."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return time.perf_counter()


def agree(results: dict[str, Any], tolerance: float, what: str) -> float:
    """Fail where tensors differ by more than a share of the greatest value; returns the greatest such difference."""
    first, *others = results
    expected = results[first].double()
    worst = 0.0
    for name in others:
        difference = float((results[name].double() - expected).abs().max() / expected.abs().max())
        worst = max(worst, difference)
        if not difference <= tolerance:
            raise SystemExit(f"{what}: {name} and {first} differ by {difference:.1e} of the greatest value")
    return worst


def machine() -> dict[str, Any]:
    """Where it ran, with which versions."""
    about: dict[str, Any] = {"cores": os.cpu_count(), "python": platform.python_version(), "system": platform.system()}
    info = Path("/proc/cpuinfo")
    names = [line for line in info.read_text().splitlines() if "model name" in line] if info.exists() else []
    about["processor"] = names[0].split(":")[1].strip() if names else platform.processor() or platform.machine()
    if hasattr(os, "getloadavg"):
        about["load"] = round(os.getloadavg()[0], 1)
    import torch

    about["cpu_capability"] = torch.backends.cpu.get_cpu_capability()
    if torch.cuda.is_available():
        about["gpu"] = torch.cuda.get_device_name()
    about["versions"] = dict(versions(PACKAGES))
    return about


def versions(packages: Iterable[str]) -> Iterator[tuple[str, str]]:
    for package in packages:
        try:
            yield package, version(package)
        except PackageNotFoundError:
            continue
