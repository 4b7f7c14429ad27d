"""Free memory as the system and the container report it."""

import os
from pathlib import Path

import pytest

from miniclip.runtime.free_memory import DEFAULT_BYTES, available_bytes

FILES = {"/proc/meminfo": "MemTotal: 100 kB\nMemAvailable:     40 kB\n", "/proc/self/statm": "9 1 1 1 0 1 0"}


def available_with(monkeypatch, files):
    def read(path, **_):
        if str(path) not in files:
            raise FileNotFoundError(path)
        return files[str(path)]

    monkeypatch.setattr(Path, "read_text", read)
    return available_bytes()


def test_reads_available_memory(monkeypatch):
    assert available_with(monkeypatch, FILES) == 40 * 1024


@pytest.mark.parametrize("path", ["/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"])
def test_respects_the_limit_of_a_container(monkeypatch, path):
    monkeypatch.setattr(os, "sysconf", {"SC_PAGE_SIZE": 10}.__getitem__, raising=False)
    assert available_with(monkeypatch, {**FILES, path: "1010\n"}) == 1000
    assert available_with(monkeypatch, {**FILES, path: "5\n"}) == 0
    assert available_with(monkeypatch, {**FILES, path: "max\n"}) == 40 * 1024


def test_estimates_without_proc(monkeypatch):
    monkeypatch.setattr(os, "sysconf", {"SC_PAGE_SIZE": 10, "SC_PHYS_PAGES": 6}.__getitem__, raising=False)
    assert available_with(monkeypatch, {}) == 30
    monkeypatch.delattr(os, "sysconf")
    assert available_with(monkeypatch, {}) == DEFAULT_BYTES
