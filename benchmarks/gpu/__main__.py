"""The command `python -m benchmarks gpu`, described in the package."""

import argparse
import importlib
import json
import subprocess
import sys
import time
from pathlib import Path

import benchmarks.gpu
from benchmarks.gpu.table import MACHINE, ROWS, GpuRow, Session, append, write_tables

# shares of the seconds; a part that ends early leaves its rest to the others
PARTS = {"peak": 15, "losses": 50, "steps": 165, "encoding": 40, "whole_run": 70}
OPTIONAL = {"candidates": 240}  # settings of the step that could be faster, only if named
START_SECONDS = 5  # to end a process that is late


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks gpu",
        description=benchmarks.gpu.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)} (default), {', '.join(OPTIONAL)}"
    )
    parser.add_argument("--small", action="store_true", help="small sizes, one round: a check that everything works")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--seconds", type=float, default=340.0, help="time for all parts together")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--out", type=Path, default=Path("gpu-results"), help="folder for the results")
    parser.add_argument("--deadline", type=float, help=argparse.SUPPRESS)  # in a part's process: its seconds
    options = parser.parse_args(arguments)
    shares = {**PARTS, **OPTIONAL}
    if unknown := [part for part in options.parts if part not in shares]:
        parser.error(f"unknown part {unknown[0]!r}; expected one of {', '.join(shares)}")
    rounds = options.rounds or (1 if options.small else 5)
    if options.deadline is not None:
        measure(options.parts[0], options, options.deadline, rounds)
        return
    import torch

    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("torch finds no GPU here; --small --device cpu checks that everything works")
    options.out.mkdir(parents=True, exist_ok=True)
    for name in (ROWS, MACHINE):
        (options.out / name).unlink(missing_ok=True)
    run_parts(options.parts or list(PARTS), shares, options, rounds)


def measure(part: str, options: argparse.Namespace, seconds: float, rounds: int) -> None:
    """Measure a part in this process."""
    session = Session(options.small, options.device, rounds, time.monotonic() + seconds, options.out)
    importlib.import_module(f"benchmarks.gpu.{part}").rows(session)


def run_parts(parts: list[str], shares: dict[str, int], options: argparse.Namespace, rounds: int) -> None:
    """Run the parts one after the other, in processes, within the seconds; write the tables after each."""
    end = time.monotonic() + options.seconds
    for number, part in enumerate(parts):
        left = end - time.monotonic()
        seconds = left * shares[part] / sum(shares[other] for other in parts[number:])
        if options.small and part != "peak":  # in this process, since an import takes longer than the part
            measure(part, options, seconds, rounds)
            continue
        command = [sys.executable, "-m", "benchmarks", "gpu", part, "--out", str(options.out), "--rounds", str(rounds)]
        command += [
            "--device",
            options.device,
            "--deadline",
            str(seconds - START_SECONDS),
            *["--small"] * options.small,
        ]
        timeout = None if options.small else max(1.0, min(left, seconds + START_SECONDS))
        try:
            status: int | str = subprocess.run(command, timeout=timeout).returncode
        except subprocess.TimeoutExpired:
            status = "it took too long"
        if status:
            append(options.out, GpuRow(part, "the rest of this part", skipped=f"its process ended: {status}"))
        write_tables(options.out)
    write_tables(options.out)
    print((options.out / "gpu.md").read_text(encoding="utf-8"))
    rows = [json.loads(line) for line in (options.out / ROWS).read_text(encoding="utf-8").splitlines()]
    if failed := [f"{row['part']}: {row['case']}: {row['skipped']}" for row in rows if row["skipped"]]:
        print(f"not measured: {'; '.join(failed)}")
        if options.small:  # a check that everything works
            raise SystemExit(1)
