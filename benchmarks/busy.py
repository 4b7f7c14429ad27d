"""Speed of training beside busy programs, for several numbers of threads and ways to wait.

python -m benchmarks.busy [--busy 0 1 2] [--rounds 3] [--seconds 5]

The threads of an operation wait for each other at its end, and by default they spin while they wait. If another program
computes on one of their cores, all of them wait for the thread on that core. `--busy` is the number of cores that other
programs want: 0.5 is one program that computes half of the time. Each figure comes from a process of its own, since the
settings are read when torch is loaded. Rounds are interleaved, figures are medians over them. Linux only.
"""

import argparse
import itertools
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from miniclip.cli.running import SPIN_COUNT, WAITING

PERIOD = 0.02  # seconds; a busy program computes for a part of each
PRESET, BATCH = "bert_vit_tiny", 256


def settings() -> dict[str, dict[str, str]]:
    """Return environment variables by the name of their row."""
    fewer = {f"OMP_NUM_THREADS={cores() - 1}": {"OMP_NUM_THREADS": str(cores() - 1)}} if cores() > 1 else {}
    spin_count, wait_policy = WAITING
    return {
        "torch's default": {},
        f"{spin_count}={SPIN_COUNT}, as `miniclip`": {spin_count: SPIN_COUNT},
        f"{wait_policy}=passive": {wait_policy: "passive"},
        **fewer,
    }


def cores() -> int:
    return len(os.sched_getaffinity(0))


@contextmanager
def busy_programs(load: float) -> Iterator[None]:
    """Run programs that use `load` cores."""
    command = [sys.executable, "-c", "import sys; from benchmarks.busy import compute; compute(float(sys.argv[1]))"]
    shares = [1.0] * int(load) + ([load % 1] if load % 1 else [])
    programs = [subprocess.Popen([*command, str(share)]) for share in shares]
    try:
        yield
    finally:
        for program in programs:
            program.kill()
            program.wait()


def compute(share: float) -> None:
    """Compute for a share of the time, without end."""
    while True:
        start = time.perf_counter()
        while time.perf_counter() - start < share * PERIOD:
            pass
        time.sleep((1 - share) * PERIOD)


def training_step(folder: Path) -> Callable[[], int]:
    """Return a function that makes a training step, with its batch, and returns the number of pairs."""
    from benchmarks.saving import batches, trainer_of

    trainer = trainer_of(PRESET, BATCH, folder / "run")
    source = batches(trainer)

    def step() -> int:
        trainer.train_step(next(source))
        trainer.log()
        return BATCH

    return step


def measure(seconds: float) -> None:
    """Print the speed of training in this process, in pairs per second."""
    with tempfile.TemporaryDirectory() as folder:
        step = training_step(Path(folder))
        step()
        pairs, start = 0, time.perf_counter()
        while time.perf_counter() - start < seconds:
            pairs += step()
        print(pairs / (time.perf_counter() - start))


def measured(seconds: float, variables: dict[str, str]) -> float:
    """Return the speed of training in a process with these environment variables."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("OMP_", "GOMP_", "MKL_"))}
    command = [sys.executable, "-m", "benchmarks.busy", "--measure", "--seconds", str(seconds)]
    result = subprocess.run(command, env=environment | variables, stdout=subprocess.PIPE, text=True, check=True)
    return float(result.stdout.split()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--busy", type=float, nargs="+", default=[0, 1, 2], help="cores that other programs want")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=5, help="of each figure")
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)  # in a process of its own
    options = parser.parse_args()
    if options.measure:
        measure(options.seconds)
        return
    speeds: dict[tuple[float, str], list[float]] = defaultdict(list)
    for _, load, (setting, variables) in itertools.product(range(options.rounds), options.busy, settings().items()):
        with busy_programs(load):
            speeds[load, setting].append(measured(options.seconds, variables))
    from benchmarks.harness import describe_machine
    from benchmarks.report import machine_line

    print(machine_line(describe_machine()))
    print(f"\n| {PRESET}, batch {BATCH}, pairs/s; other programs want | " + " | ".join(settings()) + " |")
    print("| --- |" + " --- |" * len(settings()))
    for load in options.busy:
        row = [f"{statistics.median(speeds[load, setting]):,.0f}" for setting in settings()]
        print(f"| {load:g} of {cores()} cores | " + " | ".join(row) + " |")


if __name__ == "__main__":
    main()
