"""Precision "auto": every row of the table, and the capabilities of devices."""

import logging
from pathlib import Path

import pytest
import torch

from miniclip.runtime.precision import AMD_BFLOAT16, TABLE, capabilities_of, choose, dtype_named, resolve

CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize(
    ("device_type", "capabilities", "row"),
    [
        ("cuda", {"sm_80"}, 0),
        ("cuda", set(), 1),
        ("cpu", {AMD_BFLOAT16, "amx_bf16"}, 2),
        ("cpu", {AMD_BFLOAT16}, 3),
        ("cpu", {"avx512_bf16"}, 4),
        ("cpu", {"sm_80"}, 4),
        ("cpu", set(), 4),
        ("mps", {"amx_bf16", "sm_80"}, 5),
    ],
)
def test_rows_of_the_table(device_type, capabilities, row):
    expected = ["bfloat16", "float32", "bfloat16", "bfloat16", "float32", "float32"]
    assert choose(device_type, capabilities) == TABLE[row]
    assert [rule.precision for rule in TABLE] == expected


def test_other_devices_use_float32():
    assert choose("xpu", {"sm_80", "amx_bf16"}).precision == "float32"
    assert capabilities_of(torch.device("meta")) == set()


@pytest.mark.parametrize(
    ("capability", "expected"), [((7, 5), "float32"), ((8, 0), "bfloat16"), ((9, 0), "bfloat16"), ((12, 0), "bfloat16")]
)
def test_a_gpu_is_chosen_by_compute_capability(monkeypatch, capability, expected):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert resolve("auto", GPU) == expected


@pytest.fixture
def cpuinfo(monkeypatch):
    """Function that sets the content of /proc/cpuinfo."""
    monkeypatch.setattr("platform.processor", lambda: "x86_64")
    return lambda text: monkeypatch.setattr(Path, "read_text", lambda path, encoding: text)


AMD, INTEL = "vendor_id\t: AuthenticAMD\n", "vendor_id\t: GenuineIntel\n"


@pytest.mark.parametrize(
    ("vendor", "flags", "expected"),
    [
        (AMD, {"avx512_bf16": True}, "bfloat16"),
        (INTEL, {"avx512_bf16": True}, "float32"),  # as on a virtual machine that hides AMX
        (INTEL, {"avx512_bf16": True, "amx_bf16": True}, "bfloat16"),
        (AMD, {"avx512_bf16": False}, "float32"),
    ],
)
def test_a_cpu_is_chosen_by_torchs_capabilities(monkeypatch, cpuinfo, vendor, flags, expected):
    cpuinfo(vendor)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True, "amx_tile": True, **flags}, raising=False)
    assert resolve("auto", CPU) == expected
    assert dtype_named("auto", CPU) == getattr(torch, expected)


@pytest.mark.parametrize(
    ("vendor", "flags", "expected"),
    [
        (AMD, "fpu avx512_bf16 clwb", "bfloat16"),
        (INTEL, "fpu avx512_bf16 clwb", "float32"),
        (INTEL, "fpu amx_bf16", "bfloat16"),
        (AMD, "avx2", "float32"),
    ],
)
def test_older_torch_reads_the_flags_of_linux(monkeypatch, cpuinfo, vendor, flags, expected):
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    cpuinfo(f"{vendor}flags\t\t: {flags}\n")
    assert resolve("auto", CPU) == expected


def test_windows_names_the_vendor_itself(monkeypatch, cpuinfo):
    cpuinfo("")
    monkeypatch.setattr("platform.processor", lambda: "AMD64 Family 25 Model 97 Stepping 2, AuthenticAMD")
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True}, raising=False)
    assert resolve("auto", CPU) == "bfloat16"


def test_without_any_source_of_flags_it_is_float32(monkeypatch):
    def refuse(path, encoding):
        raise FileNotFoundError(path)

    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    monkeypatch.setattr(Path, "read_text", refuse)
    assert resolve("auto", CPU) == "float32"


def test_the_reason_is_logged(monkeypatch, caplog):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 0))
    with caplog.at_level(logging.INFO, "miniclip"):
        resolve("auto", GPU)
        resolve("float32", GPU)
    (message,) = caplog.messages
    assert message == f"precision auto: float32 on cuda, because {TABLE[1].reason}"


def test_a_named_precision_is_kept():
    assert resolve("bfloat16", CPU) == "bfloat16"
    assert resolve("float32", CPU) == "float32"


def test_dtypes_by_name():
    assert dtype_named("float16", CPU) == torch.float16
    with pytest.raises(ValueError, match="unknown dtype 'bfloat32'"):
        dtype_named("bfloat32", CPU)
    with pytest.raises(ValueError, match="unknown dtype 'int8'"):
        dtype_named("int8", CPU)
