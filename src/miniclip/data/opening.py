"""A path to a data set: finds out which of the layouts is there, and opens a split of it."""

from __future__ import annotations

import re
import urllib.parse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from miniclip.data.cache.reading import CachedDataset
from miniclip.data.dataset import Captions, ImageCaptionDataset
from miniclip.data.formats.coco import CocoCaptions, find_coco
from miniclip.data.formats.flickr30k import Flickr8k, Flickr30k, find_forms
from miniclip.data.formats.folder import holds_pictures_with_texts
from miniclip.data.formats.multifile import SUFFIXES, find_parquet, split_of
from miniclip.data.formats.rows import Rule
from miniclip.data.formats.webdataset import WebDataset, is_tar
from miniclip.data.shapes import Shapes
from miniclip.data.skipping import MAX_SKIP_FRACTION, OnError
from miniclip.data.splits import MEANING
from miniclip.errors import DataError

LOOKED_FOR = (
    "Flickr30k's or Flickr8k's files (results.csv, captions.txt, Flickr8k.token.txt, dataset_*.json), COCO's "
    "(annotations/captions_train2017.json, dataset_coco.json), parquet files, one table (.csv, .tsv, .jsonl) or one "
    "for each split, a data set that save_to_disk wrote, tar shards, a packed set, pictures with .txt files beside them"
)


class Spec(NamedTuple):
    """What `--data` says: a path and, of a table, which columns are which: `photos.csv?image=file&caption=text`."""

    path: Path
    image: str | None
    caption: str | None


def parse_spec(spec: str | Path) -> Spec:
    """Take a spec apart; a file that has a question mark in its name is that file.

    Raises:
        ValueError: something else than image and caption follows the question mark.
    """
    path, query = _divided(str(spec))
    named = dict(urllib.parse.parse_qsl(query, keep_blank_values=True))
    unknown = named.keys() - {"image", "caption"}
    if unknown:
        raise ValueError(f"{spec}: unknown {', '.join(sorted(unknown))}; after ? come image= and caption=, joined by &")
    return Spec(path, named.get("image"), named.get("caption"))


def _divided(spec: str) -> tuple[Path, str]:
    path, mark, query = spec.rpartition("?")
    if not mark or "=" not in query or Path(spec).expanduser().exists():
        return Path(spec).expanduser(), ""
    return Path(path).expanduser(), query


def from_anywhere(spec: str) -> str:
    """A spec with an absolute path, so that a run is resumed from any folder."""
    if spec == "shapes" or "://" in spec:
        return spec
    path, query = _divided(spec)
    return f"{path.resolve()}?{query}" if query else str(path.resolve())


def short_name(spec: str) -> str:
    """What a run on the data is called: "photos" of "sets/photos.csv?image=file"."""
    path, _ = _divided(spec)
    name = path.stem if path.suffix.lower() in (*SUFFIXES, ".tar") else path.name
    return re.sub(r"[^\w.-]+", "-", name).strip("-.") or "data"


def open_data(
    spec: str | Path,
    split: str = "train",
    *,
    seed: int = 0,
    on_error: OnError = "raise",
    max_skip_fraction: float = MAX_SKIP_FRACTION,
) -> ImageCaptionDataset:
    """Open a data set by what the command line calls it.

    Args:
        spec: "shapes" for the drawn set that needs no files, or a path: a folder or a file in any of the layouts of
            docs/data.md. A folder that is itself called shapes is "./shapes". The columns of a table are named after a
            question mark, where their names are unusual: "photos.csv?image=file&caption=what it shows".
        split: "train", "val", "test"; what is on disk has "all" too.
        seed: of the drawing, or of the split where the set has none.
        on_error: "raise" at what cannot be used, or "skip" it, named in `skip_log`.
        max_skip_fraction: the share that may be left out.

    Raises:
        ValueError: no such split; an address in place of a path.
        FileNotFoundError: nothing is there.
        DataError: nothing that can be read is there, or it is not as it should be.
    """
    if spec == "shapes":
        return Shapes(split, seed=seed)
    if "://" in str(spec):
        raise ValueError(
            f"{spec}: data are read from disk: download them (`miniclip data get`, hf download, wget; the pictures of "
            "a list of URLs: img2dataset), and give their path"
        )
    path, image, caption = parse_spec(spec)
    rule: dict[str, Any] = {"split": split, "seed": seed, "on_error": on_error, "max_skip_fraction": max_skip_fraction}
    shards = _open_shards(str(path), rule)
    if shards is not None:
        return shards
    if path.is_file():
        return _open_file(path, image, caption, Rule(**rule))
    if path.is_dir():
        return _open_folder(path, image, caption, rule)
    raise FileNotFoundError(f"{path}: nothing there; give a folder, a table (.csv, .tsv, .jsonl, .parquet), or shapes")


def _open_shards(spec: str, rule: dict[str, Any]) -> ImageCaptionDataset | None:
    """A packed set, or tar shards; None for anything else."""
    if CachedDataset.is_packed(spec):
        return CachedDataset(spec, rule["split"])
    return WebDataset(spec, **rule) if is_tar(spec) else None


def _open_file(path: Path, image: str | None, caption: str | None, rule: Rule) -> ImageCaptionDataset:
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        found = suffix or "without an ending"
        raise DataError(f"{path}: found a file {found}; expected {', '.join(SUFFIXES)}, or a folder")
    if suffix == ".json" and path.name.startswith(("dataset_", "captions_")):
        raise DataError(f"{path}: is one file of a set; give the folder that holds it and the pictures")
    return Captions._of_files([path], image, caption, rule)


def _open_folder(root: Path, image: str | None, caption: str | None, rule: dict[str, Any]) -> ImageCaptionDataset:
    for fits, opened in LAYOUTS:
        if image is None and caption is None and fits(root):
            return opened(root, rule)
    files = find_tables(root)
    if files:
        return Captions._of_files(files, image, caption, Rule(**rule), root)
    if holds_pictures_with_texts(root):
        return Captions.from_folder(root, **rule)
    raise DataError(f"{root}: holds no data set that is known; looked for {LOOKED_FOR}")


def _is_coco(root: Path) -> bool:
    karpathy, official = find_coco(root)
    return karpathy is not None or bool(official)


def _is_flickr8k(root: Path) -> bool:
    table, split_file = find_forms(root, Flickr8k.split_file)
    return (table is not None and table.name.startswith("Flickr8k")) or (
        split_file is not None and split_file.name == Flickr8k.split_file
    )


def _is_flickr30k(root: Path) -> bool:
    return any(found is not None for found in find_forms(root, Flickr30k.split_file))


def _is_saved(root: Path) -> bool:
    return (root / "state.json").is_file() or (root / "dataset_dict.json").is_file()


def _open_saved(root: Path, rule: dict[str, Any]) -> ImageCaptionDataset:
    """What `Dataset.save_to_disk` or `DatasetDict.save_to_disk` wrote."""
    try:
        import datasets
    except ImportError:
        raise ImportError(
            f'{root}: reading what save_to_disk wrote needs the datasets library: pip install "miniclip[datasets]"',
            name="datasets",
        ) from None
    found = datasets.load_from_disk(str(root))
    if isinstance(found, dict):
        parts = [part.add_column("split", [name] * len(part)) for name, part in found.items()]
        found = datasets.concatenate_datasets(parts)
    return Captions.from_huggingface(found, **rule)


# Asked in this order: the marks of the first are the most particular.
LAYOUTS: Sequence[tuple[Callable[[Path], bool], Callable[[Path, dict[str, Any]], ImageCaptionDataset]]] = (
    (_is_saved, _open_saved),
    (_is_coco, lambda root, rule: CocoCaptions(root, **rule)),
    (_is_flickr8k, lambda root, rule: Flickr8k(root, **rule)),
    (_is_flickr30k, lambda root, rule: Flickr30k(root, **rule)),
)


def find_tables(root: Path) -> list[Path]:
    """The tables of a folder that are one set: parquet files, one table, or one for each split.

    Raises:
        DataError: there are several, and their names do not say how they belong together.
    """
    parquet = find_parquet(root)
    if parquet:
        return parquet
    below = [root / word for word in _split_folders(root)]
    tables = [path for folder in (root, *below) for path in _tables_in(folder)]
    if len(tables) < 2:
        return tables
    metadata = [path for path in tables if path.stem == "metadata"]
    tables = metadata or tables
    splits = [split_of(path) for path in tables]
    if len(tables) > 1 and (None in splits or len(set(splits)) < len(splits)):
        names = ", ".join(str(path.relative_to(root)) for path in tables[:5])
        raise DataError(f"{root}: holds {len(tables)} tables ({names}); give the one that is meant, as a file")
    return tables


def _split_folders(root: Path) -> list[str]:
    return sorted(path.name for path in root.iterdir() if path.is_dir() and path.name.lower() in MEANING)


def _tables_in(folder: Path) -> list[Path]:
    kinds = {".csv", ".tsv", ".tab", ".jsonl", ".ndjson"}
    return sorted(
        path for path in folder.iterdir() if path.suffix.lower() in kinds and path.is_file() and path.name[0] != "."
    )
