"""CPU cores of this process, and those that other programs use."""

import os
import platform
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest

from miniclip.runtime import cores
from miniclip.runtime.cores import MIN_SECONDS, OtherPrograms, available_cores

SECONDS = 0.3  # CPU time of a busy program
BUSY = f"""
import sys, time
while time.process_time() < {SECONDS}: pass
print(flush=True)
sys.stdin.read()
"""
PROC = pytest.mark.skipif(not Path("/proc/stat").exists(), reason="needs Linux's /proc")


@pytest.fixture
def unknown_maker():
    cores.is_intel.cache_clear()
    yield
    cores.is_intel.cache_clear()


@pytest.mark.parametrize(("vendor", "expected"), [("GenuineIntel", True), ("AuthenticAMD", False)])
def test_the_maker_on_linux(vendor, expected, unknown_maker, tmp_path, monkeypatch):
    (tmp_path / "cpuinfo").write_text(f"processor\t: 0\nvendor_id\t: {vendor}\n")
    monkeypatch.setattr(cores, "CPU_INFO", tmp_path / "cpuinfo")
    assert cores.is_intel() == expected


@pytest.mark.parametrize(("text", "expected"), [("Intel64 Family 6, GenuineIntel", True), ("arm", False), ("", False)])
def test_the_maker_on_other_systems(text, expected, unknown_maker, tmp_path, monkeypatch):
    monkeypatch.setattr(cores, "CPU_INFO", tmp_path / "missing")
    monkeypatch.setattr(platform, "processor", lambda: text)
    assert cores.is_intel() == expected


@contextmanager
def busy_program(*prefix):
    """Run a program that uses `SECONDS` of CPU time and then waits."""
    command = [*prefix, sys.executable, "-c", BUSY]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as program:
        program.stdout.readline()
        yield
        program.stdin.close()


def affinity(monkeypatch, count):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(count)), raising=False)


def files(monkeypatch, contents):
    def read(path, **_):
        if str(path) not in contents:
            raise FileNotFoundError(path)
        return contents[str(path)]

    monkeypatch.setattr(Path, "read_text", read)


@pytest.mark.parametrize(("limit", "expected"), [("max 100000", 8), ("300000 100000", 3), ("50000 100000", 1)])
def test_container_limits_the_cores(monkeypatch, limit, expected):
    affinity(monkeypatch, 8)
    files(monkeypatch, {"/sys/fs/cgroup/cpu.max": limit + "\n"})
    assert available_cores() == expected


@pytest.mark.parametrize(("quota", "expected"), [("-1", 8), ("250000", 2)])
def test_container_of_the_first_version_limits_the_cores(monkeypatch, quota, expected):
    affinity(monkeypatch, 8)
    folder = "/sys/fs/cgroup/cpu/cpu.cfs_"
    files(monkeypatch, {f"{folder}quota_us": quota + "\n", f"{folder}period_us": "100000\n"})
    assert available_cores() == expected


def test_ranks_share_the_cores(monkeypatch):
    affinity(monkeypatch, 8)
    files(monkeypatch, {})
    monkeypatch.setattr(cores.distributed, "local_world_size", lambda: 3)
    assert available_cores() == 2


@PROC
def test_cpu_time_of_a_child_is_not_that_of_others():
    before = cores._own_ticks()
    with busy_program():
        used = (cores._own_ticks() - before) / os.sysconf("SC_CLK_TCK")
    assert used >= SECONDS - 0.05


@PROC
def test_cpu_time_of_a_program_that_is_not_a_child_is_that_of_others():
    own, total = cores._own_ticks(), cores._total_ticks()
    with busy_program("sh", "-c", '"$@" <&0 & exit', "sh"):  # its parent, the shell, has ended
        own, total = cores._own_ticks() - own, cores._total_ticks() - total
    assert (total - own) / os.sysconf("SC_CLK_TCK") >= SECONDS - 0.05


def test_value_is_the_mean_of_the_time_since_the_last_one(monkeypatch):
    now = {"time": 100.0, "total": 1000.0, "own": 600.0}
    monkeypatch.setattr(OtherPrograms, "_now", staticmethod(lambda: tuple(now.values())))
    monkeypatch.setattr(cores.time, "monotonic", lambda: now["time"])
    programs = OtherPrograms()
    now.update(time=100.0 + MIN_SECONDS / 2, total=1500.0)
    assert programs.cores() is None
    now.update(time=110.0, total=1027.0, own=612.0)
    assert programs.cores() == pytest.approx(1.5)
    now.update(time=120.0, total=1047.0, own=632.0)
    assert programs.cores() == 0.0
    now.update(time=130.0, own=700.0)
    assert programs.cores() == 0.0, "clocks differ by some hundredths of a second"


def test_containers_with_a_limit_have_no_value(monkeypatch):
    affinity(monkeypatch, 8)
    monkeypatch.setattr(cores, "_container_limit", lambda: 2.0)
    monkeypatch.setattr(cores.time, "monotonic", iter([0.0, 100.0, 200.0, 300.0]).__next__)
    assert OtherPrograms().cores() is None


def test_systems_without_proc_have_no_value(monkeypatch):
    files(monkeypatch, {})
    monkeypatch.setattr(cores.time, "monotonic", iter([0.0, 100.0, 200.0]).__next__)
    assert OtherPrograms().cores() is None
