"""Index of images: built from a folder or a dataset, updated, and searched.

Letters: N images, E embedding.
"""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image

from miniclip.data.decoding import open_image
from miniclip.errors import UnreadableError
from miniclip.hub.loading import load
from miniclip.inference.fingerprint import model_fingerprint
from miniclip.inference.images import check_options
from miniclip.inference.model import CLIPModel
from miniclip.search.snapshot import Item, Snapshot, require_index
from miniclip.search.sources import DataSource, FolderSource, default_path, open_source
from miniclip.search.store import FileState, Store
from miniclip.search.updating import Report, Update, UpdateOptions
from miniclip.search.walking import Listed, Listing, walk
from miniclip.utils.checks import did_you_mean, whole_number
from miniclip.utils.items import describe

MAX_NAMED = 10  # images that a warning names

PathInput: TypeAlias = str | Path


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
        self._source: FolderSource | DataSource | None = None
        self.snapshot: Snapshot = self._store.snapshot()
        if model is not None:
            require_model(model)
            self._require_same(model)
            self._model = model

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
        options = UpdateOptions(whole_number("batch_size", batch_size, 1), num_workers, progress, retry)
        check_options(num_workers, "skip")
        index = update_index(model, source, path, options, device)
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
        if self._model is None:
            name = self.snapshot.settings["model"]
            if not name:
                raise ValueError(f"{self.path}: does not record its model; pass it: Index.open(path, model)")
            model = load(name, dtype=self.snapshot.settings["dtype"])  # type: ignore[arg-type]
            self._require_same(model)
            self._model = model
        return self._model

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
            return open_image(path)
        if self._source is None:
            self._source = open_source(self.snapshot.settings["source"])
            self._keys = {name: listed.key for name, listed in self._source.list().images.items()}
        if item.name not in self._keys:
            raise UnreadableError(item.name, f"is not in {self.snapshot.settings['source']} any more")
        image = self._source.open(self._keys[item.name])
        return image if isinstance(image, Image.Image) else open_image(image, item.name)

    def add(self, images: PathInput | Iterable[PathInput]) -> None:
        """Encode image files and add them; those outside of the index's folder stay until they are deleted.

        Args:
            images: paths of files and folders.

        Raises:
            FileNotFoundError: a path does not exist; nothing is added.
        """
        inside, outside = _added(images, self.snapshot.settings["root"])
        self.report = Report()
        with self._store.writing() as writer:
            for files, is_added in ((inside, False), (outside, True)):
                source = FolderSource(self.path)
                update = Update(writer, self.model, source, UpdateOptions(), is_added)
                report = update.run(files, ())
                self.report = self.report + report
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
        """Replace the snapshot by the index of this moment."""
        self.snapshot = self._store.snapshot()

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
            name = path if path in names else by_path.get(str(Path(path).absolute()))
            if name is None:
                raise ValueError(f"{path}: is not in the index {self.path}{did_you_mean(path, sorted(names))}")
            found.append(name)
        return list(dict.fromkeys(found))

    def _require_same(self, model: CLIPModel) -> None:
        require_fingerprint(self.path, self.snapshot.settings, model)


def require_model(model: Any) -> None:
    """Raise TypeError unless a model has both towers and its preprocessing."""
    if not isinstance(model, CLIPModel):
        raise TypeError(f"model: found {describe(model)}; expected a CLIPModel, as miniclip.load(name) returns")


def require_fingerprint(path: Path, settings: dict[str, str], model: CLIPModel) -> None:
    """Raise ValueError if an index was built with another model."""
    if model_fingerprint(model) != settings["fingerprint"]:
        built = f"{settings['model']} as it was then" if settings["model"] else "one whose place is not recorded"
        raise ValueError(
            f"{path}: was built with another model: {built}; its vectors cannot be compared with those of "
            f"{model.source or 'this one'}: use the same model, or build an index of its own in another directory"
        )


def update_index(
    model: CLIPModel | PathInput, source: PathInput, path: PathInput | None, options: UpdateOptions, device: Any = None
) -> Index:
    """Build an index or update it, as `Index.build`, without a warning about unreadable images."""
    opened = open_source(source)
    store = Store(Path(default_path(source) if path is None else path).expanduser())
    _require_target(store, opened)
    listing = opened.list()
    if isinstance(model, str | os.PathLike):
        model = load(model, device=device)
    require_model(model)
    if not store.exists:
        if not listing.images:
            raise ValueError(f"{opened.spec}: holds no images")
        settings = {"model": model.source or "", "dtype": str(next(model.parameters()).dtype).removeprefix("torch.")}
        settings |= {"fingerprint": model_fingerprint(model), **_source_settings(opened)}
        store.create(model.config.embed_dim, settings)
    with store.writing() as writer:
        require_fingerprint(store.path, writer.settings, model)
        _require_source(writer.settings, opened, store.path)
        writer.set(**_source_settings(opened))
        update = Update(writer, model, opened, options)
        gone = _gone(update, listing)
        if not listing.images and len(gone) == len(update.known) > 0:
            raise ValueError(
                f"{opened.spec}: holds no images, and {store.path} has {len(gone):,}: is a disk not mounted? To begin "
                "again, delete the index"
            )
        report = update.run(listing, gone)
    index = Index(store.path)
    index._model, index.report = model, report
    return index


def _gone(update: Update, listing: Listing) -> list[str]:
    """Return the items whose files do not exist; files that were added stay in the listing while they exist."""
    folders = tuple(name for name in listing.problems if not name or name.endswith("/"))
    gone = []
    for name, known in update.known.items():
        if name in listing.images or name.startswith(folders):
            continue
        if known.added and (listed := _listed(Path(name))) is not None:
            listing.images[name] = listed
        else:
            gone.append(name)
    return gone


def _added(images: PathInput | Iterable[PathInput], root: str) -> tuple[Listing, Listing]:
    """Return the files at some paths: those in a folder, by their relative names, and others, by their paths."""
    inside, outside = Listing({}, {}), Listing({}, {})
    for given in [images] if isinstance(images, str | os.PathLike) else list(images):
        path = Path(given).absolute()
        if not path.exists():
            raise FileNotFoundError(f"{given}: does not exist")
        below = walk(path) if path.is_dir() else Listing({"": Listed(path, None)}, {})
        for listed in below.images.values():
            file = Path(str(listed.key))
            if root and file.is_relative_to(root):
                inside.images[file.relative_to(root).as_posix()] = _listed(file) or listed
            else:
                outside.images[str(file)] = _listed(file) or listed
        outside.problems.update({str(path / name): reason for name, reason in below.problems.items()})
    return inside, outside


def _listed(path: Path) -> Listed | None:
    """Return a file with its state, or None if it does not exist."""
    try:
        status = path.stat()
    except OSError:
        return None
    return Listed(path, FileState(status.st_size, status.st_mtime_ns, True))


def _source_settings(source: FolderSource | DataSource) -> dict[str, str]:
    root = str(source.root) if isinstance(source, FolderSource) else ""
    return {"source": source.spec, "root": root}


def _require_source(settings: dict[str, str], source: FolderSource | DataSource, path: Path) -> None:
    """Raise ValueError if an index is of another source that still exists; a folder can be moved."""
    recorded = settings["source"]
    if recorded == source.spec:
        return
    place = Path(recorded.partition("?")[0])
    if place.exists() or recorded == "shapes" or bool(settings["root"]) != isinstance(source, FolderSource):
        raise ValueError(
            f"{path}: is the index of {recorded}, not of {source.spec}, whose images would replace it: choose another "
            "directory for it"
        )


def _require_target(store: Store, source: FolderSource | DataSource) -> None:
    """Check that an index can be written to a directory."""
    path = store.path
    if isinstance(source, FolderSource) and source.root.is_relative_to(path.resolve()):
        raise ValueError(f"{path}: holds the images themselves; choose another directory for the index")
    if store.exists:
        require_index(path)
        if not os.access(path, os.W_OK):
            raise PermissionError(f"{path}: this user may not write there; choose another directory")
        return
    store.require_free()
    place = next(place for place in (path, *path.parents) if place.exists())
    if not place.is_dir():
        raise FileExistsError(f"{place}: is a file; an index is a directory: choose another name")
    if not os.access(place, os.W_OK):
        raise PermissionError(f"{place}: this user may not write there; choose another directory")


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
