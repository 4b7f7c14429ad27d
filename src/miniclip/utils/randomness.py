"""Random numbers as pure functions of a key. Without hidden state, a resumed run gets the same numbers."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

RandomState = tuple[Tensor, Tensor | None]


def random_integer(*key: int | str) -> int:
    """Return an integer in [0, 2^63) that depends only on the key and is the same on every machine.

    For example, `random_integer(seed, "caption", epoch, index) % 5` chooses one of five captions.
    """
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def generator(*key: int | str) -> torch.Generator:
    """Return a new CPU generator that is seeded with `random_integer(*key)`."""
    return torch.Generator().manual_seed(random_integer(*key))


def seed_layers(device: torch.device, *key: int | str) -> None:
    """Seed torch's global generators with `random_integer(*key)`, for layers that draw random numbers on a device.

    On a CPU, only its generator: `torch.manual_seed` formats a stack trace for each kind of GPU that is not there.
    """
    (torch.default_generator if device.type == "cpu" else torch).manual_seed(random_integer(*key))


def random_state(device: torch.device) -> RandomState:
    """Return the state of torch's global generators: the CPU's, and the device's if it has one."""
    if device.type == "cuda":
        return torch.get_rng_state(), torch.cuda.get_rng_state(device)
    return torch.get_rng_state(), torch.mps.get_rng_state() if device.type == "mps" else None


def set_random_state(device: torch.device, state: RandomState) -> None:
    """Restore a state that `random_state` returned."""
    torch.set_rng_state(state[0])
    if state[1] is not None:
        torch.cuda.set_rng_state(state[1], device) if device.type == "cuda" else torch.mps.set_rng_state(state[1])
