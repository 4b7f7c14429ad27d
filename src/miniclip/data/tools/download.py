"""Download of a well-known dataset from the Hugging Face Hub.

Interrupted downloads resume, and files are checked against the Hub's checksums. Nothing is downloaded before the user
accepts the dataset's terms.
"""

from __future__ import annotations

import contextlib
import fnmatch
import os
import shutil
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

from miniclip.data.tools.known_datasets import KnownDataset, instructions, known_dataset
from miniclip.errors import DataError
from miniclip.hub.download import fetch
from miniclip.utils.option_names import option

TEMPORARY_FOLDER = ".download"  # in the dataset's folder, until the download is complete


def download(name: str, folder: str | Path, *, agree: bool = False, log: Callable[[str], object] = print) -> Path:
    """Download a dataset into a folder. Existing files stay, and an interrupted download is resumed.

    Args:
        name: key of `KNOWN_DATASETS`.
        folder: created if it is missing.
        agree: accept the terms; required.
        log: receives lines about the progress.

    Returns:
        The folder, which `open_data` reads.

    Raises:
        ValueError: the dataset is unknown or not on the Hub, or the terms are not accepted.
        OSError: the disk is full or too small.
        DataError: the archive cannot be unpacked.
        ConnectionError: the Hub cannot be reached. All other errors of `fetch` are raised too.
    """
    dataset, folder = known_dataset(name), Path(folder).expanduser()
    if not dataset.repo:
        raise ValueError(f"{name} is not on the Hub; get it from its authors:\n{instructions(name, folder)}")
    if not agree:
        accept = option("agree", True)
        raise ValueError(f"nothing was downloaded: {name} has terms, {dataset.terms}; to accept them, add {accept}")
    if folder.exists() and not folder.is_dir():
        raise FileExistsError(f"{folder}: is a file; give a folder")
    try:
        missing, snapshot = _fetch_missing(dataset, folder, log)
    except _CompleteError:
        log(f"{folder}: {name} is already complete")
        return folder
    for file in missing:
        _install(snapshot / file, _target(folder, file))
    shutil.rmtree(folder / TEMPORARY_FOLDER, ignore_errors=True)
    log(f"{folder}: {name} is complete")
    return folder


class _CompleteError(Exception):
    """All files exist."""


def _fetch_missing(dataset: KnownDataset, folder: Path, log: Callable[[str], object]) -> tuple[list[str], Path]:
    """Fetch the files that the folder does not have.

    Returns:
        Their names, and the folder of the snapshot.

    Raises:
        _CompleteError: no file is missing.
    """
    missing: list[str] = []

    def choose(listing: list[str]) -> list[str]:
        files = [file for pattern in dataset.files for file in listing if fnmatch.fnmatchcase(file, pattern)]
        missing[:] = [file for file in files if not _target(folder, file).exists()]
        if files and not missing:
            raise _CompleteError
        return missing

    if all("*" not in file and _target(folder, file).exists() for file in dataset.files):
        raise _CompleteError
    _require_space(folder, dataset)
    log(f"{dataset.repo}: about {dataset.gigabytes:g} GB into {folder}")
    cache_dir = folder / TEMPORARY_FOLDER
    snapshot = fetch(dataset.repo, choose, revision=dataset.revision, cache_dir=cache_dir, repo_type="dataset")
    return missing, snapshot


def _target(folder: Path, file: str) -> Path:
    """Return the path of a file in the dataset; a zip becomes a folder."""
    return folder / (file.removesuffix(".zip") if file.endswith(".zip") else file)


def _require_space(folder: Path, dataset: KnownDataset) -> None:
    parent = next(path for path in (folder, *folder.absolute().parents) if path.is_dir())
    copies = 2 if any(file.endswith(".zip") for file in dataset.files) else 1
    needed, free = copies * dataset.gigabytes * 1e9, shutil.disk_usage(parent).free
    if free < needed:
        raise OSError(f"{folder}: the disk has {free / 1e9:.1f} GB free, expected {needed / 1e9:.1f}; use another disk")


def _install(source: Path, target: Path) -> None:
    """Give a downloaded file its name in the dataset, completely or not at all."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.suffix == ".zip":
        _unpack(source, target)
        return
    temporary = target.with_name(f".{target.name}.part")
    temporary.unlink(missing_ok=True)
    try:
        os.link(source.resolve(), temporary)  # avoids a second copy of gigabytes
    except OSError:  # a file system without links
        shutil.copyfile(source, temporary)
    temporary.replace(target)


def _require_space_for(archive: zipfile.ZipFile, target: Path) -> None:
    """Check that the unpacked files fit on the disk; a small archive can hold terabytes of zeros."""
    needed = sum(member.file_size for member in archive.infolist())
    free = shutil.disk_usage(target.parent).free
    if needed > free:
        raise OSError(f"{target}: the disk has {free / 1e9:.1f} GB free, expected {needed / 1e9:.1f}; use another disk")


def _unpack(archive: Path, target: Path) -> None:
    """Unpack a zip into a folder; if one folder holds everything, that folder becomes the target."""
    temporary = target.with_name(f".{target.name}.part")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        with zipfile.ZipFile(archive) as file:
            _require_space_for(file, target)
            file.extractall(temporary)  # keeps every name below the folder
    except (
        zipfile.BadZipFile,
        zlib.error,
        RuntimeError,
        EOFError,
    ) as error:  # RuntimeError: encrypted, or not supported
        shutil.rmtree(temporary, ignore_errors=True)
        raise DataError(f"{archive.name}: cannot be unpacked: {error}; get the dataset from its authors") from error
    except BaseException:  # a full disk, Ctrl-C
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    content = [path for path in temporary.iterdir() if path.name != "__MACOSX"]
    (content[0] if len(content) == 1 and content[0].is_dir() else temporary).replace(target)
    with contextlib.suppress(FileNotFoundError):
        shutil.rmtree(temporary)
