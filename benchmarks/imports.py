"""What `import miniclip` costs over `import torch`: fresh processes, interleaved, medians of the pairs' differences.

python -m benchmarks.imports [--runs 10], or with the peers' imports: python -m benchmarks imports
"""

import argparse
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from importlib.metadata import version

from benchmarks.frame import OURS, Row, Scale, in_turns

STATEMENTS = {
    OURS: "import miniclip",
    "torch": "import torch",
    "torch + torchvision": "import torch, torchvision",
    "open_clip": "import open_clip",
    "transformers": "from transformers import CLIPModel",
}


def seconds(statement: str) -> float:
    """Wall time of a fresh interpreter that runs the statement."""
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", statement], check=True)
    return time.perf_counter() - start


def rows(scale: Scale) -> Iterator[Row]:
    calls = {name: partial(seconds, statement) for name, statement in STATEMENTS.items()}
    runs = in_turns(calls, scale.rounds)  # a second
    values = {name: [1 / value for value in found] for name, found in runs.items()}
    yield Row("import", "in a fresh process", "s", values, {"torch": 1 / 1.1}, less=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=10, help="pairs of runs (default 10)")
    runs = parser.parse_args().runs
    for statement in ("import torch", "import miniclip"):  # files into the page cache, bytecode onto the disk
        seconds(statement)
    pairs = [(seconds("import torch"), seconds("import miniclip")) for _ in range(runs)]
    torch, miniclip = (statistics.median(column) for column in zip(*pairs, strict=True))
    over = statistics.median(b - a for a, b in pairs)
    ratio = statistics.median(b / a for a, b in pairs)
    print(f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, torch {version('torch')}")
    print(f"import torch {torch:.2f} s, miniclip {miniclip:.2f} s: {over:+.2f} s, {ratio:.2f} times ({runs} pairs)")


if __name__ == "__main__":
    main()
