"""Embeddings of a source in parts, from the first item that is not finished. Letters: n rows of a part, E embedding."""

from __future__ import annotations

import hashlib
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing
from itertools import islice
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

from miniclip.embedding.images import DatasetImages, FolderImages
from miniclip.embedding.partial import Partial, start_over
from miniclip.embedding.texts import Texts
from miniclip.inference.images import ImageReader, embed_batch
from miniclip.inference.texts import embed_texts

TEXTS = 2048  # texts of a part: `encode_text` sorts them by length

Items: TypeAlias = Texts | FolderImages | DatasetImages
Parts = Generator["Part", None, None]


class Part(NamedTuple):
    """Consecutive items of a source.

    Attributes:
        vectors: (n, E) float32, not normalized.
        names: of the n rows.
        identities: of all items, skipped ones included; they differ if the source has changed.
        skipped: name and reason of each image that was left out.
    """

    vectors: Tensor
    names: list[str]
    identities: list[str]
    skipped: dict[str, str]


class Rest(Sequence[Any]):
    """Images from an index on, whose identities are noted when they are read.

    Attributes:
        identities: by index in the source.
    """

    def __init__(self, items: FolderImages | DatasetImages, start: int) -> None:
        self.items, self.start = items, start
        self.identities: dict[int, str] = {}

    def __len__(self) -> int:
        return len(self.items) - self.start

    def __getitem__(self, index: Any) -> Any:
        """Return an image's path, its bytes, or the image."""
        self.identities[self.start + index] = self.items.identity(self.start + index)
        return self.items[self.start + index]


def require_same_items(partial: Partial, items: Items, identities: Iterator[str], advice: str | None = None) -> None:
    """Check that the finished items of an earlier run are the first of the source.

    Args:
        partial: the earlier run.
        items: the source.
        identities: of its items; those of the finished ones are consumed.
        advice: of the message; None: to start over with `overwrite`.

    Raises:
        ValueError: an item has changed, was added or removed.
    """
    done = 0
    for chunk in partial.chunks:
        if digest_of(items, islice(identities, chunk.items), done + chunk.items) != chunk.digest:
            raise ValueError(
                f"{partial.folder}: the source has changed since it was begun (items {done + 1:,} to "
                f"{done + chunk.items:,}); {advice or start_over()}"
            )
        done += chunk.items


def digest_of(items: Items, identities: Iterable[str], end: int) -> str:
    """Return a digest of the items of a source before `end`: their identities, and the last one's content.

    Images of two datasets can have the same names, "image 7".
    """
    digest = hashlib.sha256()
    for identity in identities:
        digest.update(identity.encode("utf-8", "surrogatepass") + b"\0")
    if isinstance(items, DatasetImages):
        digest.update(items.content(end - 1).encode())
    return digest.hexdigest()[:32]


def image_parts(
    model: Any, items: FolderImages | DatasetImages, start: int, batch_size: int, num_workers: int | None
) -> Parts:
    """Yield the batches of the images from `start` on. Images that cannot be read are in `skipped`."""
    rest = Rest(items, start)
    pinned = model.device.type == "cuda"
    reader = ImageReader(rest, model.preprocess, batch_size, num_workers=num_workers, on_error="skip", pinned=pinned)
    with closing(reader.batches()) as batches:
        for batch in batches:
            indices = range(start, min(start + batch_size, len(items)))
            failed = sorted(set(range(len(indices))) - set(batch.indices))
            reasons = reader.failed[len(reader.failed) - len(failed) :]
            skipped = dict(_named(items, indices[place], text) for place, text in zip(failed, reasons, strict=True))
            with torch.no_grad():
                vectors = embed_batch(model, model.preprocess, batch.pixels) if batch.indices else torch.zeros(0, 1)
            names = [items.name(indices[place]) for place in batch.indices]
            yield Part(vectors, names, [rest.identities.pop(index) for index in indices], skipped)
            start = indices.stop


def text_parts(model: Any, texts: Iterator[str], batch_size: int) -> Parts:
    """Yield the texts of an iterator in parts of `TEXTS`."""
    while block := list(islice(texts, TEXTS)):
        with torch.no_grad():
            vectors = embed_texts(model, model.tokenizer, block, batch_size)
        yield Part(vectors, block, block, {})


def _named(items: FolderImages | DatasetImages, index: int, message: str) -> tuple[str, str]:
    """Return the name of an image and the reason why it cannot be read, without the reader's name of it."""
    name, item = items.name(index), items[index] if isinstance(items, FolderImages) else ""
    for prefix in (f"image {index}: ", f"{item}: ", f"{name}: "):
        message = message.removeprefix(prefix)
    return name, message
