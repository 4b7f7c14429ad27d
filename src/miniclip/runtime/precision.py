"""Precision of matrix products: the choice of "auto", by a table of what each device can do."""

from __future__ import annotations

import logging
import platform
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

from miniclip.utils.checks import did_you_mean

if TYPE_CHECKING:
    import torch  # its import takes seconds; the help of a command needs only the names in this file

Precision = Literal["auto", "float32", "bfloat16"]
DtypeName = Literal["auto", "float32", "bfloat16", "float16"]  # names of dtypes for weights
DTYPES = ("float32", "bfloat16", "float16")  # dtypes for weights

log = logging.getLogger(__name__)


class PrecisionRule(NamedTuple):
    """A row of the table: the precision of devices of a type that have a capability."""

    device_type: str
    capability: str | None  # None: any device of the type
    precision: Precision
    reason: str


AMD_BFLOAT16 = "avx512_bf16 of AMD"

# The first row that fits is taken. bfloat16 has the range of float32, so that autocast needs no gradient scaler.
# A CPU gets bfloat16 only where linear layers of a ViT-B/16 were faster in it, in GFLOP/s (float32, bfloat16):
#   AMD Zen 4, AVX512-BF16, two cores               203  392
#   Intel Xeon, AVX512-BF16 without AMX, one core   127   76
TABLE = (
    PrecisionRule("cuda", "sm_80", "bfloat16", "the GPU multiplies bfloat16 in tensor cores (compute capability 8.0+)"),
    PrecisionRule("cuda", None, "float32", "the GPU has no bfloat16 tensor cores (compute capability below 8.0)"),
    PrecisionRule("cpu", "amx_bf16", "bfloat16", "the CPU multiplies bfloat16 in tiles (AMX-BF16)"),
    PrecisionRule("cpu", AMD_BFLOAT16, "bfloat16", "AMD's bfloat16 dot products are faster than float32 (AVX512-BF16)"),
    PrecisionRule("cpu", None, "float32", "the CPU has neither AMX-BF16 nor AMD's AVX512-BF16"),
    PrecisionRule("mps", None, "float32", "bfloat16 is not used on MPS"),
)


def choose(device_type: str, capabilities: Collection[str]) -> PrecisionRule:
    """Return the first row of the table that fits a device; float32 for a type that is not in it.

    Args:
        device_type: such as "cuda".
        capabilities: names of the table that the device has.
    """
    for rule in TABLE:
        if rule.device_type == device_type and (rule.capability is None or rule.capability in capabilities):
            return rule
    return PrecisionRule(device_type, None, "float32", f"bfloat16 was not tested on {device_type}")


def capabilities_of(device: torch.device) -> set[str]:
    """Return the capabilities of a device that the table names."""
    import torch

    if device.type == "cuda":
        return {"sm_80"} if torch.cuda.get_device_capability(device) >= (8, 0) else set()
    if device.type == "cpu":
        flags, is_amd = _cpu_flags()
        names = {AMD_BFLOAT16} if is_amd and "avx512_bf16" in flags else set()
        return names | ({"amx_bf16"} & flags)
    return set()


def _cpu_flags() -> tuple[set[str], bool]:
    """Names of instruction sets, as torch and Linux spell them, and whether the CPU is AMD's."""
    import torch

    words: set[str] = set()
    with suppress(OSError):
        words = set(Path("/proc/cpuinfo").read_text(encoding="utf-8").split())
    is_amd = "AuthenticAMD" in words or "AuthenticAMD" in platform.processor()  # Linux; Windows
    if hasattr(torch.cpu, "get_capabilities"):  # newer than the oldest torch that miniclip supports
        words = {name for name, present in torch.cpu.get_capabilities().items() if present}
    return words, is_amd


def resolve(precision: Precision, device: torch.device) -> Precision:
    """Replace "auto" by the precision that the table gives for a device, and log the reason."""
    if precision != "auto":
        return precision
    rule = choose(device.type, capabilities_of(device))
    log.info("precision auto: %s on %s, because %s", rule.precision, device, rule.reason)
    return rule.precision


def dtype_named(name: str, device: torch.device) -> torch.dtype:
    """Return the dtype of a name; "auto" is the precision that the table gives for the device.

    Raises:
        ValueError: the name is neither "auto" nor one of `DTYPES`.
    """
    import torch

    if name not in ("auto", *DTYPES):
        raise ValueError(f"unknown dtype {name!r}{did_you_mean(name, ('auto', *DTYPES))}")
    dtype: torch.dtype = getattr(torch, resolve("auto", device) if name == "auto" else name)
    return dtype
