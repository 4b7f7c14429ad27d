"""What `import miniclip` costs over `import torch`: fresh processes, interleaved, medians of the pairs' differences.

python -m benchmarks.imports [--runs 10]
"""

import argparse
import os
import platform
import statistics
import subprocess
import sys
import time
from importlib.metadata import version


def seconds(statement: str) -> float:
    """Wall time of a fresh interpreter that runs the statement."""
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", statement], check=True)
    return time.perf_counter() - start


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
