"""Captions: the dataset class that reads tables, folders and Hugging Face datasets."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Unpack

from miniclip.data.dataset import ImageFiles
from miniclip.data.formats.columns import ColumnNames
from miniclip.data.formats.folder import read_folder
from miniclip.data.formats.huggingface import read_dataset
from miniclip.data.formats.multifile import find_parquet, read_files
from miniclip.data.formats.options import ReadKeywords, ReadOptions
from miniclip.data.formats.rows import ImageRows, refuse_numbers, select
from miniclip.data.formats.tables import read_table
from miniclip.data.skipping import SkipLog
from miniclip.data.splits import Split


class Captions(ImageFiles):
    """Captioned images, each read from its file when it is requested.

    `data[i]` is `(image, captions)`: an upright RGB PIL image and a list of strings. The class methods read the layouts
    of docs/data.md. All of them take these keyword arguments:

    - `split`: "train", "val", "test" or "all". The dataset's own split, or one that is drawn by a hash.
    - `seed`: of a drawn split.
    - `on_error`: "raise" if a row or an image cannot be used, or "skip" to list it in `skip_log`.
    - `max_skip_fraction`: limit of the fraction that may be skipped.

    Tables also take
    - `image`: the column of images or their paths. None: one with a usual name, such as image, filepath, filename.
    - `caption`: the column or columns of captions. None: one with a usual name, such as caption, text, title.
    - `group`: the column of groups, such as products: a drawn split keeps the images of a group together.

    They raise FileNotFoundError if the path does not exist, ValueError if the split does not exist, and `DataError`
    otherwise, with the line.

    Args:
        paths: N image files, or objects whose `read()` returns an encoded image and whose `str` is its name.
        captions: the captions of each image, at least one.
        skip_log: rows and images that a reader skipped.
        splits: the split of each image; empty without splits.
        about: the layout that was read and the origin of its split, for people.

    Raises:
        ValueError: the lengths differ, or an image has no caption.
        TypeError: the captions of an image are not a list of strings, or the paths are one path.
    """

    @classmethod
    def from_csv(
        cls,
        path: str | Path,
        *,
        image: str | None = None,
        caption: str | Sequence[str] | None = None,
        group: str | None = None,
        separator: str | None = None,
        split: Split = "all",
        **options: Unpack[ReadKeywords],
    ) -> Captions:
        """Read a CSV or TSV table, with one caption a row or lists of them.

        Args:
            path: the file; its first line names the columns. Image paths start from its folder, or from a usual one in
                it, such as `images/`.
            image: see the class, as for the arguments without a description.
            caption: see the class.
            group: see the class.
            separator: between fields; None: detected from the first line.
            split: see the class.
            **options: see the class.
        """
        file, names = Path(path).expanduser(), ColumnNames(image, caption, group)
        read_options = ReadOptions(split, **options)
        return _load(lambda log: read_table(file, log, names, separator=separator), read_options, names)

    @classmethod
    def from_jsonl(
        cls,
        path: str | Path,
        *,
        image: str | None = None,
        caption: str | Sequence[str] | None = None,
        group: str | None = None,
        split: Split = "all",
        **options: Unpack[ReadKeywords],
    ) -> Captions:
        """Read a file with one object a line, such as `{"image": "a.jpg", "caption": "a dog"}`, or a JSON list of them.

        A caption is a string or a list of strings. The keyword arguments are described in the class.
        """
        file = Path(path).expanduser()
        return load_tables([file], file.parent, ColumnNames(image, caption, group), ReadOptions(split, **options))

    @classmethod
    def from_parquet(
        cls,
        path: str | Path | Sequence[str | Path],
        *,
        image: str | None = None,
        caption: str | Sequence[str] | None = None,
        group: str | None = None,
        split: Split = "all",
        **options: Unpack[ReadKeywords],
    ) -> Captions:
        """Read a parquet file, a folder of them, or a list. The image column holds paths or the images themselves.

        The split is that of the file names if there are several, such as `train-00000-of-00002.parquet`, or the column
        split. The keyword arguments are described in the class.

        Raises:
            ModuleNotFoundError: pyarrow is not installed.
        """
        items = [Path(item).expanduser() for item in ([path] if isinstance(path, str | Path) else path)]
        if any(item.is_absolute() for item in items):
            items = [item.absolute() for item in items]
        files = [file for item in items for file in (find_parquet(item) if item.is_dir() else [item])]
        if not files:
            raise FileNotFoundError(f"{path}: holds no parquet files")
        root = Path(os.path.commonpath([file.parent for file in files]))
        return load_tables(files, root, ColumnNames(image, caption, group), ReadOptions(split, **options))

    @classmethod
    def from_folder(cls, path: str | Path, *, split: Split = "all", **options: Unpack[ReadKeywords]) -> Captions:
        """Read the images at or below a folder, each with a text file beside it: `dog.jpg`, `dog.txt`.

        Each line of the text file is a caption. The split is that of folders named train, val and test, if all images
        are in them; otherwise it is drawn. The keyword arguments are described in the class.
        """
        root = Path(path).expanduser()
        return _load(lambda log: read_folder(root, log), ReadOptions(split, **options))

    @classmethod
    def from_huggingface(
        cls,
        dataset: Any,
        *,
        image: str | None = None,
        caption: str | Sequence[str] | None = None,
        group: str | None = None,
        split: Split = "all",
        **options: Unpack[ReadKeywords],
    ) -> Captions:
        """Take a `Dataset` of Hugging Face's datasets library. An image is decoded when it is requested.

        Args:
            dataset: such as `datasets.load_dataset("org/repo", split="train")`.
            image: see the class.
            caption: see the class.
            group: see the class.
            split: see the class; a part of `dataset`.
            **options: see the class.

        Raises:
            TypeError: the dataset is a dict of splits, or is streamed.
        """
        names = ColumnNames(image, caption, group)
        return _load(lambda log: read_dataset(dataset, log, names), ReadOptions(split, **options), names)


def load_tables(files: Sequence[Path], root: Path, names: ColumnNames, options: ReadOptions) -> Captions:
    """Read one table, or several that make up one dataset; image names start from `root`."""
    return _load(lambda log: read_files(files, root, log, names), options, names)


def _load(read: Callable[[SkipLog], ImageRows], options: ReadOptions, names: ColumnNames | None = None) -> Captions:
    skip_log = options.new_skip_log()
    rows = read(skip_log)
    data = Captions(*select(rows, options, skip_log))
    if names is not None and names.caption is not None:
        refuse_numbers(rows.source, data.captions)
    return data
