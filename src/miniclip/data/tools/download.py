"""Where the well-known sets are, what they ask of their users, and fetching those that the Hugging Face Hub has.

What is said of a set was read on public pages, each named here, and not tried: this project has fetched none of them.
Files come through `hub/download.py`, so they go on where a download broke off and are held to the Hub's checksums; then they
stand in the folder under their own names. Nothing is fetched before the user says that the terms are agreed to.
"""

from __future__ import annotations

import contextlib
import fnmatch
import os
import shlex
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from miniclip.errors import DataError
from miniclip.hub.download import fetch
from miniclip.utils.checks import did_you_mean

HIDDEN = ".download"  # in the set's folder, until all is there
KARPATHY = "https://cs.stanford.edu/people/karpathy/deepimagesent/caption_datasets.zip"


class KnownSet(NamedTuple):
    """A set, and where it is.

    Attributes:
        what: it is, in a line.
        home: its page.
        terms: what its authors ask, and where that is said.
        by_hand: how to get it from its authors, a line a step; FOLDER stands for the folder.
        repo: a copy on the Hub.
        revision: of the copy.
        files: of the copy, names or patterns; a zip is unpacked.
        gigabytes: of the files, about.
        note: on the copy.
    """

    what: str
    home: str
    terms: str
    by_hand: tuple[str, ...]
    repo: str = ""
    revision: str = "main"
    files: tuple[str, ...] = ()
    gigabytes: float = 0.0
    note: str = ""


_FLICKR = (
    "the photographs are Flickr users': their use must abide by Flickr's Terms of Use, and they are provided for "
    "non-commercial research and education alone"
)

SETS = {
    "flickr30k": KnownSet(
        what="Flickr30k: 31,783 photographs with five captions each",
        home="https://shannon.cs.illinois.edu/DenotationGraph/",
        terms=f"{_FLICKR} (so https://github.com/BryanPlummer/flickr30k_entities)",
        by_hand=(
            "fill in the form at https://forms.illinois.edu/sec/229675; a link to the pictures comes by mail",
            "unpack the pictures into FOLDER/flickr30k-images",
            f"for Karpathy's split, unpack dataset_flickr30k.json of {KARPATHY} into FOLDER",
        ),
        repo="nlphuji/flickr30k",
        revision="2b239befc81b6e3f035ce6bd52f5f4d60f5625f7",
        files=("flickr_annotations_30k.csv", "flickr30k-images.zip"),
        gigabytes=4.4,
        note="a copy by others than the authors, whose page names no licence; with Karpathy's split",
    ),
    "flickr8k": KnownSet(
        what="Flickr8k: about 8,000 photographs with five captions each",
        home="http://nlp.cs.illinois.edu/HockenmaierGroup/8k-pictures.html",
        terms="not for commercial use (so the books that use it); the photographs are Flickr users'",
        by_hand=(
            "fill in the form at https://forms.illinois.edu/sec/1713398; links come by mail",
            "unpack Flickr8k_Dataset.zip and Flickr8k_text.zip into FOLDER",
        ),
        repo="jxie/flickr8k",
        files=("data/*.parquet",),
        gigabytes=1.1,
        note="a copy by others than the authors, as parquet files (pip install 'miniclip[parquet]' reads them)",
    ),
    "coco": KnownSet(
        what="COCO Captions, 2017: 118,287 photographs for training, 5,000 for validation, five captions each",
        home="https://cocodataset.org",
        terms=(
            "the annotations are under the Creative Commons Attribution 4.0 License; the photographs' use must abide "
            "by Flickr's Terms of Use, with full responsibility (so https://cocodataset.org/#termsofuse)"
        ),
        by_hand=(
            "mkdir -p FOLDER && cd FOLDER",
            "curl -C - -O http://images.cocodataset.org/annotations/annotations_trainval2017.zip   # 241 MB",
            "curl -C - -O http://images.cocodataset.org/zips/val2017.zip   # 1 GB",
            "curl -C - -O http://images.cocodataset.org/zips/train2017.zip   # 19 GB; -C - goes on where it broke off",
            "unzip -q '*.zip'",
            f"for Karpathy's split, the same with the zips of 2014, and dataset_coco.json of {KARPATHY}",
        ),
    ),
}


def known(name: str) -> KnownSet:
    """A set by its name.

    Raises:
        ValueError: it is not in the table; the message lists those that are.
    """
    if name not in SETS:
        raise ValueError(f"no set {name!r} is known{did_you_mean(name, SETS)}")
    return SETS[name]


def describe(name: str, folder: str | Path = "FOLDER") -> str:
    """Where a set is, what it asks, and how to get it, in lines."""
    one = known(name)
    shown = shlex.quote(str(folder))
    steps = [step.replace("FOLDER", shown) for step in one.by_hand]
    lines = [one.what, f"  page: {one.home}", f"  terms: {one.terms}", "  from its authors:"]
    lines += [f"    {step}" for step in steps]
    if one.repo:
        lines += [
            f"  on the Hub: {one.repo}, {', '.join(one.files)}, about {one.gigabytes:g} GB: {one.note}",
            f"    miniclip data get {name} {shown} --agree   # fetches it; --agree: you keep to the terms",
        ]
    return "\n".join(lines)


def get(name: str, folder: str | Path, *, agree: bool = False, say: Callable[[str], object] = print) -> Path:
    """Fetch a set into a folder. What is there already stays; what a broken download left is gone on with.

    Args:
        name: of `SETS`.
        folder: made where it is missing.
        agree: that its terms are kept to; without it nothing is fetched.
        say: takes a line of news.

    Returns:
        The folder, which `open_data` reads.

    Raises:
        ValueError: no such set, one that the Hub does not have, or the terms are not agreed to.
        OSError: the disk is full, or too small.
        DataError: the archive cannot be unpacked.
        ConnectionError: the Hub cannot be reached; and all else that `remote.fetch` raises.
    """
    one, folder = known(name), Path(folder).expanduser()
    if not one.repo:
        raise ValueError(f"{name} is got from its authors, by hand:\n{describe(name, folder)}")
    if not agree:
        raise ValueError(f"nothing was fetched: {name} has terms, {one.terms}; where you keep to them, pass agree=True")
    if folder.exists() and not folder.is_dir():
        raise FileExistsError(f"{folder}: is a file; give a folder")
    missing: list[str] = []

    def choose(listing: list[str]) -> list[str]:
        wanted = [file for pattern in one.files for file in listing if fnmatch.fnmatchcase(file, pattern)]
        missing[:] = [file for file in wanted if not _target(folder, file).exists()]
        if wanted and not missing:
            raise _AllThereError
        return missing

    try:
        if all("*" not in file and _target(folder, file).exists() for file in one.files):
            raise _AllThereError
        _require_space(folder, one)
        hidden = folder / HIDDEN
        say(f"{one.repo}: about {one.gigabytes:g} GB into {folder}")
        snapshot = fetch(one.repo, choose, revision=one.revision, cache_dir=hidden, repo_type="dataset")
    except _AllThereError:
        say(f"{folder}: {name} is there already")
        return folder
    for file in missing:
        _put(snapshot / file, _target(folder, file))
    shutil.rmtree(hidden, ignore_errors=True)
    say(f"{folder}: {name} is there")
    return folder


class _AllThereError(Exception):
    """There is nothing to fetch."""


def _target(folder: Path, file: str) -> Path:
    """What a file becomes: one of its name, or, of a zip, a folder."""
    return folder / (file.removesuffix(".zip") if file.endswith(".zip") else file)


def _require_space(folder: Path, one: KnownSet) -> None:
    there = next(path for path in (folder, *folder.absolute().parents) if path.is_dir())
    unpacked = 2 if any(file.endswith(".zip") for file in one.files) else 1
    needed, free = unpacked * one.gigabytes * 1e9, shutil.disk_usage(there).free
    if free < needed:
        raise OSError(f"{folder}: {free / 1e9:.1f} GB are free there, and {needed / 1e9:.1f} needed; take another disk")


def _put(source: Path, target: Path) -> None:
    """Give a file that was fetched its name in the set, at once or not at all."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.suffix == ".zip":
        _unpack(source, target)
        return
    temporary = target.with_name(f".{target.name}.part")
    temporary.unlink(missing_ok=True)
    try:
        os.link(source.resolve(), temporary)  # no second copy of gigabytes
    except OSError:  # a file system without links
        shutil.copyfile(source, temporary)
    temporary.replace(target)


def _unpack(archive: Path, target: Path) -> None:
    """Unpack a zip into a folder; one folder that holds everything becomes the target."""
    temporary = target.with_name(f".{target.name}.part")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        with zipfile.ZipFile(archive) as file:  # whose extractall keeps every name below the folder
            file.extractall(temporary)
    except (zipfile.BadZipFile, NotImplementedError, EOFError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise DataError(f"{archive.name}: cannot be unpacked: {error}; take the set from its authors") from error
    except BaseException:  # a full disk, Ctrl-C
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    inside = [path for path in temporary.iterdir() if path.name != "__MACOSX"]
    (inside[0] if len(inside) == 1 and inside[0].is_dir() else temporary).replace(target)
    with contextlib.suppress(FileNotFoundError):
        shutil.rmtree(temporary)
