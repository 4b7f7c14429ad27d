"""A dictionary from chunks of captions to their ids: captions repeat their words, so most of the work is done once.

A chunk is what stands between two spaces: "bakery.", say. Its ids are kept as bytes, 8 an id: to join the bytes of a
caption's chunks, and of a batch's rows, costs a fraction of joining lists.
"""

from array import array
from collections.abc import Callable, Iterable

ID = 8  # bytes of an id, an int64
_KEPT, _KEPT_LENGTH = 1 << 18, 64  # chunks remembered at most (some 50 MB), and the longest one worth remembering


class Apart(Exception):  # noqa: N818 -- no error: the caption is read another way
    """A chunk whose ids depend on what stands beside it."""


class Chunks(dict[str, bytes]):
    """The ids of every chunk looked up before; of another one, what `ids_of` says."""

    def __init__(self, ids_of: Callable[[str], bytes]) -> None:
        super().__init__()
        self._ids_of = ids_of

    def __missing__(self, chunk: str) -> bytes:
        found = self._ids_of(chunk)
        if len(chunk) <= _KEPT_LENGTH and len(self) < _KEPT:
            self[chunk] = found
        return found


def packed(ids: Iterable[int]) -> bytes:
    """Ids as bytes of int64, as this machine orders them."""
    return array("q", ids).tobytes()
