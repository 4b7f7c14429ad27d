"""Random choices as pure functions of what they belong to: no hidden state, so a resumed run draws the same."""

from __future__ import annotations

import hashlib

import torch


def draw(*key: int | str) -> int:
    """A number in 0..2^63 - 1 that depends on the key alone, the same on every machine.

    For example `draw(seed, "caption", epoch, picture) % 5` chooses one of five captions.
    """
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def generator(*key: int | str) -> torch.Generator:
    """A fresh generator on the CPU, seeded with `draw(*key)`."""
    return torch.Generator().manual_seed(draw(*key))
