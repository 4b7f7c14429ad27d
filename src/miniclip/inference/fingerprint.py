"""Fingerprints of models: digests that differ if embeddings differ."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import Tensor

from miniclip.data.cache.format import tokenizer_checksum
from miniclip.finetuning.lora import plain_state


class Digest(Protocol):
    """Digest of hashlib."""

    def update(self, data: Any, /) -> None:
        """Add bytes."""


def image_fingerprint(model: Any) -> str:
    """Return a digest of the image tower's weights and of the preprocessing, 24 hexadecimal digits."""
    digest = hashlib.sha256(repr((model.preprocess, model.config.image)).encode())
    add_weights(digest, plain_state(model.image))
    return digest.hexdigest()[:24]


def model_fingerprint(model: Any) -> str:
    """Return a digest of a CLIPModel: all its weights, configuration, preprocessing and tokenizer.

    Weights count by their values as float32, so that float16 weights and the same weights on a CPU, where they become
    float32, have one fingerprint. A tokenizer that is fetched on first use is fetched.

    Returns:
        64 hexadecimal digits.
    """
    digest = hashlib.sha256(repr((model.preprocess, model.config)).encode())
    add_weights(digest, plain_state(model))
    if model.tokenizer is not None:
        digest.update(tokenizer_checksum(model.tokenizer).encode())
    return digest.hexdigest()


def add_weights(digest: Digest, weights: Mapping[str, Tensor]) -> None:
    """Add names, shapes and values, as float32, of a state dict to a digest."""
    for name, tensor in sorted(weights.items()):
        digest.update(f"{name} {tuple(tensor.shape)}".encode())
        values = tensor.detach().cpu()
        values = (values.float() if values.is_floating_point() else values).reshape(-1).contiguous()
        digest.update(values.view(torch.uint8).numpy().data)
