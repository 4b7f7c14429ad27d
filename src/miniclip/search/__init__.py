"""Search in one's own images: an index of embeddings on disk, and searches in it."""

from miniclip.search.duplicates import DuplicateGroup
from miniclip.search.filters import Filter
from miniclip.search.index import Index
from miniclip.search.queries import Query, Term
from miniclip.search.snapshot import Hit, Item, Snapshot

__all__ = ["DuplicateGroup", "Filter", "Hit", "Index", "Item", "Query", "Snapshot", "Term"]
