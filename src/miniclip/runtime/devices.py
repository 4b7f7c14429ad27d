"""Devices of this machine: the default one, and the check of the one that a user chose."""

from __future__ import annotations

import torch
from torch import Tensor

from miniclip.utils.checks import nearest
from miniclip.utils.option_names import option

TYPES = ("cpu", "cuda", "mps")
OTHER_NAMES = {"gpu": "cuda", "nvidia": "cuda", "rocm": "cuda", "hip": "cuda", "metal": "mps", "apple": "mps"}

MAX_PINNED = 1 << 20  # bytes; pinning copies the tensor first


def available_devices() -> list[str]:
    """Return the names of this machine's devices, the default one first."""
    gpus = [f"cuda:{number}" for number in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    return [*gpus, *(["mps"] if torch.backends.mps.is_available() else []), "cpu"]


def default_device() -> torch.device:
    """Return the GPU if there is one, "cuda" or Apple's "mps", else the CPU."""
    return torch.device(available_devices()[0].split(":")[0])


def select_device(device: str | torch.device | int | None) -> torch.device:
    """Return a device that this machine has; None gives the default one.

    Raises:
        ValueError: torch has no such device, or this machine does not have it; the message lists those that it has.
        TypeError: the argument is something else.
    """
    if device is None:
        return default_device()
    if isinstance(device, bool) or not isinstance(device, str | torch.device | int):
        raise TypeError(f"device is {device!r}, a {type(device).__name__}; expected a name such as 'cuda' or 'cpu'")
    try:
        chosen = torch.device(device)
    except RuntimeError:
        name = str(device).split(":")[0].strip()
        near = OTHER_NAMES.get(name.lower()) or nearest(name, TYPES)
        is_here = any(known.startswith(near) for known in available_devices()) if near else False
        hint = f"; did you mean {near!r}?" if is_here else ""
        raise _refused(device, "is not the name of a device", hint) from None
    if reason := _missing(chosen):
        raise _refused(device, reason)
    return chosen


def _missing(device: torch.device) -> str | None:
    """Return why this machine does not have a device; None if it has it."""
    if device.type == "cuda":
        if not torch.cuda.is_available():
            is_built = torch.backends.cuda.is_built()  # type: ignore[no-untyped-call]
            return f"is not available ({'torch finds no GPU here' if is_built else 'torch is installed without CUDA'})"
        return "does not exist" if (device.index or 0) >= torch.cuda.device_count() else None
    try:
        torch.empty(0, device=device)
    except (RuntimeError, NotImplementedError, AssertionError, ImportError):  # the type depends on the backend
        return "is not available"
    return None


def _refused(device: object, reason: str, hint: str = "") -> ValueError:
    devices = ", ".join(available_devices())
    return ValueError(f"{option('device', str(device))} {reason}; this machine has {devices}{hint}")


def send(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy a tensor to a device without waiting for the device's earlier work.

    Small tensors go through pinned memory; large ones should lie there already. Copies from a GPU, and to Apple's,
    wait: they are not in order with what the CPU does next.
    """
    if device.type == "cuda" and tensor.device.type == "cpu" and tensor.nbytes <= MAX_PINNED and not tensor.is_pinned():
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=device.type == "cuda")
