"""All rows of the comparison of miniclip with its baselines, in one run.

python -m benchmarks [PART …] [--small] [--rounds 7] [--device cpu] [--out FOLDER]

Each part runs in a separate process, with the same weights, inputs and threads for all implementations. Their results
are compared before they are timed, in interleaved rounds. A speedup is the median of the rounds' ratios. With --out,
the table is written as `results.md` and `results.json`, with a plot, `speedups.png`. Parts that are not named keep
their rows in it, if machine, versions and sizes are the same. With --small, all parts share one process. Needs the
extra `bench`.

`python -m benchmarks gpu` and `python -m benchmarks learning` are other commands, with options of their own: the table
of one GPU, and the recall of models after equal training time.
"""

import argparse
import dataclasses
import importlib
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.harness import Row, Scale, describe_machine
from benchmarks.report import plot_speedups, to_markdown

PARTS = (
    "imports",
    "tokenizing",
    "texts",
    "strings",
    "images",
    "deployment",
    "int8_parts",
    "evaluation",
    "recall",
    "steps",
    "losses",
    "preprocessing",
    "loading",
    "search",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}; default: all")
    parser.add_argument("--small", action="store_true", help="small sizes, one round: a check that everything works")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--device", default="")
    parser.add_argument("--out", type=Path, help="folder for the table and the plot")
    parser.add_argument("--rows", type=Path, help=argparse.SUPPRESS)  # in a part's process: the file for its rows
    options = parser.parse_args()
    unknown = sorted(set(options.parts) - set(PARTS))
    if unknown:
        parser.error(f"unknown part {unknown[0]!r}; expected one of {', '.join(PARTS)}")
    scale = Scale(options.small, options.rounds or (1 if options.small else 7), options.device or default_device())
    if options.rows:
        measure(options.parts, scale, options.rows)
        return
    machine = describe_machine()
    table = read_table(options.out, machine, scale) if options.out else {}
    parts = options.parts or list(PARTS)
    for group in [parts] if scale.small else [[part] for part in parts]:  # the imports take longer than a small part
        table |= measure_in_process(group, scale)
        print("\n".join(to_markdown(table[part], heading=False) for part in group), flush=True)
        if options.out:  # after each part, so that a failure of a later one loses nothing
            write_table({part: table[part] for part in PARTS if part in table}, machine, scale, options.out)


def read_table(folder: Path, machine: dict[str, Any], scale: Scale) -> dict[str, list[Row]]:
    """Return the rows of an earlier run by part; none if its machine, versions or sizes differ."""
    path = folder / "results.json"
    if not path.exists():
        return {}
    written = json.loads(path.read_text())
    before = {**written["machine"], "load": None}, {**written["scale"], "rounds": None}
    if before != ({**machine, "load": None}, {**dataclasses.asdict(scale), "rounds": None}):
        return {}
    return {part: [Row(**row) for row in rows] for part, rows in written["parts"].items()}


def write_table(table: dict[str, list[Row]], machine: dict[str, Any], scale: Scale, folder: Path) -> None:
    """Write the table as Markdown, as JSON and as a plot."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = [row for part_rows in table.values() for row in part_rows]
    parts = {part: [dataclasses.asdict(row) for row in table[part]] for part in table}
    results = {"machine": machine, "scale": dataclasses.asdict(scale), "parts": parts}
    (folder / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    (folder / "results.md").write_text(to_markdown(rows, machine))
    plot_speedups(rows, machine, folder / "speedups.png")


def measure(parts: list[str], scale: Scale, path: Path) -> None:
    """Run parts in this process, and write their rows one by one."""
    import torch

    threads, rows = torch.get_num_threads(), {}
    for part in parts:
        rows[part] = []
        path.write_text(json.dumps(rows))  # its last part is the one that failed, if any
        print(f"{part} …", file=sys.stderr, flush=True)
        module = importlib.import_module(f"benchmarks.{part}")
        if scale.device == "cpu":
            torch.set_num_threads(threads)  # fixed, even if a library's import or another part changes it
        for row in module.rows(scale):
            rows[part].append(dataclasses.asdict(row))
            path.write_text(json.dumps(rows))
    path.write_text(json.dumps(rows))


def measure_in_process(parts: list[str], scale: Scale) -> dict[str, list[Row]]:
    """Run parts in a separate process, and return their rows."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.json"
        options = ["--rounds", str(scale.rounds), "--device", scale.device, *(["--small"] if scale.small else [])]
        command = [sys.executable, "-m", "benchmarks", *parts, *options, "--rows", str(path)]
        if subprocess.run(command).returncode:
            started = json.loads(path.read_text()) if path.exists() else {}
            raise SystemExit(f"the part {next(reversed(started), parts[0])} failed")
        return {part: [Row(**row) for row in rows] for part, rows in json.loads(path.read_text()).items()}


def default_device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


if __name__ == "__main__":
    if sys.argv[1:2] == ["gpu"]:  # a command of its own: its rows can be missing, and its time is limited
        importlib.import_module("benchmarks.gpu.__main__").main(sys.argv[2:])
    elif sys.argv[1:2] == ["learning"]:
        importlib.import_module("benchmarks.learning.command").main(sys.argv[2:])
    else:
        main()
