"""The comparison with the baselines: its parts, in a process of their own."""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from benchmarks import __main__ as command
from benchmarks.harness import Scale


def fail(scale):
    raise ValueError("on purpose")


def test_failed_part_is_named(monkeypatch):
    scale = Scale(True, 1, "cpu")

    def run(line):
        """Run the parts of a command line here, with modules of the test."""
        try:
            command.measure(line[3 : line.index("--rounds")], scale, Path(line[-1]))
        except ValueError:
            return subprocess.CompletedProcess(line, 1)
        return subprocess.CompletedProcess(line, 0)

    for part, rows in (("tokenizing", lambda scale: []), ("steps", fail), ("losses", lambda scale: [])):
        monkeypatch.setitem(sys.modules, f"benchmarks.{part}", SimpleNamespace(rows=rows))
    monkeypatch.setattr(command.subprocess, "run", run)
    monkeypatch.setattr(sys, "argv", ["benchmarks", "--small", "tokenizing", "steps", "losses"])
    with pytest.raises(SystemExit) as stopped:
        command.main()
    assert stopped.value.code == "the part steps failed"  # Python prints it, and exits with 1
    assert command.measure_in_process(["tokenizing", "losses"], scale) == {"tokenizing": [], "losses": []}
