"""Rows of the GPU's table, the files that collect them, and the table itself."""

import dataclasses
import importlib
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.harness import MINICLIP
from benchmarks.report import format_number, machine_line

# dense bf16 TFLOP/s by the makers' data sheets; the first name that the card's contains
MAKERS_PEAKS = {"H200": 989.5, "H100 PCIe": 756.0, "H100": 989.5, "A100": 312.0, "L40S": 362.0, "RTX 4090": 165.2}
PEAK = "matrix product in bf16"
ROWS, MACHINE = "rows.jsonl", "machine.json"


@dataclasses.dataclass
class GpuRow:
    """A line of the table.

    Attributes:
        part: the function, such as "training step".
        case: its inputs.
        unit: of the values, such as "pairs/s" or "ms".
        values: by implementation, one value a round.
        memory: by implementation, peak MiB above what was in use before.
        lower_is_better: True for times.
        flops: floating-point operations of miniclip for one unit of work, for both shares of the peak.
        notes: how far the results differ, settings, peers that are absent.
        skipped: why the row was not measured.
    """

    part: str
    case: str
    unit: str = ""
    values: dict[str, list[float]] = dataclasses.field(default_factory=dict)
    memory: dict[str, float] = dataclasses.field(default_factory=dict)
    lower_is_better: bool = False
    flops: float | None = None
    notes: list[str] = dataclasses.field(default_factory=list)
    skipped: str = ""


@dataclasses.dataclass
class Session:
    """Arguments of the process of a part.

    Attributes:
        small: sizes that take seconds; their numbers mean nothing.
        device: "cuda" or "cpu".
        rounds: timed rounds.
        deadline: time on `time.monotonic` at which the part should be done.
        folder: for the rows.
    """

    small: bool
    device: str
    rounds: int
    deadline: float
    folder: Path

    def measure(self, part: str, case: str, fill: Callable[[GpuRow], None], seconds: float = 0.0) -> None:
        """Measure a row and write it; an error, or too little time, is written as the reason why it is missing.

        Args:
            part: as in `GpuRow`.
            case: as in `GpuRow`.
            fill: measures, and sets the other attributes.
            seconds: time that it takes on a GPU.
        """
        row, left, began = GpuRow(part, case), self.deadline - time.monotonic(), time.monotonic()
        if left < seconds and not self.small:
            row.skipped = f"about {seconds:.0f} s are needed, {max(0, left):.0f} s were left"
        else:
            try:
                fill(row)
            except (Exception, SystemExit) as error:  # the other rows must still be measured
                row.skipped = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        print(f"{part}: {case}: {row.skipped or 'measured'} ({time.monotonic() - began:.1f} s)", flush=True)
        append(self.folder, row)


def working(row: GpuRow, calls: dict[str, Callable[[], Any]]) -> dict[str, Callable[[], Any]]:
    """Make each call once, and leave out the peers that fail, with a note; an error of miniclip is raised."""
    found = {}
    for name, call in calls.items():
        try:
            call()
        except Exception as error:
            if name == MINICLIP:
                raise
            row.notes.append(f"{name} fails: {type(error).__name__}: {' '.join(str(error).split())[:160]}")
        else:
            found[name] = call
    return found


def append(folder: Path, row: GpuRow) -> None:
    """Write a row at the end of the file of rows."""
    with (folder / ROWS).open("a", encoding="utf-8") as file:
        file.write(json.dumps(dataclasses.asdict(row)) + "\n")


def absent(module: str) -> str | None:
    """Return why a peer cannot be imported, or None."""
    try:
        importlib.import_module(module)
    except Exception as error:  # a broken installation is absent too
        return f"{module} is absent ({type(error).__name__}: {' '.join(str(error).split())[:120]})"
    return None


def write_tables(folder: Path) -> None:
    """Write `gpu.md` and `gpu.json` from the rows so far."""
    lines = (folder / ROWS).read_text(encoding="utf-8").splitlines() if (folder / ROWS).exists() else []
    rows = [GpuRow(**json.loads(line)) for line in lines]
    path = folder / MACHINE
    machine = json.loads(path.read_text()) if path.exists() else {}
    results = {"machine": machine, "rows": [dataclasses.asdict(row) for row in rows]}
    (folder / "gpu.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    (folder / "gpu.md").write_text(to_markdown(rows, machine), encoding="utf-8")


def to_markdown(rows: list[GpuRow], machine: dict[str, Any]) -> str:
    """Return the table: miniclip's value, those of its peers with miniclip's advantage, and shares of the peak."""
    peak = next((max(row.values[MINICLIP]) for row in rows if row.part == PEAK and row.values), None)
    maker = makers_peak(machine.get("gpu", ""))
    lines = [machine_line(machine) + "\n"] if machine else []
    lines.append(
        f"Peak of bf16 matrix products: measured {format_number(peak) if peak else 'unknown'} TFLOP/s, by the maker "
        f"{format_number(maker) if maker else 'unknown'} TFLOP/s.\n"
    )
    lines += [
        "| what | miniclip | peers (miniclip is better by) | share of the peak: measured, maker's |",
        "|" + " --- |" * 4,
    ]
    lines += [_line(row, peak, maker) for row in rows]
    return "\n".join(lines) + "\n"


def makers_peak(card: str) -> float | None:
    """Return the maker's dense bf16 peak of a card in TFLOP/s, or None for one that is not listed."""
    return next((value for name, value in MAKERS_PEAKS.items() if name in card), None)


def _line(row: GpuRow, peak: float | None, maker: float | None) -> str:
    what = "<br>".join([f"{row.part}: {row.case}", *row.notes])
    if row.skipped:
        return f"| {what} | not measured: {row.skipped} | | |"
    if MINICLIP not in row.values:  # a profile
        kinds = sorted(row.values.items(), key=lambda item: -statistics.median(item[1]))
        cells = ", ".join(f"{name} {format_number(statistics.median(value))}" for name, value in kinds)
        return f"| {what} | {cells} {row.unit} | | |"
    own = statistics.median(row.values[MINICLIP])
    cells = [
        _cell(row, name) + f" (**{statistics.median(_advantages(row, name)):.2f}**)"
        for name in row.values
        if name != MINICLIP
    ]
    shares = ""
    if row.flops:
        speed = own * row.flops / 1e12
        shares = ", ".join(f"{speed / limit:.0%}" if limit else "unknown" for limit in (peak, maker))
    return f"| {what} | {_cell(row, MINICLIP)} | {'; '.join(cells)} | {shares} |"


def _cell(row: GpuRow, name: str) -> str:
    prefix = "" if name == MINICLIP else f"{name} "
    memory = f", {format_number(row.memory[name])} MiB" if name in row.memory else ""
    return f"{prefix}{format_number(statistics.median(row.values[name]))} {row.unit}{memory}"


def _advantages(row: GpuRow, name: str) -> list[float]:
    pairs = zip(row.values[MINICLIP], row.values[name], strict=True)
    return [other / own if row.lower_is_better else own / other for own, other in pairs]
