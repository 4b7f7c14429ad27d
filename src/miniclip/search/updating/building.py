"""Building of an index: checks of the target, the source and the model before the work, then an update."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from miniclip.hub.loading import load
from miniclip.inference.fingerprint import model_fingerprint
from miniclip.inference.images import check_options
from miniclip.inference.model import CLIPModel
from miniclip.search.snapshot import require_index
from miniclip.search.store import FileState, Store
from miniclip.search.updating.sources import DataSource, FolderSource, default_path, open_source
from miniclip.search.updating.update import Report, Update, UpdateOptions
from miniclip.search.updating.walking import Listed, Listing, walk
from miniclip.utils.checks import whole_number
from miniclip.utils.items import describe

PathInput: TypeAlias = str | Path


class Built(NamedTuple):
    """Result of a build.

    Attributes:
        path: directory of the index.
        model: the model.
        report: counts.
    """

    path: Path
    model: CLIPModel
    report: Report


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
) -> Built:
    """Build an index or update it; `Index.build` has the arguments and the errors."""
    whole_number("batch_size", options.batch_size, 1)
    check_options(options.num_workers, "skip")
    images, listing, fingerprint = open_source(source), None, ""
    store = Store(Path(default_path(source) if path is None else path).expanduser())
    _require_target(store, images)
    if not store.exists:
        listing = images.list()
        if not listing.images:
            raise ValueError(f"{images.spec}: holds no images{_first_problem(listing)}")
        model = _loaded(model, device)
        fingerprint = model_fingerprint(model)
        settings = {"fingerprint": fingerprint, **_model_settings(model), **_source_settings(images)}
        store.create(model.config.embed_dim, settings)
    with store.writing() as writer:
        _require_source(writer.settings, images, store.path)
        model = _loaded(model, device)
        if writer.settings["fingerprint"] != fingerprint:  # else this call has created the index
            require_fingerprint(store.path, writer.settings, model)
        writer.set(**_source_settings(images), **(_model_settings(model) if model.source else {}))  # both can move
        update = Update(writer, model, images, options)
        listing = listing or images.list()
        gone = _gone(update, listing, images)
        if not listing.images and len(gone) == len(update.known) > 0:
            raise ValueError(
                f"{images.spec}: holds no images, and {store.path} has {len(gone):,}: is a disk not mounted? To begin "
                "again, delete the index"
            )
        report = update.run(listing, gone)
    return Built(store.path, model, report)


def add_images(store: Store, model: CLIPModel, images: PathInput | Iterable[PathInput], root: str) -> Report:
    """Add image files to an index; `Index.add` has the arguments and the errors."""
    inside, outside = _added(images, root)
    report = Report()
    with store.writing() as writer:
        for files, is_added in ((inside, False), (outside, True)):
            update = Update(writer, model, FolderSource(store.path), UpdateOptions(retry=True), is_added)
            report = report + update.run(files, (), is_whole=False)
    return report


def recorded(path: PathInput) -> tuple[str, str]:
    """Return the model and the source that an index records.

    Raises:
        ValueError: the path is not an index, or it does not record its model.
        BlockingIOError: another process is writing.
    """
    if not Store(path).exists and Path(path).exists():
        raise ValueError(f"{path}: is not an index; to build one, give a model before it: miniclip index MODEL {path}")
    with Store(Path(path).expanduser()).writing() as writer:  # a snapshot would copy the database
        settings = writer.settings
    if not settings["model"]:
        raise ValueError(f"{path}: does not record its model; give it: miniclip index MODEL SOURCE -o {path}")
    return settings["model"], settings["source"]


def _loaded(model: CLIPModel | PathInput, device: Any) -> CLIPModel:
    if isinstance(model, str | os.PathLike):
        return load(model, device=device)
    require_model(model)
    return model


def _first_problem(listing: Listing) -> str:
    return next((f"; {name or 'the folder'}: {reason}" for name, reason in listing.problems.items()), "")


def _gone(update: Update, listing: Listing, source: FolderSource | DataSource) -> list[str]:
    """Return the items whose files do not exist; files that were added stay in the listing while they exist.

    Images in a folder or a shard that cannot be read are kept.
    """
    for link in listing.broken_links:
        if any(name.startswith(link) for name in update.known):  # a disk may not be mounted
            listing.problems[link] = "is a link to a folder that does not exist"
    if isinstance(source, FolderSource):
        folders = tuple(name for name in listing.problems if not name or name.endswith("/"))
    else:
        folders = tuple(name + end for name in listing.problems for end in (": ", ", "))
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
    inside, outside = Listing({}, {}, []), Listing({}, {}, [])
    for given in [images] if isinstance(images, str | os.PathLike) else list(images):
        path = place_of(given, root)
        if not path.exists():
            raise FileNotFoundError(f"{given}: does not exist")
        below = walk(path) if path.is_dir() else Listing({"": Listed(path, None)}, {}, [])
        for listed in below.images.values():
            file = Path(str(listed.key))
            if root and file.is_relative_to(root):
                inside.images[file.relative_to(root).as_posix()] = _listed(file) or listed
            else:
                outside.images[str(file)] = _listed(file) or listed
        outside.problems.update({str(path / name): reason for name, reason in below.problems.items()})
    return inside, outside


def place_of(given: PathInput, root: str) -> Path:
    """Return the absolute path of a file or folder; below the indexed folder also if links or `..` lead there."""
    path = Path(given).absolute()
    is_plain = ".." not in path.parts
    if is_plain and root and path.is_relative_to(root):
        return path  # a link inside of the folder keeps its name, as in `walk`
    resolved = path.resolve() if path.is_dir() else path.parent.resolve() / path.name
    return resolved if not is_plain or (root and resolved.is_relative_to(root)) else path


def _listed(path: Path) -> Listed | None:
    """Return a file with its state, or None if it does not exist."""
    state = FileState.find(path)
    return None if state is None else Listed(path, state)


def _model_settings(model: CLIPModel) -> dict[str, str]:
    return {"model": model.source or "", "dtype": str(next(model.parameters()).dtype).removeprefix("torch.")}


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
