"""Flickr30k and Flickr8k in their published layouts, and any dataset in one of these layouts.

Sources:
    Flickr30k: Young et al. 2014, "From image descriptions to visual denotations".
    Flickr8k: Hodosh et al. 2013, "Framing image description as a ranking task".
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, Unpack

from miniclip.data.formats.captions import Captions
from miniclip.data.formats.columns import CAPTION_COLUMNS, IMAGE_COLUMNS, ColumnNames
from miniclip.data.formats.flickr_tables import COLUMNS, is_flickr_table, read_piped, read_split_lists, read_tokens
from miniclip.data.formats.json_layouts import json_layout, read_head
from miniclip.data.formats.karpathy import KarpathyImage, find_split_file, read_karpathy
from miniclip.data.formats.multifile import find_parquet, read_files
from miniclip.data.formats.options import ReadKeywords, ReadOptions
from miniclip.data.formats.rows import ImageRow, ImageRows, select
from miniclip.data.formats.tables import read_table
from miniclip.data.skipping import SkipLog
from miniclip.data.splits import Split, normalize_split
from miniclip.errors import DataError

PIPED = "results.csv"
TOKENS = ("Flickr8k.token.txt", "results_20130124.token", "results.token")
TABLES = ("flickr_annotations_30k.csv", "captions.txt", "captions.csv")
CAPTION_FILES = (PIPED, *TOKENS, *TABLES)

# Usual folders of the caption file. A literal list: walking over 31,000 files is slow.
CAPTION_FOLDERS = (
    ".",
    "flickr30k_images",
    "flickr30k-images",
    "flickr30k",
    "flickr30k_images/flickr30k_images",
    "flickr8k",
    "Flickr8k_text",
)


class FlickrFiles(NamedTuple):
    """Caption file and Karpathy's split file of a dataset, None for one that does not exist."""

    captions: Path | None
    split: Path | None


class Flickr30k(Captions):
    """Flickr30k (31,783 images with five captions each), or any dataset in one of its layouts.

    `root`, or a usual folder in it, holds one of
    - `results.csv` of the Kaggle release, with the header `image_name| comment_number| comment`;
    - `captions.txt`, separated by commas;
    - `results_20130124.token` of the authors;
    - `flickr_annotations_30k.csv` or parquet files of the Hub;
    - only Karpathy's `dataset_flickr30k.json`.
    The images are beside it or in a folder such as `flickr30k_images/` or `images/`.

    The split is, in this order:
    - Karpathy's, if `dataset_flickr30k.json` (or another JSON file of that layout) is there. `restval` counts as
      `train`. Images that he left out are left out, also of "all"; `unsplit` counts them, 769 in Flickr30k.
    - the dataset's own, if it has one;
    - drawn by a hash of the seed and the image name: 1,000 images for `val` and 1,000 for `test`, or a tenth of a
      smaller dataset for each. The rest is `train`. The order of the rows does not matter.

    Args:
        root: the folder, or the file with the captions in it.
        split: "train", "val", "test", or "all".
        **options: as in `Captions`.

    Attributes:
        unsplit: number of images that have captions and are in no split.

    Raises:
        FileNotFoundError: the folder does not exist.
        DataError: the files in the folder are not as described; the message names the file and the line.
        ValueError: the split does not exist.
    """

    split_file = "dataset_flickr30k.json"

    def __init__(self, root: str | Path, split: Split = "train", **options: Unpack[ReadKeywords]) -> None:
        path = Path(root).expanduser()
        self.root = path.parent if path.is_file() else _existing_folder(path)
        self.split = split
        read_options = ReadOptions(split, **options)
        skip_log = read_options.new_skip_log()
        if path.is_dir():
            files = find_flickr(path, self.split_file)
        elif json_layout(path) == "karpathy":
            files = FlickrFiles(None, path)
        else:
            files = FlickrFiles(path, find_split_file([self.root], self.split_file))
        dataset, self.unsplit = _apply_split(_read(self.root, files, skip_log), files, skip_log)
        super().__init__(*select(dataset, read_options, skip_log))


class Flickr8k(Flickr30k):
    """Flickr8k (8,091 images with five captions each), or any dataset in one of its layouts.

    `root` holds one of
    - `captions.txt` of the Kaggle release (`image,caption`) beside `Images/`;
    - the authors' `Flickr8k.token.txt` beside `Flicker8k_Dataset/`. The lists `Flickr_8k.trainImages.txt`,
      `….devImages.txt` and `….testImages.txt` are the split;
    - Karpathy's `dataset_flickr8k.json`.
    Everything else is as in `Flickr30k`.
    """

    split_file = "dataset_flickr8k.json"


def find_flickr(root: Path, split_file: str) -> FlickrFiles:
    """Find the caption file and the split file at or below a folder."""
    captions = find_captions(root)
    return FlickrFiles(captions, find_split_file([captions.parent, root] if captions else _folders(root), split_file))


def find_captions(root: Path) -> Path | None:
    """Find the caption file at or below a folder; a file with captions goes before other files of the usual names."""
    paths = [path for name in CAPTION_FILES for folder in _folders(root) if (path := folder / name).is_file()]
    return next((path for path in paths if is_caption_file(path)), paths[0] if paths else None)


def has_file(root: Path, name: str) -> bool:
    """Return whether a file is in one of the usual folders of the caption file."""
    return any((folder / name).is_file() for folder in _folders(root))


def _folders(root: Path) -> list[Path]:
    return [root / folder for folder in CAPTION_FOLDERS if (root / folder).is_dir()]


def is_caption_file(path: Path) -> bool:
    """Return whether a file of a usual name has the content of a caption file, by its first line."""
    if is_flickr_file(path):
        return True
    first_line = read_head(path).partition("\n")[0]
    names = [name.strip().lower() for name in re.split(r"[,\t;]", first_line)]
    return any(name in IMAGE_COLUMNS for name in names) and any(name in CAPTION_COLUMNS for name in names)


def is_flickr_file(path: Path) -> bool:
    """Return whether a file is results.csv of the Kaggle release or a .token file of the authors, by its content."""
    return is_flickr_table(read_head(path).partition("\n")[0])


def _existing_folder(folder: Path) -> Path:
    if not folder.is_dir():
        problem = "not a folder" if folder.exists() else "the folder does not exist"
        raise FileNotFoundError(f"{folder}: {problem}; give the folder that holds {PIPED} and the images")
    return folder


def _read(root: Path, files: FlickrFiles, skip_log: SkipLog) -> ImageRows:
    """Read the captions, from the first layout that exists."""
    if files.captions is not None:
        return _read_captions(files.captions, skip_log)
    parquet = find_parquet(root)
    if parquet:
        return read_files(parquet, root, skip_log, ColumnNames())
    if files.split is not None:
        images = read_karpathy(files.split, skip_log)
        rows = [
            ImageRow(image.location, name, image.captions, image.split)
            for name, image in zip(_karpathy_names(images), images, strict=True)
        ]
        return ImageRows(files.split, rows, f"Karpathy's {files.split.name}", exact_split=True)
    raise DataError(
        f"{root}: holds no {PIPED} (header {'| '.join(COLUMNS)}), no {', '.join(CAPTION_FILES[1:])}, no dataset_*.json "
        f"(Karpathy's layout) and no parquet files; searched {', '.join(CAPTION_FOLDERS)}; extract the release of the "
        "dataset there, or give the folder that holds them"
    )


def _read_captions(path: Path, skip_log: SkipLog) -> ImageRows:
    if path.name == PIPED and (is_flickr_file(path) or not is_caption_file(path)):
        return ImageRows(path, read_piped(path, skip_log), f"{PIPED} with pipes")
    if path.name in TOKENS:
        return ImageRows(path, read_tokens(path, skip_log), path.name)
    return read_table(path, skip_log, ColumnNames())


def _karpathy_names(images: Sequence[KarpathyImage]) -> list[str]:
    """Return the names of images: with their folders if one name is in several of them."""
    if len({image.name for image in images}) == len({(image.folder, image.name) for image in images}):
        return [image.name for image in images]
    return [f"{image.folder}/{image.name}" if image.folder else image.name for image in images]


def _karpathy_splits(images: Sequence[KarpathyImage]) -> dict[str, str]:
    """Return the split of each image.

    Raises:
        DataError: an image has two.
    """
    splits: dict[str, str] = {}
    for name, image in zip(_karpathy_names(images), images, strict=True):
        split = splits.setdefault(name, image.split)
        if normalize_split(split) != normalize_split(image.split):
            raise DataError(
                f"{image.location}: {name} has the split {image.split!r} here and {split!r} before; keep one"
            )
    return splits


def _apply_split(dataset: ImageRows, files: FlickrFiles, skip_log: SkipLog) -> tuple[ImageRows, int]:
    """Replace the split by that of a separate file, and count the images that it leaves out."""
    if files.split is not None and dataset.source != files.split:
        splits = _karpathy_splits(read_karpathy(files.split, skip_log))
        split_source = files.split
        dataset = dataset._replace(split_file=files.split)
        if files.captions is not None:
            dataset = dataset._replace(about=f"{dataset.about}, the split of {files.split.name}")
    elif files.captions is not None and files.captions.name in TOKENS:
        split_source = files.captions.parent
        splits = read_split_lists(split_source)
    else:
        splits = {}
    rows = list(dataset.rows)
    if not splits:
        return dataset._replace(rows=rows), 0
    names = {row.name for row in rows}
    kept = [row._replace(split=splits[row.name]) for row in rows if row.name in splits]
    if rows and not kept:
        raise DataError(
            f"{split_source}: names none of the {len(names)} images of {dataset.source}; give the split of this dataset"
        )
    return dataset._replace(rows=kept, exact_split=True), len(names - splits.keys())
