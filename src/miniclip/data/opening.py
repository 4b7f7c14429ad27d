"""Detection of a dataset's layout: `open_data` finds which one is at a path, and opens a split of it."""

from __future__ import annotations

import os
import re
import urllib.parse
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, Unpack

from miniclip.data.cache.reading import CachedDataset, complete_splits
from miniclip.data.dataset import ImageCaptionDataset
from miniclip.data.formats.captions import Captions, load_tables
from miniclip.data.formats.coco import CocoCaptions, find_coco
from miniclip.data.formats.columns import ColumnNames
from miniclip.data.formats.files import expand, is_pattern
from miniclip.data.formats.finding import find_tables, one_dataset
from miniclip.data.formats.flickr30k import (
    Flickr8k,
    Flickr30k,
    find_captions,
    find_flickr,
    has_file,
    is_caption_file,
    is_flickr_file,
)
from miniclip.data.formats.folder import holds_images, holds_images_with_texts
from miniclip.data.formats.json_layouts import json_layout
from miniclip.data.formats.multifile import TABLE_SUFFIXES
from miniclip.data.formats.options import ReadKeywords, ReadOptions
from miniclip.data.formats.saved import is_saved, load_saved
from miniclip.data.formats.shards import TAR_SUFFIXES, find_shards, is_tar
from miniclip.data.formats.webdataset import WebDataset, holds_samples
from miniclip.data.shapes import Shapes
from miniclip.data.shapes.dataset import DEFAULT_SIZES
from miniclip.data.splits import Split
from miniclip.errors import DataError
from miniclip.utils.checks import did_you_mean, near_path
from miniclip.utils.files import open_regular

MAX_SHOWN = 200  # characters of a path in an error message
MAX_PEEKED_SHARDS = 3  # tars of a folder that are opened to find out whether they hold samples
KNOWN = (
    "Flickr30k's or Flickr8k's files (results.csv, captions.txt, Flickr8k.token.txt, dataset_*.json), COCO's "
    "(annotations/captions_train2017.json, dataset_coco.json), parquet files, one table (.csv, .tsv, .jsonl, .json) or "
    "one for each split, a dataset written by save_to_disk, tar shards, an image cache, images with .txt files beside "
    "them"
)


class DatasetSpec(NamedTuple):
    """Path of a dataset, and what follows a question mark: `photos.csv?image=file&caption=text`.

    Attributes:
        path: the path, which may be a pattern.
        columns: the columns of a table, or the members of a tar's samples.
        layout: a key of `LAYOUTS`; None: detect it.
    """

    path: Path
    columns: ColumnNames
    layout: str | None = None


def parse_spec(spec: str | Path) -> DatasetSpec:
    """Parse a spec. If a file has that name, question mark included, it is the path.

    Raises:
        ValueError: the part after the question mark has keys other than image, caption, group and layout, or two
            images, or the layout is unknown.
    """
    path, query = split_query(str(spec))
    values = urllib.parse.parse_qs(query, keep_blank_values=True)
    unknown = values.keys() - {"image", "caption", "layout", "group"}
    if unknown:
        raise ValueError(
            f"{spec}: unknown {', '.join(sorted(unknown))}; after ? expected image=, caption=, group= and layout=, or "
            "several captions, joined by &"
        )
    for key, found in values.items():
        if not all(found) or (key != "caption" and len(found) > 1):
            raise ValueError(f"{spec}: found {key}={f' and {key}='.join(found)}; expected one name")
    image, layout, group = (values.get(key, [None])[0] for key in ("image", "layout", "group"))
    if layout is not None and layout not in LAYOUTS:
        raise ValueError(f"{spec}: no layout {layout!r}{did_you_mean(layout, LAYOUTS)}")
    captions = values.get("caption")
    caption = captions[0] if captions and len(captions) == 1 else captions
    return DatasetSpec(path, ColumnNames(image, caption, group), layout)


def split_query(spec: str) -> tuple[Path, str]:
    """Return the path of a spec, and the query after its question mark; a file of the whole name is the path."""
    path, mark, query = spec.rpartition("?")
    if not mark or "=" not in query or Path(spec).expanduser().exists():
        return Path(spec).expanduser(), ""
    return Path(path).expanduser(), query


def absolute_spec(spec: str) -> str:
    """Return a spec with an absolute path, so that a run can be resumed from any folder."""
    if spec == "shapes" or "://" in spec:
        return spec
    path, query = split_query(spec)
    return f"{path.resolve()}?{query}" if query else str(path.resolve())


def spec_name(spec: str) -> str:
    """Return a short name for runs on the data: "photos" for "datasets/photos.csv?image=file"."""
    path, _ = split_query(spec)
    name = path.stem if path.suffix.lower() in (*TABLE_SUFFIXES, ".tar") else path.name
    return re.sub(r"[^\w.-]+", "-", name).strip("-.") or "data"


def open_data(spec: str | Path, split: Split = "train", **options: Unpack[ReadKeywords]) -> ImageCaptionDataset:
    """Open a dataset by its spec, as on the command line.

    Args:
        spec: "shapes" for the synthetic dataset, or the path of a folder or a file in a layout of docs/data.md. Write
            "./shapes" for a folder of that name. After a question mark stand the columns of a table, or the members of
            a tar's samples: "photos.csv?image=file&caption=what it shows". "photos.csv?group=product" draws splits of
            whole products. If the detected layout is wrong, another
            key of `LAYOUTS` stands there: "photos?layout=folder".
        split: "train", "val" or "test"; data on disk also have "all".
        **options: `seed`, `on_error` and `max_skip_fraction`, as in `Captions`.

    Raises:
        ValueError: the split does not exist, or the spec is a URL.
        FileNotFoundError: the path does not exist.
        DataError: the path has no known layout, or the data are damaged.
    """
    if spec == "shapes":
        return Shapes(split, seed=options.get("seed", 0))
    if str(spec).startswith("torchvision:"):
        raise ValueError(f"{spec}: has classes and no captions; evaluate it by zero-shot classification or a probe")
    if "://" in str(spec):
        raise ValueError(
            f"{spec}: data are read from disk; download them (`miniclip data get`, hf download, wget; img2dataset for "
            "the images of a list of URLs), and give their path"
        )
    path, columns, layout = parse_spec(spec)
    _check_path(path)
    layout = layout or _detect(path, columns)
    chosen = "; ".join(f"{key}={value!r}" for key, value in columns._asdict().items() if value)
    if chosen and layout not in WITH_COLUMNS:
        raise ValueError(f"{path}: {chosen} chooses nothing in the layout {layout!r}; remove it from after the ?")
    return LAYOUTS[layout].open(path, columns, split, options)


def split_names(spec: str | Path, **options: Unpack[ReadKeywords]) -> list[str]:
    """Return the names of the splits of a dataset: train, val and test first.

    Args:
        spec: as in `open_data`.
        **options: as in `open_data`.

    Raises:
        FileNotFoundError, ValueError, DataError: as in `open_data`.
    """
    if spec == "shapes":
        return list(DEFAULT_SIZES)
    path, _ = split_query(str(spec))
    if CachedDataset.is_cache(path):
        known = set(complete_splits(path))
    else:
        known = set(getattr(open_data(spec, "all", **options), "splits", ())) - {""}
    usual = [name for name in ("train", "val", "test") if name in known]
    return usual + sorted(known.difference(usual))


def stores_images(folder: Path) -> bool:
    """Return whether the files of a folder hold images inside: a cache, a dataset of save_to_disk, or tar shards."""
    columns = ColumnNames()
    return any(LAYOUTS[name].fits(folder, columns) for name in ("cache", "datasets", "webdataset"))


def _check_path(path: Path) -> None:
    """Raise FileNotFoundError if a path cannot exist, such as a name that is too long or links that form a loop."""
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return  # a pattern, or reported with the nearest name
    except OSError as error:
        shown = str(path) if len(str(path)) <= MAX_SHOWN else f"{str(path)[:MAX_SHOWN]}…"
        raise FileNotFoundError(f"{shown}: cannot be opened: {str(error.strerror).lower()}") from error


class Layout(NamedTuple):
    """One layout of a dataset on disk.

    Attributes:
        fits: whether the content of a folder has this layout.
        resembles: whether its names do. The first layout that fits is opened; if none does, the first that resembles,
            for its error message.
        open: opens a split.
    """

    fits: Callable[[Path, ColumnNames], bool]
    resembles: Callable[[Path, ColumnNames], bool]
    open: Callable[[Path, ColumnNames, Split, ReadKeywords], ImageCaptionDataset]


def _detect(path: Path, columns: ColumnNames) -> str:
    """Return the key of the layout at a path.

    Raises:
        FileNotFoundError: the path does not exist.
        DataError: the folder or the file has no known layout.
    """
    if path.is_dir():
        usable = [name for name in LAYOUTS if columns == ColumnNames() or name in WITH_COLUMNS]
        for test in ("fits", "resembles"):
            for name in usable:
                if getattr(LAYOUTS[name], test)(path, columns):
                    return name
        raise DataError(f"{path}: holds no dataset in a known layout; searched for {KNOWN}")
    if path.name.lower().endswith(TAR_SUFFIXES):
        return "webdataset"
    if not path.is_file() and not is_pattern(str(path)):
        if os.path.lexists(path):
            open_regular(path).close()  # raises with its kind: a pipe, a device, a link to nothing
        near = near_path(path)
        hint = f"did you mean {near!r}?" if near else "give a folder, a table (.csv, .tsv, .jsonl, .parquet), or shapes"
        raise FileNotFoundError(f"{path}: does not exist; {hint}")
    if path.is_file() and columns == ColumnNames() and is_flickr_file(path):
        return "flickr30k"
    return "table"


def _open_tables(path: Path, columns: ColumnNames, split: Split, options: ReadKeywords) -> ImageCaptionDataset:
    read_options = ReadOptions(split, **options)
    if path.is_dir():
        tables = one_dataset(path, find_tables(path, columns).paths)
        if not tables:
            raise DataError(f"{path}: holds no table ({', '.join(TABLE_SUFFIXES)})")
        return load_tables(tables, path, columns, read_options)
    files = [path] if path.is_file() else expand(str(path))
    if not files:
        raise FileNotFoundError(f"{path}: no file has such a name")
    for file in files:
        if file.suffix.lower() not in TABLE_SUFFIXES:
            kind = file.suffix or "without a suffix"
            raise DataError(f"{file}: found a file {kind}; expected {', '.join(TABLE_SUFFIXES)}, or a folder")
    return load_tables(files, Path(os.path.commonpath([file.parent for file in files])), columns, read_options)


def _open_cache(path: Path, _columns: ColumnNames, split: Split, _options: ReadKeywords) -> ImageCaptionDataset:
    return CachedDataset(path, split)


def _open_tars(path: Path, columns: ColumnNames, split: Split, options: ReadKeywords) -> ImageCaptionDataset:
    caption = columns.caption
    if columns.group is not None:
        raise ValueError(f"{path}: group= is for tables, and tar shards have no columns: write a table, or remove it")
    if caption is None or isinstance(caption, str):
        return WebDataset(path, split, image=columns.image, caption=caption, **options)
    raise ValueError(f"{path}: found caption= {len(caption)} times; expected one member or key")


def _holds_samples(root: Path, _: ColumnNames) -> bool:
    return is_tar(root) and any(map(holds_samples, find_shards(root)[:MAX_PEEKED_SHARDS]))


def _is_coco(root: Path, _: ColumnNames) -> bool:
    karpathy, official = find_coco(root)
    if any(json_layout(file.path) == "coco" for file in official):
        return True
    return karpathy is not None and find_captions(root) is None  # Karpathy's zip has files of three datasets


def _names_coco(root: Path, _: ColumnNames) -> bool:
    return any(find_coco(root))


def _is_flickr8k(root: Path, _: ColumnNames) -> bool:
    captions = find_captions(root)
    if captions is not None and captions.name.startswith("Flickr8k"):
        return is_caption_file(captions)
    return has_file(root, Flickr8k.split_file) and not has_file(root, Flickr30k.split_file)


def _is_flickr30k(root: Path, _: ColumnNames) -> bool:
    captions = find_captions(root)
    return find_flickr(root, Flickr30k.split_file).split is not None if captions is None else is_caption_file(captions)


def _names_flickr(root: Path, _: ColumnNames) -> bool:
    return find_captions(root) is not None


def _open_saved(root: Path, columns: ColumnNames, split: Split, options: ReadKeywords) -> ImageCaptionDataset:
    """Open a folder of `save_to_disk`; the splits of a `DatasetDict` are put together."""
    saved = load_saved(root)
    if isinstance(saved, dict):
        import datasets

        parts = list(saved.values())
        if not all("split" in part.column_names for part in parts):  # else the column is the split, as everywhere
            parts = [part.add_column("split", [name] * len(part)) for name, part in saved.items()]
        saved = datasets.concatenate_datasets(parts)
    image, caption, group = columns
    return Captions.from_huggingface(saved, image=image, caption=caption, group=group, split=split, **options)


def _never(_root: Path, _columns: ColumnNames) -> bool:
    return False


# In this order; layouts with the most specific files come first.
LAYOUTS: dict[str, Layout] = {
    "cache": Layout(lambda root, _: CachedDataset.is_cache(root), _never, _open_cache),
    "datasets": Layout(lambda root, _: is_saved(root), _never, _open_saved),
    "webdataset": Layout(_holds_samples, lambda root, _: is_tar(root), _open_tars),
    "coco": Layout(_is_coco, _names_coco, lambda path, _, split, options: CocoCaptions(path, split, **options)),
    "flickr8k": Layout(_is_flickr8k, _never, lambda path, _, split, options: Flickr8k(path, split, **options)),
    "flickr30k": Layout(
        _is_flickr30k, _names_flickr, lambda path, _, split, options: Flickr30k(path, split, **options)
    ),
    "table": Layout(
        lambda root, columns: find_tables(root, columns).hold_images,
        lambda root, columns: bool(find_tables(root, columns).paths),
        _open_tables,
    ),
    "folder": Layout(
        lambda root, _: holds_images_with_texts(root),
        lambda root, _: holds_images(root),
        lambda path, _, split, options: Captions.from_folder(path, split=split, **options),
    ),
}
WITH_COLUMNS = ("datasets", "webdataset", "table")
