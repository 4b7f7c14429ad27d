"""Embeddings of images and texts in files: any number of them, in constant memory, resumable."""

from miniclip.embedding.writing import Embedded, embed

__all__ = ["Embedded", "embed"]
