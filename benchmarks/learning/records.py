"""The runs of a measure, a line each in `runs.jsonl`, so that a stopped command can continue."""

import dataclasses
import json
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

from benchmarks.learning.run import Spec

Record = dict[str, Any]


class Runs:
    """Runs in a folder, each made in a process of its own at most once.

    Args:
        folder: for `runs.jsonl`.
        data: the folder that holds the sets.
        machine: from `describe_machine`; runs of another processor or of other versions do not count.
    """

    def __init__(self, folder: Path, data: Path, machine: dict[str, Any]) -> None:
        self.path, self.data = folder / "runs.jsonl", data
        self.machine = {name: value for name, value in machine.items() if name != "load"}
        self._lock = threading.Lock()  # --jobs makes several runs at a time
        folder.mkdir(parents=True, exist_ok=True)
        self.records = [record for record in self._read() if record["machine"] == self.machine]

    def _read(self) -> list[Record]:
        """Read the complete lines; a command that was killed may have left a part of one."""
        if not self.path.exists():
            return []
        text = self.path.read_text()
        if not text.endswith("\n"):
            text = text[: text.rfind("\n") + 1]
            self.path.write_text(text)
        return [json.loads(line) for line in text.splitlines()]

    def result(self, spec: Spec) -> Record:
        """Return the record of a run, after making it if there is none."""
        written = json.loads(json.dumps(dataclasses.asdict(spec)))
        for record in self.records:
            if record["spec"] == written:
                return record
        record = {**train_in_process(spec, self.data), "machine": self.machine}
        with self._lock, self.path.open("a") as file:
            file.write(json.dumps(record) + "\n")
            self.records.append(record)
            print(describe(record), flush=True)
        return record


def train_in_process(spec: Spec, data: Path) -> Record:
    """Make a run in a process of its own, and return its record."""
    with tempfile.TemporaryDirectory() as folder:
        order, result = Path(folder) / "spec.json", Path(folder) / "record.json"
        order.write_text(json.dumps({"spec": dataclasses.asdict(spec), "folder": str(data)}))
        if subprocess.run([sys.executable, "-m", "benchmarks.learning.run", str(order), str(result)]).returncode:
            raise SystemExit(f"the run of {spec.system} on {spec.set}, seed {spec.seed}, failed")
        record: Record = json.loads(result.read_text())
        return record


def describe(record: Record) -> str:
    """Return a line for a run that is done."""
    spec, end = record["spec"], record["curve"][-1]
    recall = f"R@1 image to text {end['image_to_text']:.1f}, text to image {end['text_to_image']:.1f}"
    name = f"{spec['set']} ({spec['split']}), {spec['system']}, seed {spec['seed']}"
    return f"{name}: {record['pairs']:,} pairs in {end['seconds']:.0f} s; {recall}"


def final(record: Record) -> float:
    """Return the figure that is compared: the mean R@1 of both directions at the end of the budget."""
    return float(record["curve"][-1]["mean_R@1"])
