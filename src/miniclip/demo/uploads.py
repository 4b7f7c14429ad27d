"""Embeddings of uploaded images, under names that cannot be guessed. The images themselves are not kept."""

from __future__ import annotations

import secrets
import threading
from collections import OrderedDict

from torch import Tensor


class Uploads:
    """Embeddings (E,) of the last uploads; those unused for the longest time are removed first.

    Args:
        capacity: number of uploads.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._rows: OrderedDict[str, Tensor] = OrderedDict()
        self._lock = threading.Lock()

    def add(self, embedding: Tensor) -> str:
        """Keep an embedding; return its name."""
        name = secrets.token_urlsafe(12)
        with self._lock:
            self._rows[name] = embedding
            while len(self._rows) > self.capacity:
                self._rows.popitem(last=False)
        return name

    def get(self, name: str) -> Tensor | None:
        """Return an embedding (E,), or None if it is not kept."""
        with self._lock:
            if name in self._rows:
                self._rows.move_to_end(name)
            return self._rows.get(name)

    def __len__(self) -> int:
        return len(self._rows)
