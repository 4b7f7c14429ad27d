"""Detection of a dataset's layout: `open_data` finds which one is at a path, and opens a split of it."""

from __future__ import annotations

import re
import urllib.parse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple, Unpack

from miniclip.data.cache.reading import CachedDataset
from miniclip.data.dataset import ImageCaptionDataset
from miniclip.data.formats.captions import Captions, load_tables
from miniclip.data.formats.coco import CocoCaptions, find_coco
from miniclip.data.formats.columns import ColumnNames
from miniclip.data.formats.flickr30k import Flickr8k, Flickr30k, find_flickr
from miniclip.data.formats.folder import holds_images_with_texts
from miniclip.data.formats.multifile import TABLE_SUFFIXES, find_parquet, split_of
from miniclip.data.formats.options import ReadKeywords, ReadOptions
from miniclip.data.formats.shards import is_tar
from miniclip.data.formats.webdataset import WebDataset
from miniclip.data.shapes import Shapes
from miniclip.data.splits import SPLIT_NAMES, Split
from miniclip.errors import DataError

LAYOUTS = (
    "Flickr30k's or Flickr8k's files (results.csv, captions.txt, Flickr8k.token.txt, dataset_*.json), COCO's "
    "(annotations/captions_train2017.json, dataset_coco.json), parquet files, one table (.csv, .tsv, .jsonl) or one "
    "for each split, a dataset written by save_to_disk, tar shards, an image cache, images with .txt files beside them"
)


class DatasetSpec(NamedTuple):
    """Path of a dataset, and the columns of a table: `photos.csv?image=file&caption=text`."""

    path: Path
    columns: ColumnNames


def parse_spec(spec: str | Path) -> DatasetSpec:
    """Parse a spec. If a file has that name, question mark included, it is the path.

    Raises:
        ValueError: the part after the question mark has keys other than image and caption, or two images.
    """
    path, query = _split_query(str(spec))
    values = urllib.parse.parse_qs(query, keep_blank_values=True)
    unknown = values.keys() - {"image", "caption"}
    if unknown or len(values.get("image", [])) > 1:
        found = f"unknown {', '.join(sorted(unknown))}" if unknown else "image= twice"
        raise ValueError(f"{spec}: {found}; after ? expected image= and caption=, or several captions, joined by &")
    image, captions = values.get("image", [None])[0], values.get("caption")
    return DatasetSpec(path, ColumnNames(image, captions[0] if captions and len(captions) == 1 else captions))


def _split_query(spec: str) -> tuple[Path, str]:
    path, mark, query = spec.rpartition("?")
    if not mark or "=" not in query or Path(spec).expanduser().exists():
        return Path(spec).expanduser(), ""
    return Path(path).expanduser(), query


def absolute_spec(spec: str) -> str:
    """Return a spec with an absolute path, so that a run can be resumed from any folder."""
    if spec == "shapes" or "://" in spec:
        return spec
    path, query = _split_query(spec)
    return f"{path.resolve()}?{query}" if query else str(path.resolve())


def spec_name(spec: str) -> str:
    """Return a short name for runs on the data: "photos" for "datasets/photos.csv?image=file"."""
    path, _ = _split_query(spec)
    name = path.stem if path.suffix.lower() in (*TABLE_SUFFIXES, ".tar") else path.name
    return re.sub(r"[^\w.-]+", "-", name).strip("-.") or "data"


def open_data(spec: str | Path, split: Split = "train", **options: Unpack[ReadKeywords]) -> ImageCaptionDataset:
    """Open a dataset by its spec, as on the command line.

    Args:
        spec: "shapes" for the synthetic dataset, or the path of a folder or a file in a layout of docs/data.md. Write
            "./shapes" for a folder of that name. Unusual column names of a table follow a question mark:
            "photos.csv?image=file&caption=what it shows".
        split: "train", "val" or "test"; data on disk also have "all".
        **options: `seed`, `on_error` and `max_skip_fraction`, as in `Captions`.

    Raises:
        ValueError: the split does not exist, or the spec is a URL.
        FileNotFoundError: the path does not exist.
        DataError: the path has no known layout, or the data are damaged.
    """
    if spec == "shapes":
        return Shapes(split, seed=options.get("seed", 0))
    if "://" in str(spec):
        raise ValueError(
            f"{spec}: data are read from disk; download them (`miniclip data get`, hf download, wget; img2dataset for "
            "the images of a list of URLs), and give their path"
        )
    path, columns = parse_spec(spec)
    if CachedDataset.is_cache(path):
        return CachedDataset(path, split)
    if is_tar(path):
        return WebDataset(path, split, **options)
    if path.is_file():
        return _open_file(path, columns, ReadOptions(split, **options))
    if path.is_dir():
        return _open_folder(path, columns, split, options)
    raise FileNotFoundError(f"{path}: does not exist; give a folder, a table (.csv, .tsv, .jsonl, .parquet), or shapes")


def _open_file(path: Path, columns: ColumnNames, options: ReadOptions) -> ImageCaptionDataset:
    suffix = path.suffix.lower()
    if suffix not in TABLE_SUFFIXES:
        found = suffix or "without a suffix"
        raise DataError(f"{path}: found a file {found}; expected {', '.join(TABLE_SUFFIXES)}, or a folder")
    if suffix == ".json" and path.name.startswith(("dataset_", "captions_")):
        raise DataError(f"{path}: is only one file of a dataset; give the folder that holds it and the images")
    return load_tables([path], path.parent, columns, options)


def _open_folder(root: Path, columns: ColumnNames, split: Split, options: ReadKeywords) -> ImageCaptionDataset:
    for matches, open_layout in FOLDER_LAYOUTS:
        if columns == ColumnNames() and matches(root):
            return open_layout(root, split, options)
    tables = find_tables(root)
    if tables:
        return load_tables(tables, root, columns, ReadOptions(split, **options))
    if holds_images_with_texts(root):
        return Captions.from_folder(root, split=split, **options)
    raise DataError(f"{root}: holds no dataset in a known layout; searched for {LAYOUTS}")


def _is_coco(root: Path) -> bool:
    karpathy, official = find_coco(root)
    return karpathy is not None or bool(official)


def _is_flickr8k(root: Path) -> bool:
    files = find_flickr(root, Flickr8k.split_file)
    return (files.captions is not None and files.captions.name.startswith("Flickr8k")) or (
        files.split is not None and files.split.name == Flickr8k.split_file
    )


def _is_flickr30k(root: Path) -> bool:
    return any(find_flickr(root, Flickr30k.split_file))


def _is_saved(root: Path) -> bool:
    return (root / "state.json").is_file() or (root / "dataset_dict.json").is_file()


def _open_saved(root: Path, split: Split, options: ReadKeywords) -> ImageCaptionDataset:
    """Open what `Dataset.save_to_disk` or `DatasetDict.save_to_disk` wrote."""
    try:
        import datasets
    except ImportError:
        raise ImportError(
            f'{root}: reading a dataset of save_to_disk needs the datasets library: pip install "miniclip[datasets]"',
            name="datasets",
        ) from None
    saved = datasets.load_from_disk(str(root))
    if isinstance(saved, dict):
        parts = list(saved.values())
        if not all("split" in part.column_names for part in parts):  # else the column is the split, as everywhere
            parts = [part.add_column("split", [name] * len(part)) for name, part in saved.items()]
        saved = datasets.concatenate_datasets(parts)
    return Captions.from_huggingface(saved, split=split, **options)


# The first match wins, so layouts with the most specific files come first.
FOLDER_LAYOUTS: Sequence[tuple[Callable[[Path], bool], Callable[[Path, Split, ReadKeywords], ImageCaptionDataset]]] = (
    (_is_saved, _open_saved),
    (_is_coco, lambda root, split, options: CocoCaptions(root, split, **options)),
    (_is_flickr8k, lambda root, split, options: Flickr8k(root, split, **options)),
    (_is_flickr30k, lambda root, split, options: Flickr30k(root, split, **options)),
)


def find_tables(root: Path) -> list[Path]:
    """Find the tables of a folder that make up one dataset: parquet files, one table, or one for each split.

    Raises:
        DataError: there are several, and their names do not give a split each.
    """
    parquet = find_parquet(root)
    if parquet:
        return parquet
    folders = sorted(path for path in root.iterdir() if path.is_dir() and path.name.lower() in SPLIT_NAMES)
    tables = [path for folder in (root, *folders) for path in _tables_in(folder)]
    if len(tables) < 2:
        return tables
    tables = [path for path in tables if path.stem == "metadata"] or tables
    splits = [split_of(path) for path in tables]
    if len(tables) > 1 and (None in splits or len(set(splits)) < len(splits)):
        names = ", ".join(str(path.relative_to(root)) for path in tables[:5])
        raise DataError(f"{root}: holds {len(tables)} tables ({names}); give one of them, as a file")
    return tables


def _tables_in(folder: Path) -> list[Path]:
    suffixes = {".csv", ".tsv", ".tab", ".jsonl", ".ndjson"}
    return sorted(
        path for path in folder.iterdir() if path.suffix.lower() in suffixes and path.is_file() and path.name[0] != "."
    )
