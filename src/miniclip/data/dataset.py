"""Pictures with captions: what training and evaluation take, and the form that pictures on disk have."""

from __future__ import annotations

import operator
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from PIL import Image

from miniclip.data.decoding import open_image
from miniclip.data.formats.rows import Pictures, Rule, Stored, collect
from miniclip.data.skipping import MAX_SKIP_FRACTION, OnError, SkipLog
from miniclip.data.splits import Split


class ImageCaptionDataset(Protocol):
    """Pictures with one or more captions each: all that training and evaluation ask of a data set."""

    @property
    def captions(self) -> Sequence[Sequence[str]]:
        """The captions of every picture, known without opening one."""

    def __len__(self) -> int:
        """The number of pictures."""

    def __getitem__(self, index: int) -> tuple[Image.Image, list[str]]:
        """The picture, RGB, and its captions."""


class Captions:
    """Pictures with their captions, opened one by one as they are asked for.

    `data[i]` is `(picture, captions)`: an RGB PIL image, decoded and upright, and a list of strings. The class methods
    read what people have: tables, folders, sets of the Hub; docs/data.md describes the layouts.

    Args:
        paths: the pictures, N of them: files, or objects whose `read()` gives the bytes of one, and whose `str` is
            its name.
        captions: for each picture its captions, one or more.
        skip_log: what a reader could not use.
        splits: the split of each picture; empty where nothing is known of it.
        about: what the set was read from, in words.

    Raises:
        ValueError: the two differ in length, or a picture has no caption.
        TypeError: a picture's captions are a bare string instead of a list of strings.
    """

    def __init__(
        self,
        paths: Sequence[Path | Stored],
        captions: Sequence[Sequence[str]],
        *,
        skip_log: SkipLog | None = None,
        splits: Sequence[str] = (),
        about: str = "",
    ) -> None:
        if len(paths) != len(captions):
            raise ValueError(f"{len(paths)} paths but {len(captions)} lists of captions: give one list a picture")
        for path, own in zip(paths, captions, strict=True):
            if isinstance(own, str):
                raise TypeError(f"the captions of {path} are the string {own!r}: give a list of strings, [{own!r}]")
            if not own:
                raise ValueError(f"{path} has no caption: give it one, or leave the picture out")
        self.paths: list[Path | Stored] = [Path(path) if isinstance(path, str) else path for path in paths]
        self.captions: list[list[str]] = [list(own) for own in captions]
        self.skip_log = SkipLog() if skip_log is None else skip_log
        self.splits: list[str] = list(splits)
        self.about = about

    @classmethod
    def from_csv(
        cls,
        path: str | Path,
        *,
        image: str | None = None,
        caption: str | Sequence[str] | None = None,
        separator: str | None = None,
        split: Split = "all",
        seed: int = 0,
        on_error: OnError = "raise",
        max_skip_fraction: float = MAX_SKIP_FRACTION,
    ) -> Captions:
        """Read a table of paths and captions, CSV or TSV, one caption a row, or lists of them.

        Args:
            path: the file; its first line names the columns. The pictures' paths start from its folder, or from one
                such as `images/` in it.
            image: the column of the pictures; None: one with a usual name, such as image, filepath, filename.
            caption: the column of the captions, or several; None: one with a usual name, such as caption, text, title.
            separator: between fields; None: the one that makes sense of the first line.
            split: "train", "val", "test" or "all", by the column split where there is one, else drawn by a hash.
            seed: of the drawn split.
            on_error: "raise" at a row or a picture that cannot be used, or "skip" it, named in `skip_log`.
            max_skip_fraction: the share that may be left out.

        Raises:
            FileNotFoundError: there is no such file.
            DataError: a column is not there, a row or a picture cannot be used: the message has the line.
            ValueError: no such split.
        """
        from miniclip.data.formats.tables import open_table, read_table

        path, skip_log = Path(path).expanduser(), SkipLog(on_error, max_skip_fraction)
        table = open_table(path, skip_log, image, caption, separator)
        rule = Rule(split, seed, on_error, max_skip_fraction)
        entries = read_table(table, skip_log)
        return cls._of(collect(path, entries, rule, skip_log, about=table.about, exact=True))

    @classmethod
    def from_jsonl(
        cls,
        path: str | Path,
        *,
        image: str | None = None,
        caption: str | Sequence[str] | None = None,
        split: Split = "all",
        seed: int = 0,
        on_error: OnError = "raise",
        max_skip_fraction: float = MAX_SKIP_FRACTION,
    ) -> Captions:
        """Read a file with an object a line, such as `{"image": "a.jpg", "caption": "a dog"}`, or a JSON list of them.

        The captions may be text or a list. The rest is as in `from_csv`.
        """
        return cls._of_files([Path(path).expanduser()], image, caption, Rule(split, seed, on_error, max_skip_fraction))

    @classmethod
    def from_parquet(
        cls,
        path: str | Path | Sequence[str | Path],
        *,
        image: str | None = None,
        caption: str | Sequence[str] | None = None,
        split: Split = "all",
        seed: int = 0,
        on_error: OnError = "raise",
        max_skip_fraction: float = MAX_SKIP_FRACTION,
    ) -> Captions:
        """Read a parquet file, a folder of them, or a list: paths, or the pictures themselves, as on the Hub.

        The split is that which the names of several files speak of, such as `train-00000-of-00002.parquet`, or the
        column split. The rest is as in `from_csv`.

        Raises:
            ModuleNotFoundError: pyarrow is not installed.
        """
        from miniclip.data.formats.multifile import find_parquet

        paths = [Path(one).expanduser() for one in ([path] if isinstance(path, str | Path) else path)]
        files = find_parquet(paths[0]) if len(paths) == 1 and paths[0].is_dir() else paths
        if not files:
            raise FileNotFoundError(f"{paths[0] if paths else 'an empty list'}: holds no parquet files")
        return cls._of_files(files, image, caption, Rule(split, seed, on_error, max_skip_fraction))

    @classmethod
    def from_folder(
        cls,
        path: str | Path,
        *,
        split: Split = "all",
        seed: int = 0,
        on_error: OnError = "raise",
        max_skip_fraction: float = MAX_SKIP_FRACTION,
    ) -> Captions:
        """Read the pictures at or below a folder, each with a text file beside it: `dog.jpg`, `dog.txt`.

        A line of the text file is a caption. The split is that of folders called train, val and test, where all
        pictures are in such; else drawn by a hash. The rest is as in `from_csv`.
        """
        from miniclip.data.formats.folder import read_folder

        path, skip_log = Path(path).expanduser(), SkipLog(on_error, max_skip_fraction)
        rule, about = Rule(split, seed, on_error, max_skip_fraction), "pictures with text files beside them"
        return cls._of(collect(path, read_folder(path, skip_log), rule, skip_log, about=about))

    @classmethod
    def from_huggingface(
        cls,
        dataset: Any,
        *,
        image: str | None = None,
        caption: str | Sequence[str] | None = None,
        split: Split = "all",
        seed: int = 0,
        on_error: OnError = "raise",
        max_skip_fraction: float = MAX_SKIP_FRACTION,
    ) -> Captions:
        """Take a `Dataset` of Hugging Face's datasets library. No picture is decoded before it is asked for.

        Args:
            dataset: such as `datasets.load_dataset("org/repo", split="train")`.
            image: as in `from_csv`.
            caption: as in `from_csv`.
            split: as in `from_csv`: what is passed is all in all; "train" and "val" divide it.
            seed: of the drawn split.
            on_error: as in `from_csv`.
            max_skip_fraction: as in `from_csv`.

        Raises:
            TypeError: it is a dict of splits, or streamed.
            DataError: a column is not there, a row cannot be used.
        """
        from miniclip.data.formats.huggingface import open_dataset, read_dataset

        dataset, columns = open_dataset(dataset, image, caption)
        skip_log, rule = SkipLog(on_error, max_skip_fraction), Rule(split, seed, on_error, max_skip_fraction)
        about, source = f"a Hugging Face data set, {columns}", Path("the data set")
        entries = read_dataset(dataset, columns)
        return cls._of(collect(source, entries, rule, skip_log, about=about, base=Path.cwd(), exact=True))

    @classmethod
    def _of_files(
        cls,
        files: Sequence[Path],
        image: str | None,
        caption: str | Sequence[str] | None,
        rule: Rule,
        source: Path | None = None,
    ) -> Captions:
        """One table, or several that are one set; `source` is the folder that they are in."""
        from miniclip.data.formats.multifile import read_several

        skip_log = SkipLog(rule.on_error, rule.max_skip_fraction)
        base = source or Path(os.path.commonpath([file.parent for file in files]))
        read = read_several(files, skip_log, base, image, caption)
        about, exact = read.about, read.says_split
        return cls._of(collect(source or files[0], read.entries, rule, skip_log, about=about, base=base, exact=exact))

    @classmethod
    def _of(cls, found: Pictures) -> Captions:
        return Captions(found.paths, found.captions, skip_log=found.skip_log, splits=found.splits, about=found.about)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Image.Image, list[str]]:
        """Open a picture; negative indices count from the end.

        Raises:
            IndexError: the index is out of range.
            DataError: the file cannot be read as a picture.
        """
        index = checked_index(index, len(self))
        return self.image(index), list(self.captions[index])

    def image(self, index: int, at_least: int | None = None) -> Image.Image:
        """The picture alone; a JPEG may come out smaller, both sides `at_least` pixels long, where that is faster.

        Optional for a data set, and so is `name`: the loader asks for them through `image_of` and `name_of`.
        """
        return open_image(self.file(index), self.name(index), at_least)

    def file(self, index: int) -> Path | bytes:
        """The picture's file, as `open_image` takes it: its path, or its bytes where it lies in another file.

        Raises:
            OSError: the other file cannot be read.
        """
        path = self.paths[checked_index(index, len(self))]
        return path if isinstance(path, Path) else path.read()

    def encoded(self, index: int) -> bytes:
        """The bytes of the picture file, as they are.

        Raises:
            OSError: the file cannot be read.
        """
        file = self.file(index)
        return file if isinstance(file, bytes) else file.read_bytes()

    def name(self, index: int) -> str:
        """What a user finds the picture by: its path."""
        return str(self.paths[checked_index(index, len(self))])

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self):,} pictures, {sum(map(len, self.captions)):,} captions)"


def image_of(data: ImageCaptionDataset, index: int, at_least: int | None = None) -> Image.Image:
    """A picture of any data set; reduced, down to `at_least` pixels a side, where the set has a method `picture`."""
    image = getattr(data, "image", None)
    return data[index][0] if image is None else image(index, at_least)


def file_of(data: ImageCaptionDataset, index: int) -> Path | bytes | None:
    """The file that a picture of any data set is in; None where the set makes its pictures in a way of its own."""
    if not isinstance(data, Captions) or type(data).image is not Captions.image:
        return None
    return data.file(index)


def name_of(data: ImageCaptionDataset, index: int) -> str:
    """What a user finds a picture by: what the set's method `name` says, or its number."""
    name = getattr(data, "name", None)
    return f"picture {index}" if name is None else str(name(index))


def checked_index(index: int, length: int) -> int:
    """Turn an index that may be negative into one in 0..length-1, or raise IndexError."""
    position = operator.index(index)
    if not -length <= position < length:
        raise IndexError(f"index {position} is out of range for {length} pictures")
    return position % length
