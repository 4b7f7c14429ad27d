"""miniclip beside its peers: every row of the table, in one run.

python -m benchmarks [PART …] [--small] [--rounds 7] [--device cpu] [--out FOLDER]

Each part runs in a process of its own, on the same weights, inputs and threads for all; results are compared before
they are timed, contenders take turns, and a lead is the median of the rounds' ratios. With --out, the table is written
as `results.md` and `results.json`, with a plot, `leads.png`; parts that are not named stay as they are in it, if they
come from the same machine, versions and sizes. Needs the extra `bench`.
"""

import argparse
import dataclasses
import importlib
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.frame import Row, Scale, machine
from benchmarks.report import as_markdown, plot_leads

PARTS = (
    "imports",
    "tokenizing",
    "texts",
    "strings",
    "pictures",
    "recall",
    "steps",
    "losses",
    "preprocessing",
    "loading",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}; all, if none is named")
    parser.add_argument("--small", action="store_true", help="small sizes, one round: whether it works, not how fast")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--device", default="")
    parser.add_argument("--out", type=Path, help="the folder for table and plot")
    parser.add_argument("--rows", type=Path, help=argparse.SUPPRESS)  # in the process of a part: where its rows go
    options = parser.parse_args()
    unknown = sorted(set(options.parts) - set(PARTS))
    if unknown:
        parser.error(f"no part {unknown[0]!r}; there are {', '.join(PARTS)}")
    scale = Scale(options.small, options.rounds or (1 if options.small else 7), options.device or default_device())
    if options.rows:
        measure(options.parts[0], scale, options.rows)
        return
    where = machine()
    found = earlier(options.out, where, scale) if options.out else {}
    for part in options.parts or PARTS:
        found[part] = in_own_process(part, scale)
        print(as_markdown(found[part], heading=False), flush=True)
        if options.out:  # after each part: an hour's work is not lost to the last one
            write({part: found[part] for part in PARTS if part in found}, where, scale, options.out)


def earlier(folder: Path, where: dict, scale: Scale) -> dict[str, list[Row]]:
    """The parts that the folder's table has of this machine, versions and sizes: those that are not run now stay."""
    path = folder / "results.json"
    if not path.exists():
        return {}
    written = json.loads(path.read_text())
    there, here = (
        ({**machine, "load": None}, {**scale, "rounds": None})
        for machine, scale in ((written["machine"], written["scale"]), (where, dataclasses.asdict(scale)))
    )
    if there != here:
        return {}
    return {part: [Row(**row) for row in rows] for part, rows in written["parts"].items()}


def write(found: dict[str, list[Row]], where: dict, scale: Scale, folder: Path) -> None:
    """The table, the same as JSON, and the plot."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = [row for part in found.values() for row in part]
    parts = {part: [dataclasses.asdict(row) for row in found[part]] for part in found}
    written = {"machine": where, "scale": dataclasses.asdict(scale), "parts": parts}
    (folder / "results.json").write_text(json.dumps(written, indent=1) + "\n")
    (folder / "results.md").write_text(as_markdown(rows, where))
    plot_leads(rows, where, folder / "leads.png")


def measure(part: str, scale: Scale, path: Path) -> None:
    """Run a part here, and write its rows as they come."""
    import torch

    if scale.device == "cpu":
        torch.set_num_threads(torch.get_num_threads())  # the same number for all, whatever a peer does on import
    rows = []
    for row in importlib.import_module(f"benchmarks.{part}").rows(scale):
        rows.append(dataclasses.asdict(row))
        path.write_text(json.dumps(rows))


def in_own_process(part: str, scale: Scale) -> list[Row]:
    """A part's rows."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.json"
        options = ["--rounds", str(scale.rounds), "--device", scale.device, *(["--small"] if scale.small else [])]
        command = [sys.executable, "-m", "benchmarks", part, *options, "--rows", str(path)]
        if subprocess.run(command).returncode:
            raise SystemExit(f"the part {part!r} failed")
        return [Row(**row) for row in json.loads(path.read_text())]


def default_device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


if __name__ == "__main__":
    main()
