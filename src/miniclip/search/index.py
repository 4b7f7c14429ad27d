"""Index of images: built from a folder or a dataset, updated, and searched.

Letters: N images, E embedding.
"""

from __future__ import annotations

import os
import threading
import time
import warnings
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image

from miniclip.errors import UnreadableError
from miniclip.hub.loading import load
from miniclip.inference.model import CLIPModel
from miniclip.inference.zero_shot import Template
from miniclip.search.duplicates import DuplicateGroup, find_duplicates
from miniclip.search.filters import Filter
from miniclip.search.queries import Query
from miniclip.search.searching import SnapshotSearch, is_vector
from miniclip.search.snapshot import Hit, Item, Snapshot
from miniclip.search.store import Store
from miniclip.search.updating.building import (
    PathInput,
    add_images,
    place_of,
    require_fingerprint,
    require_model,
    update_index,
)
from miniclip.search.updating.reading import open_decoded
from miniclip.search.updating.sources import DataSource, FolderSource, open_source
from miniclip.search.updating.update import Report, UpdateOptions
from miniclip.utils.checks import did_you_mean

MAX_NAMED = 10  # images that a warning names


class Index:
    """Embeddings of images on disk, and searches in them. Threads may share it.

    An index is a directory. Searches use a snapshot of it: updates by other processes take effect after `refresh`.

    Args:
        path: the directory.
        model: the model that it was built with; None: load it by its recorded name or path when
            it is needed.

    Attributes:
        path: absolute path of the directory.
        report: counts of the last `build`, `add` or `remove` of this object.
    """

    def __init__(self, path: PathInput, model: CLIPModel | None = None) -> None:
        self.path, self.report = Path(path).expanduser().absolute(), Report()
        self._store = Store(self.path)
        self._model: CLIPModel | None = None
        self._dataset: tuple[FolderSource | DataSource, dict[str, Path | int]] | None = None
        self.snapshot: Snapshot = self._store.snapshot()
        self._search: SnapshotSearch | None = None
        self._lock, self._model_lock = threading.Lock(), threading.Lock()
        if model is not None:
            self.use_model(model)

    @classmethod
    def build(
        cls,
        model: CLIPModel | PathInput,
        source: PathInput,
        path: PathInput | None = None,
        *,
        batch_size: int = 64,
        num_workers: int | None = None,
        progress: bool = False,
        retry: bool = False,
        device: Any = None,
    ) -> Index:
        """Build an index of images, or update it: only new and changed images are encoded.

        A file counts as unchanged if its size and time of change are the same. Otherwise its content decides, which
        also recognises renamed and equal files: their vectors are kept. Images in archives, tables and caches are
        always compared by content. Images that the source does not have any more are removed from the index. An
        interrupted build is continued by the same call.

        Args:
            model: a CLIPModel, or a name or path for `miniclip.load`.
            source: a folder, which is searched for images; or a dataset as in `miniclip.data.open_data`.
            path: directory of the index; None: `photos.index` beside `photos`.
            batch_size: images per batch.
            num_workers: threads that read images; 0: none; None: one per core, at most 16.
            progress: show a progress bar.
            retry: try files again that could not be read before and have not changed since.
            device: of a model that is given by its name.

        Raises:
            FileNotFoundError: the source does not exist.
            FileExistsError: the path is something else than an index.
            BlockingIOError: another process is writing the index.
            ValueError: the index is of another model or source, or the source has no images.
            TypeError: the model is not a CLIPModel.
        """
        options = UpdateOptions(batch_size, num_workers, progress, retry)
        built = update_index(model, source, path, options, device)
        index = cls(built.path)
        index._model, index.report = built.model, built.report
        _warn(index.report)
        return index

    @classmethod
    def open(cls, path: PathInput, model: CLIPModel | None = None) -> Index:
        """Open an index.

        Args:
            path: its directory.
            model: the model that it was built with; None: load it when it is needed.

        Raises:
            FileNotFoundError: the path is not an index.
            DataError: the index is damaged.
            ValueError: the model is another one.
        """
        return cls(path, model)

    @property
    def model(self) -> CLIPModel:
        """Model that the index was built with.

        Raises:
            ValueError: the place of the model is not recorded, or another model is there now.
        """
        with self._model_lock:  # threads that need it at the same time load it once
            if self._model is None:
                name = self.snapshot.settings["model"]
                if not name:
                    raise ValueError(f"{self.path}: does not record its model; pass it: Index.open(path, model)")
                model = load(name, dtype=self.snapshot.settings["dtype"])  # type: ignore[arg-type]
                model = model.float()  # the same values, in the dtype that a CPU computes fast
                self._require_same(model)
                self._model = model
            return self._model

    def use_model(self, model: CLIPModel) -> None:
        """Use a model that is loaded already, instead of the recorded one.

        Raises:
            ValueError: the index was built with another model.
        """
        require_model(model)
        self._require_same(model)
        self._model = model

    def __len__(self) -> int:
        return len(self.snapshot)

    @property
    def paths(self) -> list[str]:
        """Paths of the files, or the names of images in archives and tables, in the order of `embeddings`."""
        return [self.path_of(name) for name in self.snapshot.names]

    @property
    def embeddings(self) -> npt.NDArray[np.float16]:
        """Unit vectors (N, E) in the order of `paths`; mapped from the file if they are in this order there."""
        snapshot = self.snapshot
        if len(snapshot) == len(snapshot.vectors) and (snapshot.rows == np.arange(len(snapshot))).all():
            return snapshot.vectors
        return snapshot.vectors[snapshot.rows]

    def path_of(self, item: Item | str) -> str:
        """Return the path of an item's file, or its name in an archive or a table."""
        name = item if isinstance(item, str) else item.name
        root = self.snapshot.settings["root"]
        return os.path.join(root, *name.split("/")) if root and not os.path.isabs(name) else name  # noqa: PTH117, PTH118

    def image(self, item: Item) -> Image.Image:
        """Open the image of an item, upright and RGB.

        Raises:
            DataError: it cannot be read, or does not exist any more.
        """
        path = Path(self.path_of(item))
        if path.is_absolute() and (self.snapshot.settings["root"] or path.is_file()):
            return open_decoded(path, str(path))
        with self._lock:
            if self._dataset is None:
                source = open_source(self.snapshot.settings["source"])
                self._dataset = source, {name: listed.key for name, listed in source.list().images.items()}
            source, keys = self._dataset
        if item.name not in keys:
            raise UnreadableError(item.name, f"is not in {self.snapshot.settings['source']} any more")
        return open_decoded(source.open(keys[item.name]), item.name)

    def search(
        self,
        query: Any,
        k: int | None = 10,
        *,
        where: Filter | None = None,
        threshold: float | None = None,
        templates: Template | Iterable[Template] | None = None,
        engine: Literal["exact", "faiss", "usearch"] = "exact",
    ) -> list[Hit]:
        """Find the images that are most similar to a query.

        Args:
            query: a string, as "a red bicycle", the path of an image, or a sum of both with weights, as in
                '2*beach + sunset.jpg - "people"' (`miniclip.search.queries`). A Path, a PIL image or the bytes of a
                file are an image. An array, a tensor or a list of E numbers is a vector.
            k: greatest number of images; None: all.
            where: images to search among; None: all.
            threshold: the smallest cosine similarity, -1..1; None: none.
            templates: prompts with one `{}` in place of a text, whose embeddings are averaged; None: the text itself.
            engine: "exact", or an approximate engine for many millions of images, which is built beside the index at
                its first use. It takes no filter and needs k. The extra `search` installs both.

        Returns:
            Hits, the best first.

        Raises:
            ValueError: the query or an option is wrong, or another model is now where the index's model was.
            FileNotFoundError: an image of the query does not exist.
            DataError: an image of the query cannot be read.
            TypeError: the query is something else.
        """
        if is_vector(query):
            vectors = query[None] if hasattr(query, "ndim") else [query]
        else:
            vectors = Query.of(query).vector(self.model, templates)[None]
        return self.search_vectors(vectors, k, where=where, threshold=threshold, engine=engine)[0]

    def search_vectors(
        self,
        vectors: Any,
        k: int | None = 10,
        *,
        where: Filter | None = None,
        threshold: float | None = None,
        engine: Literal["exact", "faiss", "usearch"] = "exact",
    ) -> list[list[Hit]]:
        """Find the images of several query vectors (Q, E) in one reading of the index; options as in `search`."""
        with self._lock:
            if self._search is None or self._search.snapshot is not self.snapshot:
                self._search = SnapshotSearch(self.snapshot, self.path_of, self._search)
            search = self._search
        return search.search_each(vectors, k, where, threshold, engine)

    def duplicates(self, threshold: float = 0.95, progress: bool = False) -> list[DuplicateGroup]:
        """Find groups of equal files and of similar images. The time grows with the square of the number of images.

        Args:
            threshold: the smallest cosine similarity of similar images, above 0 and at most 1; at 1, equal files only.
            progress: show a progress bar.

        Returns:
            Groups of at least two images, each with the image of the most pixels first.

        Raises:
            ValueError: the threshold is out of range.
        """
        from tqdm import tqdm

        with tqdm(total=len(self), disable=not progress, unit=" images", leave=False) as bar:
            return find_duplicates(self.snapshot, self.path_of, threshold, bar.update)

    def add(self, images: PathInput | Iterable[PathInput]) -> None:
        """Encode image files and add them; those outside of the index's folder stay until they are deleted.

        Args:
            images: paths of files and folders.

        Raises:
            FileNotFoundError: a path does not exist; nothing is added.
        """
        self.report = add_images(self._store, self.model, images, self.snapshot.settings["root"])
        self.refresh()
        _warn(self.report)

    def remove(self, paths: PathInput | Iterable[PathInput]) -> None:
        """Remove images from the index. Files that are still in its source are added by the next `build`.

        Args:
            paths: paths or names of images.

        Raises:
            ValueError: an image is not in the index; nothing is removed.
        """
        given = [paths] if isinstance(paths, str | os.PathLike) else list(paths)
        names = self._names_of([os.fspath(path) for path in given])
        started = time.monotonic()
        with self._store.writing() as writer:
            writer.remove(names)
            writer.compact()
        self.report = Report(removed=len(names), seconds=time.monotonic() - started)
        self.refresh()

    def refresh(self) -> None:
        """Replace the snapshot by the index of this moment.

        Raises:
            ValueError: it was deleted and built again with another model.
        """
        snapshot = self._store.snapshot()
        if self._model is not None and snapshot.settings["fingerprint"] != self.snapshot.settings["fingerprint"]:
            snapshot.close()
            raise ValueError(f"{self.path}: was built again with another model; open it with that model")
        self.snapshot = snapshot
        with self._lock:
            self._dataset = None  # its images can be others now

    def close(self) -> None:
        """Release the snapshot."""
        self.snapshot.close()

    def __enter__(self) -> Index:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Index({str(self.path)!r}: {len(self):,} images)"

    def _names_of(self, paths: list[str]) -> list[str]:
        """Return the names of images by their names or paths."""
        names = set(self.snapshot.names)
        by_path = {self.path_of(name): name for name in names}
        found = []
        for path in paths:
            place = place_of(path, self.snapshot.settings["root"])
            name = path if path in names else by_path.get(str(Path(path).absolute())) or by_path.get(str(place))
            if name is None:
                raise ValueError(f"{path}: is not in the index {self.path}{did_you_mean(path, sorted(names))}")
            found.append(name)
        return list(dict.fromkeys(found))

    def _require_same(self, model: CLIPModel) -> None:
        require_fingerprint(self.path, self.snapshot.settings, model)


def _warn(report: Report) -> None:
    """Warn about the images that cannot be read, if any."""
    if not report.unreadable:
        return
    named = [f"{name}: {reason}" for name, reason in list(report.unreadable.items())[:MAX_NAMED]]
    more = len(report.unreadable) - len(named)
    warnings.warn(
        f"{len(report.unreadable):,} images cannot be read and are not in the index: {'; '.join(named)}"
        + (f"; and {more:,} more" if more else ""),
        stacklevel=3,
    )
