"""Search in one's own images: an index of embeddings on disk, and searches in it."""

from miniclip.search.index import Index
from miniclip.search.snapshot import Hit, Item, Snapshot

__all__ = ["Hit", "Index", "Item", "Snapshot"]
