"""Search for tar shards: paths, folders, glob patterns and brace ranges."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from miniclip.data.formats.files import expand, list_folder
from miniclip.data.splits import SPLIT_NAMES, split_in_name

ShardSpec = str | Path | Sequence[str | Path]

TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz")  # compressed ones are found, and then refused with a clear message


class TarShard(NamedTuple):
    """Tar shard.

    Attributes:
        path: the file.
        name: its path below the folder that all shards share.
        split: the split in its name, or None.
    """

    path: Path
    name: str
    split: str | None


def is_tar(spec: object) -> bool:
    """Return whether a spec names tar shards: `x.tar`, a pattern or a list of them, or a folder with tars in it."""
    if isinstance(spec, list | tuple):
        return bool(spec) and all(map(is_tar, spec))
    path = Path(str(spec)).expanduser()
    return str(spec).lower().endswith(TAR_SUFFIXES) or (path.is_dir() and bool(_tars_in(path)))


def find_shards(spec: ShardSpec) -> list[Path]:
    """Return the paths of a spec, in order. Missing shards of a range or a list are included.

    Raises:
        FileNotFoundError: no shard exists.
        ValueError: the spec is a URL, or has an invalid range.
    """
    specs = [spec] if isinstance(spec, str | Path) else spec
    listed = (path for item in specs for path in _expand(str(item)))
    paths = list({os.path.abspath(path): path for path in listed}.values())  # noqa: PTH100  # a shard is read once
    if not any(path.exists() for path in paths):
        given = ", ".join(map(str, specs))
        raise FileNotFoundError(f"{given}: no such file; give a .tar, a pattern such as 'shards/*.tar', or a folder")
    return paths


def name_shards(paths: Sequence[Path]) -> list[TarShard]:
    """Name shards by their paths below the folder that all share, so that a dataset that moves keeps its names."""
    absolute = [path.absolute() for path in paths]
    try:
        folder = os.path.commonpath([path.parent for path in absolute])
        names = [path.relative_to(folder).as_posix() for path in absolute]
    except ValueError:  # on several drives
        names = [path.as_posix() for path in absolute]
    return [TarShard(path, name, split_in_name(name)) for path, name in zip(paths, names, strict=True)]


def _expand(spec: str) -> list[Path]:
    if re.match(r"[a-z0-9]+://|pipe:", spec):
        raise ValueError(f"{spec}: shards are read from disk; download them (hf download, wget), and give their path")
    path = Path(spec).expanduser()
    if path.is_dir():
        return _tars_in(path)
    if path.exists():
        return [path]
    return expand(str(path))


def _tars_in(folder: Path) -> list[Path]:
    """Return the tars in a folder; if it has none, those in the folders `data`, `train`, `val`, … of it."""
    files, folders = list_folder(folder)
    below = [folder / name for name in folders if name.lower() in {"data", *SPLIT_NAMES}]
    return _tars(folder, files) or [tar for path in below for tar in _tars(path, list_folder(path)[0])]


def _tars(folder: Path, names: Sequence[str]) -> list[Path]:
    return [folder / name for name in names if name.lower().endswith(TAR_SUFFIXES)]
