"""Update of an index: what its source has in addition is encoded, what it lacks is removed, the rest stays."""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Iterable
from contextlib import closing
from dataclasses import dataclass, field, fields
from typing import Any, NamedTuple

import torch
from torch import Tensor

from miniclip.inference.batching import progress_bar
from miniclip.inference.images import count_workers, embed_batch, read_ahead
from miniclip.losses.reference import l2_normalize
from miniclip.search.store import Facts, FileState, Writer
from miniclip.search.updating.reading import ReadImage, read_image
from miniclip.search.updating.sources import Source
from miniclip.search.updating.walking import Listed, Listing

COMMIT_SECONDS = 2.0  # at most this much work is lost if the process is killed


@dataclass
class Report:
    """Counts of an update.

    Attributes:
        added: new images.
        updated: images whose content has changed.
        renamed: images whose file has another name or place now.
        removed: images whose file does not exist any more, or cannot be read any more.
        unchanged: images that stayed as they were.
        duplicates: images among the added ones whose content another image has too; they were not encoded.
        encoded: images that the model encoded.
        unreadable: why images of this update cannot be read, by name.
        remembered: number of unreadable files of earlier updates that have not changed and were not tried again.
        seconds: duration of the update.
    """

    added: int = 0
    updated: int = 0
    renamed: int = 0
    removed: int = 0
    unchanged: int = 0
    duplicates: int = 0
    encoded: int = 0
    unreadable: dict[str, str] = field(default_factory=dict)
    remembered: int = 0
    seconds: float = 0.0

    def __add__(self, other: Report) -> Report:
        values = {item.name: getattr(self, item.name) for item in fields(self)}
        unreadable = self.unreadable | other.unreadable
        counts = {name: value + getattr(other, name) for name, value in values.items() if name != "unreadable"}
        return Report(**counts, unreadable=unreadable)


class UpdateOptions(NamedTuple):
    """Options of an update; `Index.build` documents them."""

    batch_size: int = 64
    num_workers: int | None = None
    progress: bool = False
    retry: bool = False


class Known(NamedTuple):
    """Image of the index before the update."""

    row: int
    state: FileState
    sha256: bytes
    added: bool


class Vector(NamedTuple):
    """Row and size of a content that the index has."""

    row: int
    width: int
    height: int


class Update:
    """One update of an index.

    Args:
        writer: of the index.
        model: a CLIPModel.
        source: the images.
        options: batch size, threads, progress.
        is_added: whether the images are outside of the index's source.
    """

    def __init__(
        self, writer: Writer, model: Any, source: Source, options: UpdateOptions, is_added: bool = False
    ) -> None:
        self.writer, self.model, self.source, self.options, self.is_added = writer, model, source, options, is_added
        self.report = Report()
        self.known: dict[str, Known] = {}
        self._vectors: dict[bytes, Vector | None] = {}  # by digest; None: not encoded yet
        self._broken: dict[bytes, ReadImage] = {}  # by digest: contents that cannot be decoded
        self._claims = threading.Lock()
        self._waiting: dict[bytes, list[ReadImage]] = defaultdict(list)  # for the pixels of the same content
        self._gone: dict[bytes, list[str]] = defaultdict(list)
        self._committed = time.monotonic()
        for name, row, size, mtime_ns, certain, sha256, width, height, added in writer.query(
            "SELECT name, row, size, mtime_ns, certain, sha256, width, height, added FROM items"
        ):
            self.known[name] = Known(row, FileState(size, mtime_ns, bool(certain)), sha256, bool(added))
            self._vectors[sha256] = Vector(row, width, height)
        self._failures = {
            name: FileState(size, mtime_ns, bool(certain))
            for name, size, mtime_ns, certain in writer.query("SELECT name, size, mtime_ns, certain FROM failures")
        }

    def run(self, listing: Listing, removed: Iterable[str], is_whole: bool = True) -> Report:
        """Encode the images of a listing that are new or have changed; remove others.

        Args:
            listing: the images.
            removed: names of items to remove, unless a new image has their content.
            is_whole: whether the listing has all images of the source.
        """
        started = time.monotonic()
        gone = set(removed)
        for name in sorted(gone, reverse=True):
            self._gone[self.known[name].sha256].append(name)
        for name, reason in listing.problems.items():
            self.report.unreadable[name] = reason
        self._encode({name: image for name, image in listing.images.items() if self._must_read(name, image)})
        left = [name for names in self._gone.values() for name in names]
        self.writer.remove(left)
        self.report.removed += len(left)
        if is_whole:
            self.writer.remove(name for name in self._failures if name not in listing.images)
        self.writer.compact()
        self.report.seconds = time.monotonic() - started
        return self.report

    def _must_read(self, name: str, image: Listed) -> bool:
        """Return whether an image is new, or may have changed."""
        if image.state is not None:
            if name in self.known and _is_same(self.known[name].state, image.state):
                self.report.unchanged += 1
                return False
            if name in self._failures and _is_same(self._failures[name], image.state) and not self.options.retry:
                self.report.remembered += 1
                return False
        return True

    def _encode(self, images: dict[str, Listed]) -> None:
        """Read images in threads, and encode those whose content is new."""
        names, keys = list(images), [image.key for image in images.values()]

        def read(index: int) -> ReadImage:
            return read_image(names[index], lambda: self.source.open(keys[index]), self.model.preprocess, self._claim)

        workers = count_workers(self.options.num_workers, len(names))
        results = read_ahead(read, len(names), self.options.batch_size, workers)
        launched: tuple[list[ReadImage], Tensor | None] | None = None
        with progress_bar(len(names), " images", self.options.progress) as advance, closing(results):
            for batch in results:
                following = batch, self._embed(batch)
                if launched is not None:  # a GPU computes the next batch meanwhile
                    self._take(*launched)
                    advance(len(launched[0]))
                launched = following
            if launched is not None:
                self._take(*launched)
                advance(len(launched[0]))

    def _claim(self, digest: bytes) -> bool:
        """Return whether the caller must decode a content; others wait for its vector."""
        with self._claims:
            is_new = digest not in self._vectors
            if is_new:
                self._vectors[digest] = None
            return is_new

    def _embed(self, batch: list[ReadImage]) -> Tensor | None:
        """Embed the new contents of a batch: (n, E) unit vectors; a GPU may still compute them."""
        pixels = [image.pixels for image in batch if image.pixels is not None]
        if not pixels:
            return None
        pinned = self.model.device.type == "cuda"  # copied to the GPU while it computes
        stacked = torch.empty((len(pixels), *pixels[0].shape), dtype=torch.uint8, device="cpu", pin_memory=pinned)
        torch.stack(pixels, out=stacked)
        with torch.no_grad():
            return l2_normalize(embed_batch(self.model, self.model.preprocess, stacked))

    def _take(self, batch: list[ReadImage], vectors: Tensor | None) -> None:
        """Store all images of a batch, and those that waited for their content."""
        if vectors is not None:
            self._append([image for image in batch if image.pixels is not None], vectors.cpu())
        for image in batch:
            if image.reason is not None:
                self._broken[image.sha256] = image
                self._fail(image)
            elif image.sha256 in self._broken:
                self._fail(_broken_like(self._broken[image.sha256], image))
            elif self._vectors[image.sha256] is None:
                self._waiting[image.sha256].append(image)
            else:
                self._store(image, is_encoded=image.pixels is not None)
        for image in batch:
            if image.pixels is not None or image.reason is not None:
                for waiting in self._waiting.pop(image.sha256, []):
                    if image.reason is None:
                        self._store(waiting, is_encoded=False)
                    else:
                        self._fail(_broken_like(image, waiting))
        if time.monotonic() - self._committed >= COMMIT_SECONDS:
            self.writer.commit()
            self._committed = time.monotonic()

    def _append(self, images: list[ReadImage], vectors: Tensor) -> None:
        """Append the vectors of images to the index."""
        if not torch.isfinite(vectors).all():
            index = int((~torch.isfinite(vectors)).any(dim=1).nonzero()[0])
            raise ValueError(
                f"{images[index].name}: the model's embedding is not finite: use weights of another dtype, such as "
                "float32, or another model"
            )
        first = self.writer.append(vectors.numpy())
        for row, image in enumerate(images, first):
            width, height = image.size or (0, 0)
            self._vectors[image.sha256] = Vector(row, width, height)
        self.report.encoded += len(images)

    def _store(self, image: ReadImage, is_encoded: bool) -> None:
        """Store an image whose vector is in the index."""
        vector, known = self._vectors[image.sha256], self.known.get(image.name)
        assert vector is not None
        gone = self._gone.get(image.sha256)
        if gone and image.name in gone:  # its file came back
            gone.remove(image.name)
        if known is None and gone:
            self.writer.rename(gone.pop(), image.name, image.state)
            self.report.renamed += 1
            return
        facts = Facts(image.state, image.sha256, vector.width, vector.height)
        self.writer.put(image.name, vector.row, facts, self.is_added if known is None else known.added)
        if known is None:
            self.report.added += 1
            self.report.duplicates += not is_encoded
        elif known.sha256 == image.sha256:
            self.report.unchanged += 1
        else:
            self.report.updated += 1

    def _fail(self, image: ReadImage) -> None:
        """Record an image that cannot be read, and remove its item; forget one that does not exist any more."""
        self.report.removed += image.name in self.known
        if image.is_missing:
            self.writer.remove([image.name])
            return
        reason = str(image.reason)
        self.report.unreadable[image.name] = reason
        self.writer.fail(image.name, image.state, reason)


def _broken_like(broken: ReadImage, image: ReadImage) -> ReadImage:
    """Return an image with the reason of one of the same content; tried again if that one is."""
    certain = image.state.certain and broken.state.certain
    return image._replace(reason=broken.reason, state=image.state._replace(certain=certain))


def _is_same(old: FileState, new: FileState) -> bool:
    """Return whether a file has its old content for certain, by its size and time."""
    return old.certain and (old.size, old.mtime_ns) == (new.size, new.mtime_ns)
