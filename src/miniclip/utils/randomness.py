"""Random choices as pure functions of what they belong to: no hidden state, so a resumed run draws the same."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

RandomState = tuple[Tensor, Tensor | None]


def draw(*key: int | str) -> int:
    """A number in 0..2^63 - 1 that depends on the key alone, the same on every machine.

    For example `draw(seed, "caption", epoch, picture) % 5` chooses one of five captions.
    """
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def generator(*key: int | str) -> torch.Generator:
    """A fresh generator on the CPU, seeded with `draw(*key)`."""
    return torch.Generator().manual_seed(draw(*key))


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
