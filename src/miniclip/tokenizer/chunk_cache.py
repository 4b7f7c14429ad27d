"""Cache of the ids of chunks: captions repeat their words, so most of the work is done once.

A chunk is the text between two spaces, such as "bakery.". Its ids are stored as bytes, because joining bytes costs a
fraction of joining lists.
"""

from array import array
from collections.abc import Callable, Iterable

BYTES_PER_ID = 8  # int64
MAX_CHUNKS = 1 << 18  # some 50 MB
MAX_CHUNK_LENGTH = 64  # longer chunks are not cached


class ContextDependent(Exception):  # noqa: N818 -- not an error: the whole caption is encoded instead
    """Raised for a chunk whose ids depend on the text around it."""


class ChunkCache(dict[str, bytes]):
    """Dictionary from chunks to their packed ids; a missing chunk is encoded by `encode_chunk`."""

    def __init__(self, encode_chunk: Callable[[str], bytes]) -> None:
        super().__init__()
        self._encode_chunk = encode_chunk

    def __missing__(self, chunk: str) -> bytes:
        ids = self._encode_chunk(chunk)
        if len(chunk) <= MAX_CHUNK_LENGTH and len(self) < MAX_CHUNKS:
            self[chunk] = ids
        return ids


def pack_ids(ids: Iterable[int]) -> bytes:
    """Return ids as the bytes of int64 numbers in native order."""
    return array("q", ids).tobytes()
