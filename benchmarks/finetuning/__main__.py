"""Gain, forgetting and cost of each method of fine-tuning; see the package.

Each run happens in a process of its own, with one thread, and is added to `results.jsonl` in the folder; a stopped
command continues from it. The table and the plot are written at the end. `--rates` compares learning rates in place of
that: runs of each method and rate, with scores on the choosing half of the images.
"""

import argparse
import itertools
import json
import multiprocessing
import tempfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch

from benchmarks.finetuning import costs, report
from benchmarks.finetuning.methods import METHODS, tune
from benchmarks.finetuning.starts import OPEN_CLIP, STARTS, start_model
from benchmarks.harness import describe_machine

DATA = Path(__file__).parents[2].parent / "shared" / "data"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=DATA, help="folder of the sets emoji and clipart")
    parser.add_argument("--out", type=Path, default=Path("results/finetuning"), help="folder of all results")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--starts", nargs="+", choices=STARTS, default=list(STARTS))
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--rates", nargs="+", type=float, default=[], help="learning rates to compare")
    parser.add_argument("--only", choices=("table", "costs"), help="one of the two parts")
    parser.add_argument("--small", action="store_true", help="a few steps on Shapes: a check that everything works")
    options = parser.parse_args()
    if options.small:
        with tempfile.TemporaryDirectory() as folder:
            # one start of one old set, and one of several
            options.starts = list(
                {len(about.old): start for start, about in STARTS.items() if start != OPEN_CLIP}.values()
            )
            options.seeds = 1
            run(options, None, Path(folder))
        return
    if options.only != "costs" and not (options.data / "emoji").is_dir():
        print(f"skipped: {options.data} does not hold the sets emoji and clipart; name their folder with --data")
        options.only = "costs"
    run(options, options.data, options.out)


def run(options: argparse.Namespace, data: Path | None, folder: Path) -> None:
    """Measure what the results do not hold yet, and write the table."""
    folder.mkdir(parents=True, exist_ok=True)
    results = folder / "results.jsonl"
    rows = [json.loads(line) for line in results.read_text().splitlines()] if results.exists() else []
    with processes(options.small) as pool:

        def measure(key: dict[str, Any], function: Callable[..., Any], *arguments: Any) -> None:
            if any(key.items() <= row.items() for row in rows):
                return
            rows.append(key | pool.submit(function, *arguments).result())
            with results.open("a") as file:
                file.write(json.dumps(rows[-1]) + "\n")
            print(report.line(rows[-1]), flush=True)

        if options.only != "costs":
            for start in options.starts:
                pool.submit(start_model, start, data, folder).result()
                measure({"start": start, "method": "start", "seed": 0}, tune, start, "start", 0, data, folder)
            for seed, start, method in itertools.product(range(options.seeds), options.starts, options.methods):
                for rate in options.rates:
                    key = {"start": start, "tried": method, "rate": rate, "seed": seed}
                    measure(key, tune, start, method, seed, data, folder, rate)
                if not options.rates:
                    key = {"start": start, "method": method, "seed": seed}
                    measure(key, tune, start, method, seed, data, folder)
        if options.only != "table":
            for name, function in costs.measurements(folder, options.small).items():
                measure({"cost": name}, function)
    report.write(rows, describe_machine(), folder)


def processes(shared: bool) -> ProcessPoolExecutor:
    """Return a pool of one process with one thread: a new one for each call, so that its memory is its own.

    Args:
        shared: keep one process for all calls, whose imports take longer than a small run.
    """
    context, calls = multiprocessing.get_context("spawn"), None if shared else 1
    return ProcessPoolExecutor(1, context, torch.set_num_threads, (1,), max_tasks_per_child=calls)


if __name__ == "__main__":
    main()
