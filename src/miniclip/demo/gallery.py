"""Images of an index, as the page needs them: by number, with their files and neighbours. E is the embedding's size."""

from __future__ import annotations

import threading
import time
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from miniclip.data.decoding import open_image
from miniclip.errors import DataError, UnreadableError
from miniclip.search.database import DATABASE
from miniclip.search.filters import Filter
from miniclip.search.index import Index
from miniclip.search.searching import SnapshotSearch
from miniclip.search.snapshot import Item, Snapshot

REFRESH_SECONDS = 5.0  # between two checks whether another process has updated the index
DRAFT_SUFFIXES = (".jpg", ".jpeg")  # decoded at a part of their size


class Shown(NamedTuple):
    """An image of the index, and its similarity with the query; None without a query."""

    item: Item
    score: float | None


class Gallery:
    """Images of an index. Only `read`, `item` and `embedding` are called from several threads at once.

    Args:
        index: an index. If another process updates it, the gallery follows.
    """

    def __init__(self, index: Index) -> None:
        self.index = index
        self._lock = threading.Lock()
        self._state, self._checked = self._file_state(), time.monotonic()
        self._use(SnapshotSearch(index.snapshot, index.path_of))

    def __len__(self) -> int:
        return len(self._search.snapshot)

    def item(self, number: int) -> Item | None:
        """Return the item of a number, or None."""
        snapshot, position = self._find(number)
        return None if position is None else snapshot.items([position])[0]

    def embedding(self, number: int) -> Tensor | None:
        """Return the embedding (E,) of an item's number, float32 on the CPU, or None."""
        snapshot, position = self._find(number)
        if position is None:
            return None
        return torch.from_numpy(snapshot.vectors[snapshot.rows[position]].astype(np.float32))

    def read(self, item: Item, side: int | None = None) -> Image.Image:
        """Open the image of an item, upright and RGB.

        Args:
            item: an item.
            side: pixels that both sides of a large image keep; None: full size.

        Raises:
            DataError: it cannot be read, is missing, or is not the file that was indexed.
        """
        path = Path(self.index.path_of(item))
        if not item.mtime_ns and not (path.is_absolute() and path.is_file()):  # in an archive or a table
            return self.index.image(item)
        try:
            status = path.stat()
        except OSError:
            raise UnreadableError(item.name, "does not exist any more; update the index") from None
        if (status.st_size, status.st_mtime_ns) != (item.size, item.mtime_ns):
            raise UnreadableError(item.name, "has changed since it was indexed; update the index")
        if side is not None and path.suffix.lower() in DRAFT_SUFFIXES:
            return open_image(path, at_least=side)
        return self.index.image(item)

    def sample(self, count: int, where: Filter | None = None) -> list[Shown]:
        """Return images without a query, at even distances in the order of names."""
        self._follow()
        snapshot = self._search.snapshot
        positions = np.arange(len(snapshot)) if where is None else snapshot.where(*where.condition(self._root))
        if len(positions) > count:
            positions = positions[np.linspace(0, len(positions) - 1, count).round().astype(int)]
        return [Shown(item, None) for item in snapshot.items(positions)]

    def search(
        self, vector: Tensor, count: int, where: Filter | None = None, threshold: float | None = None
    ) -> list[Shown]:
        """Return the images nearest to a vector (E,), the best first, as `Index.search`."""
        self._follow()
        hits = self._search.search_each(vector[None], count, where, threshold)[0]
        return [Shown(hit.item, hit.score) for hit in hits]

    def _follow(self) -> None:
        """Use the newest state of the index, at most every few seconds."""
        if time.monotonic() - self._checked < REFRESH_SECONDS:
            return
        self._checked = time.monotonic()
        state = self._file_state()
        if state == self._state:
            return
        try:
            self.index.refresh()
        except (OSError, DataError):
            return  # it is being written; the next check follows
        except ValueError as error:  # another model: the vectors of before are still those of this one
            self._state = state
            warnings.warn(f"{error}; the page shows the index as it was", stacklevel=1)
            return
        self._state = state
        self._use(SnapshotSearch(self.index.snapshot, self.index.path_of, self._search))

    def _use(self, search: SnapshotSearch) -> None:
        order = np.argsort(search.snapshot.ids)
        with self._lock:
            self._search, self._order, self._sorted_ids = search, order, search.snapshot.ids[order]

    @property
    def _root(self) -> str:
        return self._search.snapshot.settings["root"]

    def _find(self, number: int) -> tuple[Snapshot, int | None]:
        """Return the snapshot of this moment, and the position in it of an item's number."""
        with self._lock:
            return self._search.snapshot, self._position(number)

    def _position(self, number: int) -> int | None:
        place = int(np.searchsorted(self._sorted_ids, number)) if 0 < number < 2**62 else len(self._sorted_ids)
        if place == len(self._sorted_ids) or self._sorted_ids[place] != number:
            return None
        return int(self._order[place])

    def _file_state(self) -> Any:
        try:
            status = (self.index.path / DATABASE).stat()
        except OSError:
            return None
        return status.st_mtime_ns, status.st_size, status.st_ino
