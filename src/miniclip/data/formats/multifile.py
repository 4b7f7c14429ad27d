"""Tables by suffix, and datasets of several table files: parquet shards, or a table for each split.

The name of a file gives its split, as on the Hugging Face Hub. Names of images include the table's folder, since
`part-0/00000.parquet` and `part-1/00000.parquet` are different files.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from fnmatch import fnmatch
from itertools import chain
from pathlib import Path
from typing import Any

from miniclip.data.formats.coco_files import any_coco_file, find_karpathy_images, karpathy_rows, read_coco
from miniclip.data.formats.columns import ColumnNames
from miniclip.data.formats.json_layouts import json_layout
from miniclip.data.formats.json_lines import read_json_lines
from miniclip.data.formats.karpathy import read_karpathy
from miniclip.data.formats.parquet import read_parquet
from miniclip.data.formats.rows import ImageRow, ImageRows, is_url
from miniclip.data.formats.tables import read_table
from miniclip.data.skipping import SkipLog
from miniclip.data.splits import SPLIT_NAMES, split_in_name
from miniclip.errors import DataError

JSON_SUFFIXES = {".jsonl", ".ndjson", ".json"}
TABLE_SUFFIXES = (".csv", ".tsv", ".tab", ".txt", ".token", *sorted(JSON_SUFFIXES), ".parquet")


def read_file(path: Path, skip_log: SkipLog, names: ColumnNames, split: str | None = None) -> ImageRows:
    """Read a table of any kind; `split` is that of its rows if no column gives it."""
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        return read_parquet(path, skip_log, names, split)
    if suffix in JSON_SUFFIXES:
        return _read_json(path, skip_log, names, split)
    return read_table(path, skip_log, names, split)


def _read_json(path: Path, skip_log: SkipLog, names: ColumnNames, split: str | None) -> ImageRows:
    """Read a JSON file in the layout that its content has."""
    layout = json_layout(path) if names == ColumnNames() else "table"
    if layout == "karpathy":
        images = read_karpathy(path, skip_log)
        paths = find_karpathy_images(path.parent, images) if any(image.folder for image in images) else {}
        return ImageRows(path, karpathy_rows(images, paths), f"Karpathy's {path.name}", exact_split=True)
    if layout == "coco":
        return ImageRows(path, read_coco(any_coco_file(path, split), skip_log), f"{path.name}, in COCO's format")
    return read_json_lines(path, skip_log, names, split)


def read_files(files: Sequence[Path], root: Path, skip_log: SkipLog, names: ColumnNames) -> ImageRows:
    """Read table files that make up one dataset.

    Args:
        files: the tables, at or below `root`; one that is given twice is read once.
        root: the folder that image names start from.
        skip_log: receives the rows that cannot be used.
        names: columns that the user chose.
    """
    files = list({os.path.abspath(path): path for path in files}.values())  # noqa: PTH100  # a/../b.csv is b.csv
    splits = [split_of(path) for path in files]
    several_splits = len(set(splits)) > 1  # then the row numbers of each split may start at 0
    several_folders = len({path.parent for path in files}) > 1  # then those of each folder too
    tables = []
    for path, split in zip(files, splits, strict=True):
        table = read_file(path, skip_log, names, split)
        folder = path.parent.relative_to(root).as_posix()
        prefix = "" if folder == "." else f"{folder}/"
        stored = (f"{split}/" if several_splits else "") + (prefix if several_folders else "")
        tables.append(table._replace(rows=_prefix_names(table.rows, prefix, stored)))
    more = f" and {len(files) - 1} more files" if len(files) > 1 else ""
    return ImageRows(
        files[0] if len(files) == 1 else root,
        chain.from_iterable(table.rows for table in tables),
        tables[0].about + more,
        root,
        any(table.exact_split for table in tables),
    )


def _prefix_names(rows: Iterable[ImageRow], folder: str, stored: str) -> Iterator[ImageRow]:
    """Prefix the names of files by their table's folder, and those of stored images by `stored`."""
    for row in rows:
        if row.image is not None:
            yield row._replace(name=stored + row.name)
        else:
            yield row._replace(name=folder + row.name) if folder and _is_relative(row.name) else row


def _is_relative(name: str) -> bool:
    return bool(name) and not is_url(name) and not Path(name).is_absolute()


def split_of(path: Path) -> str | None:
    """Return the split in the name of a file or its folder: train-00000-of-00009.parquet, test/0000.parquet."""
    return split_in_name(path.stem) or _split_of_folder(path.parent.name)


def _split_of_folder(name: str) -> str | None:
    """Return the split in a folder's name, such as "test", or "split=test" of a partitioned dataset."""
    return SPLIT_NAMES.get(name.lower().removeprefix("split="))


def find_parquet(root: Path) -> list[Path]:
    """Return the parquet files in a folder, or up to two folders below it, sorted.

    Raises:
        DataError: they belong to several configurations, which are different datasets.
    """
    found = (path for depth in ("*", "*/*", "*/*/*") for path in root.glob(f"{depth}.parquet"))
    files = sorted(path for path in found if path.is_file() and not path.name.startswith("."))
    configurations = _described_configurations(root, files) or _repeated_shards(root, files)
    if configurations:
        raise DataError(
            f"{root}: holds several configurations ({', '.join(map(repr, configurations))}), each a dataset; "
            "give the folder of one of them, or its files to Captions.from_parquet"
        )
    return files


def _repeated_shards(root: Path, files: Sequence[Path]) -> list[str]:
    """Return the folders that have the same shard of the same split, as en/train-00000-of-00002.parquet and de/…."""
    folders: dict[str, list[str]] = {}
    for path in files:
        *parents, name = path.relative_to(root).parts
        if split_of(path) is not None:
            within = [part for part in parents if "=" in part or _split_of_folder(part)]  # partitions of one dataset
            folder = "/".join(part for part in parents if part not in within)
            folders.setdefault(f"{'/'.join(within).lower()}/{re.sub(r'-of-[0-9]+', '', name)}", []).append(
                folder or "."
            )
    return next((sorted(shards) for shards in folders.values() if len(shards) > 1), [])


def _described_configurations(root: Path, files: Sequence[Path]) -> list[str]:
    """Return the configurations that the README of a Hub's repository gives the files to, unless one has all files."""
    readme = root / "README.md"
    if not readme.is_file():
        return []
    from huggingface_hub import metadata_load

    try:
        configurations = (metadata_load(readme) or {}).get("configs") or []
        patterns = {str(entry["config_name"]): list(_patterns(entry)) for entry in configurations}
    except Exception:  # a README that is not a dataset card
        return []
    names = [path.relative_to(root).as_posix() for path in files]
    members = {
        configuration: {name for name in names if any(fnmatch(name, pattern) for pattern in listed)}
        for configuration, listed in patterns.items()
    }
    used = [configuration for configuration, chosen in members.items() if chosen]
    return used if len(used) > 1 and not any(set(names) == chosen for chosen in members.values()) else []


def _patterns(entry: Any) -> Iterator[str]:
    """Yield the file patterns of a configuration: `data_files` is a pattern, a list, or lists by split."""
    if isinstance(entry, str):
        yield entry.removeprefix("./").replace("**/", "*")
        return
    if isinstance(entry, Mapping):
        values: Iterable[Any] = [entry[key] for key in ("data_files", "path") if key in entry]
        if "data_dir" in entry and "data_files" not in entry:
            values = [f"{str(entry['data_dir']).strip('./')}/*"]
        elif not {"data_files", "path"} & entry.keys() and "config_name" not in entry:
            values = entry.values()  # split to patterns
    else:
        values = entry
    for value in values:
        yield from _patterns(value)
