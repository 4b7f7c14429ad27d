"""Flickr30k and Flickr8k in the forms that people have on disk, and any set in one of these forms.

Sources:
    Flickr30k: Young et al. 2014, "From image descriptions to visual denotations".
    Flickr8k: Hodosh et al. 2013, "Framing image description as a ranking task".
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from miniclip.data.dataset import Captions
from miniclip.data.formats.flickr_tables import COLUMNS, read_piped, read_split_lists, read_tokens
from miniclip.data.formats.karpathy import Image, find_split_file, read_karpathy
from miniclip.data.formats.multifile import find_parquet, read_several
from miniclip.data.formats.rows import Entry, Rule, collect
from miniclip.data.formats.tables import open_table, read_table
from miniclip.data.skipping import MAX_SKIP_FRACTION, OnError, SkipLog
from miniclip.data.splits import Split
from miniclip.errors import DataError

PIPED = "results.csv"
TOKENS = ("Flickr8k.token.txt", "results_20130124.token", "results.token")
TABLES = ("flickr_annotations_30k.csv", "captions.txt", "captions.csv")
FORMS = (PIPED, *TOKENS, *TABLES)

# Where the table lies below the folder that a user names: literal, since walking over 31,000 files is slow.
TABLE_PLACES = (
    ".",
    "flickr30k_images",
    "flickr30k-images",
    "flickr30k",
    "flickr30k_images/flickr30k_images",
    "flickr8k",
    "Flickr8k_text",
)


class Flickr30k(Captions):
    """Flickr30k (31,783 pictures, five captions each), or any set in one of its forms.

    `root` holds the captions, or is the folder above: `results.csv` of the Kaggle release, whose header is
    `image_name| comment_number| comment`; `captions.txt` with commas; `results_20130124.token` of the authors;
    `flickr_annotations_30k.csv` or parquet files of the Hub; or Karpathy's `dataset_flickr30k.json` alone. The pictures
    lie beside it or in a folder such as `flickr30k_images/` or `images/`.

    The split is Karpathy's where his `dataset_flickr30k.json` (or another `dataset_*.json` of that layout) lies there
    or in `root`; `restval` counts as `train`, and pictures that he left out are left out, also of "all" (`unsplit`
    counts them: 769 of Flickr30k). Else it is the set's own where it has one. Else a hash of the seed and the picture's
    name draws 1,000 pictures for `val` and 1,000 for `test`, or a tenth of a smaller set for each, and the rest is
    `train`; the order of the rows does not matter to it.

    Args:
        root: the folder.
        split: "train", "val", "test", or "all" for everything.
        seed: of the drawn split; without effect where there is a split.
        on_error: "raise" at a row or a picture that cannot be used, or "skip" it, named in `skip_log`.
        max_skip_fraction: the share that may be left out.

    Attributes:
        unsplit: how many pictures have captions and are in no split.

    Raises:
        FileNotFoundError: there is no such folder.
        DataError: the folder's files are not as described: the message names the file, and the line where there is one.
        ValueError: no such split.
    """

    split_file = "dataset_flickr30k.json"

    def __init__(
        self,
        root: str | Path,
        split: Split = "train",
        *,
        seed: int = 0,
        on_error: OnError = "raise",
        max_skip_fraction: float = MAX_SKIP_FRACTION,
    ) -> None:
        self.root = _existing_folder(root)
        self.split = split
        rule, skip_log = Rule(split, seed, on_error, max_skip_fraction), SkipLog(on_error, max_skip_fraction)
        table, split_file = find_forms(self.root, self.split_file)
        entries, about, source = _read(self.root, table, split_file, skip_log)
        exact = table is not None or split_file is not None
        entries, self.unsplit = _split(source, entries, split_file, table, skip_log)
        if table and split_file:
            about = f"{about}, the split of {split_file.name}"
        found = collect(source, entries, rule, skip_log, about=about, split_by=split_file, exact=exact)
        super().__init__(found.paths, found.captions, skip_log=found.skip_log, splits=found.splits, about=found.about)


class Flickr8k(Flickr30k):
    """Flickr8k (8,091 pictures, five captions each), or any set in one of its forms.

    `root` holds `captions.txt` of the Kaggle release (`image,caption`) beside `Images/`; or the authors'
    `Flickr8k.token.txt` with the lists `Flickr_8k.trainImages.txt`, `….devImages.txt` and `….testImages.txt`, which are
    the split, and the pictures in `Flicker8k_Dataset/`; or Karpathy's `dataset_flickr8k.json`. The rest is as in
    `Flickr30k`.
    """

    split_file = "dataset_flickr8k.json"


def find_forms(root: Path, own: str) -> tuple[Path | None, Path | None]:
    """The table of captions and the split file at or below a folder, where they are."""
    bases = [root / place for place in TABLE_PLACES if (root / place).is_dir()]
    table = next((base / name for name in FORMS for base in bases if (base / name).is_file()), None)
    return table, find_split_file([table.parent, root] if table else bases, own)


def _existing_folder(root: str | Path) -> Path:
    folder = Path(root).expanduser()
    if not folder.is_dir():
        found = "a file, not a folder" if folder.exists() else "nothing there"
        raise FileNotFoundError(f"{folder}: {found}; give the folder that holds {PIPED} and the pictures")
    return folder


def _read(
    root: Path, table: Path | None, split_file: Path | None, skip_log: SkipLog
) -> tuple[Iterable[Entry], str, Path]:
    """The captions, the form in words, and the file or folder that they are from."""
    if table is not None:
        return *_read_table(table, skip_log), table
    files = find_parquet(root)
    if files:
        read = read_several(files, skip_log, root)
        return read.entries, read.about, root
    if split_file is not None:
        images = read_karpathy(split_file, skip_log)
        return [_entry(image) for image in images], f"Karpathy's {split_file.name}", split_file
    raise DataError(
        f"{root}: holds no {PIPED} (header {'| '.join(COLUMNS)}), no {', '.join(FORMS[1:])}, no dataset_*.json "
        f"(Karpathy's layout) and no parquet files; looked in {', '.join(TABLE_PLACES)}; extract the release of the "
        "set there, or give the folder that holds them"
    )


def _read_table(table: Path, skip_log: SkipLog) -> tuple[Iterable[Entry], str]:
    if table.name == PIPED:
        return read_piped(table, skip_log), f"{PIPED} with pipes"
    if table.name in TOKENS:
        return read_tokens(table, skip_log), table.name
    opened = open_table(table, skip_log)
    return read_table(opened, skip_log), opened.about


def _entry(image: Image) -> Entry:
    return Entry(image.where, image.name, image.captions, image.split)


def _split(
    source: Path, entries: Iterable[Entry], split_file: Path | None, table: Path | None, skip_log: SkipLog
) -> tuple[Sequence[Entry], int]:
    """The rows with the split that a file beside them says, and how many pictures it leaves out."""
    rows = list(entries)
    if split_file is not None and source != split_file:
        splits = {image.name: image.split for image in read_karpathy(split_file, skip_log)}
        by = split_file
    else:
        splits = read_split_lists(table.parent) if table is not None and table.name in TOKENS else {}
        by = source.parent
    if not splits:
        return rows, 0
    names = {row.name for row in rows}
    kept = [row._replace(split=splits[row.name]) for row in rows if row.name in splits]
    if rows and not kept:
        raise DataError(f"{by}: names none of the {len(names)} pictures of {source}; is it another set's?")
    return kept, len(names - splits.keys())
