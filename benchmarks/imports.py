"""Time of `from miniclip import load` beside `import torch`: fresh processes, interleaved, medians of the differences.

python -m benchmarks.imports [--runs 10], or with the baselines' imports: python -m benchmarks imports
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

from benchmarks.harness import MINICLIP, Row, Scale, interleaved

STATEMENTS = {
    MINICLIP: "from miniclip import load",  # `import miniclip` by itself imports nothing
    "torch": "import torch",
    "torch + torchvision": "import torch, torchvision",
    "open_clip": "import open_clip",
    "transformers": "from transformers import CLIPModel",
}


def seconds(statement: str) -> float:
    """Return the wall time of a fresh interpreter that runs the statement."""
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", statement], check=True)
    return time.perf_counter() - start


def rows(scale: Scale) -> Iterator[Row]:
    calls = {name: partial(seconds, statement) for name, statement in STATEMENTS.items()}
    if scale.small:  # one process each, without a warm-up
        values = {name: [call() for _ in range(scale.rounds)] for name, call in calls.items()}
    else:
        values = {name: [1 / value for value in rounds] for name, rounds in interleaved(calls, scale.rounds).items()}
    yield Row("import", "in a fresh process", "s", values, {"torch": 1 / 1.1}, lower_is_better=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=10, help="pairs of runs (default 10)")
    runs = parser.parse_args().runs
    for statement in ("import torch", STATEMENTS[MINICLIP]):  # warm-up: the page cache, compiled bytecode
        seconds(statement)
    pairs = [(seconds("import torch"), seconds(STATEMENTS[MINICLIP])) for _ in range(runs)]
    torch, miniclip = (statistics.median(column) for column in zip(*pairs, strict=True))
    difference = statistics.median(b - a for a, b in pairs)
    ratio = statistics.median(b / a for a, b in pairs)
    print(f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, torch {version('torch')}")
    print(
        f"import torch {torch:.2f} s, miniclip {miniclip:.2f} s: {difference:+.2f} s, {ratio:.2f} times ({runs} pairs)"
    )


if __name__ == "__main__":
    main()
