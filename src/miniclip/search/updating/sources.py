"""Sources of images: a folder, whose files are listed, or a dataset in any layout of the library."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Protocol

from PIL import Image

from miniclip.data.cache.reading import CachedDataset
from miniclip.data.dataset import file_of, image_of, names_of
from miniclip.data.given import Concatenation
from miniclip.data.opening import absolute_spec, open_data, parse_spec, spec_name
from miniclip.errors import DataError
from miniclip.search.store import FileState
from miniclip.search.updating.walking import Listed, Listing, image_suffixes, walk

EXAMPLES = (".jpg", ".png", ".webp")


class Source(Protocol):
    """Images with names."""

    spec: str

    def list(self) -> Listing:
        """List the images."""

    def open(self, key: Path | int) -> Path | bytes | Image.Image:
        """Return the file, the bytes or the pixels of an image."""


class FolderSource:
    """Image files at and below a folder.

    Args:
        root: the folder.
    """

    def __init__(self, root: Path) -> None:
        self.root, self.spec = root, str(root)

    def list(self) -> Listing:
        """List the files."""
        return walk(self.root)

    def open(self, key: Path | int) -> Path:
        """Return the path of a file."""
        return Path(str(key))


class DataSource:
    """Images of a dataset. Those that are files have their state, others are compared by content.

    Args:
        data: the dataset.
        spec: of `open_data`.
    """

    def __init__(self, data: Any, spec: str) -> None:
        self.data, self.spec = data, spec

    def list(self) -> Listing:
        """List the images by their names in the dataset."""
        paths = getattr(self.data, "paths", None) or [None] * len(self.data)
        images = {
            name: Listed(index, FileState.find(path) if isinstance(path, Path) else None)
            for index, (name, path) in enumerate(zip(names_of(self.data), paths, strict=True))
        }
        return Listing(images, dict(getattr(getattr(self.data, "skip_log", None), "reasons", {})), [])

    def open(self, key: Path | int) -> Path | bytes | Image.Image:
        """Return the file, the bytes or the pixels of an image."""
        if isinstance(key, Path):
            return key
        file = file_of(self.data, key)
        return image_of(self.data, key) if file is None else file


def open_source(spec: str | Path) -> FolderSource | DataSource:
    """Open a folder of images, or a dataset.

    A folder is searched for image files. If it has none, or a layout or columns follow a question mark, it is opened as
    a dataset, as are tables, tars, parquet files and caches.

    Raises:
        FileNotFoundError: the path does not exist.
        ValueError: it is an image.
        DataError: it holds no images.
    """
    text = str(spec)
    if text == "shapes" or "://" in text:
        return DataSource(open_data(text, "train"), text)
    path, columns, layout = parse_spec(text)
    if layout is not None or any(columns):
        return DataSource(_open_dataset(path, absolute_spec(text)), absolute_spec(text))
    if path.is_file() and path.suffix.lower() in image_suffixes():
        raise ValueError(f"{path}: is an image; expected the folder of images: {path.parent}")
    if path.is_dir() and not CachedDataset.is_cache(path) and (_holds_images(path) or not any(path.iterdir())):
        return FolderSource(path.resolve())
    try:
        return DataSource(_open_dataset(path, absolute_spec(text)), absolute_spec(text))
    except DataError as error:
        if not path.is_dir():
            raise
        reason = str(error).partition("; searched for")[0].removeprefix(f"{path.absolute()}: ")
        raise DataError(f"{path}: holds no image files ({', '.join(EXAMPLES)}, …); as a dataset: {reason}") from error


def _open_dataset(path: Path, spec: str) -> Any:
    """Open all splits of a dataset."""
    if not CachedDataset.is_cache(path):
        return open_data(spec, "all", on_error="skip", max_skip_fraction=1.0)
    parts: list[Any] = CachedDataset.open_all(path)
    return parts[0] if len(parts) == 1 else Concatenation(parts)


def _holds_images(root: Path) -> bool:
    """Return whether an image file is at or below a folder."""
    suffixes = image_suffixes()
    for _, folders, names in os.walk(root):
        folders[:] = [name for name in folders if not name.startswith(".")]
        if any(os.path.splitext(name)[1].lower() in suffixes for name in names if name[0] != "."):  # noqa: PTH122
            return True
    return bool(walk(root).images)  # behind links to folders


def default_path(spec: str | Path) -> Path:
    """Return the directory of an index beside its source: `photos.index` for `photos`."""
    text = str(spec)
    if text == "shapes":
        return Path("shapes.index")
    path, columns, layout = parse_spec(text)
    path = path.absolute()
    name = path.name if layout is None and not any(columns) and path.name else spec_name(text)
    return path.with_name(f"{name}.index")
