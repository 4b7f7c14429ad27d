"""Folders that `Dataset.save_to_disk` or `DatasetDict.save_to_disk` of Hugging Face's datasets wrote.

Their `.arrow` files are streams of Arrow's IPC format: messages that begin with a marker, and an end marker. The
datasets library maps them without a check, and a damaged offset then ends the process when a row is read.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from miniclip.data.formats.json_layouts import read_head
from miniclip.errors import DataError
from miniclip.utils.files import open_regular, parse_json, read_limited

MARKER = b"\xff\xff\xff\xff"  # before each message of a stream; followed by a length of 0 at its end
END = MARKER + bytes(4)


def is_saved(root: Path) -> bool:
    """Return whether `save_to_disk` wrote a folder."""
    return '"_data_files"' in read_head(root / "state.json") or '"splits"' in read_head(root / "dataset_dict.json")


def load_saved(root: Path) -> Any:
    """Return the `Dataset`, or the `DatasetDict` of its splits.

    Raises:
        ImportError: the datasets library is not installed.
        DataError: the folder is damaged.
    """
    try:
        import datasets
    except ImportError:
        raise ImportError(
            f'{root}: reading a dataset of save_to_disk needs the datasets library: pip install "miniclip[datasets]"',
            name="datasets",
        ) from None
    try:
        for path in _arrow_files(root):
            _require_intact(path)
        return datasets.load_from_disk(str(root))
    except DataError:
        raise
    except (OSError, ValueError, LookupError, TypeError) as error:  # pyarrow's errors are ValueErrors
        reason = " ".join(str(error).split())
        raise DataError(f"{root}: cannot be read as a dataset of save_to_disk: {reason}; save it again") from error


def _arrow_files(root: Path) -> list[Path]:
    """Return the files that the states of a dataset and of its splits name."""
    files = []
    for state in sorted([*root.glob("state.json"), *root.glob("*/state.json")]):
        entries = parse_json(read_limited(state))["_data_files"]
        files += [state.parent / str(entry["filename"]) for entry in entries]
    return files


def _require_intact(path: Path) -> None:
    """Check a stream: its markers, and the offsets and texts of every batch. The bytes of images are not read.

    Raises:
        FileNotFoundError: the file does not exist, or is not a regular one.
        DataError: it is damaged, or cut short.
    """
    import pyarrow

    with open_regular(path) as file:
        start = file.read(len(MARKER))
        size = file.seek(0, 2)
        file.seek(max(0, size - len(END)))
        end = file.read()
    if start != MARKER or end != END:
        found = f"begins with {start!r}" if start != MARKER else f"ends with {end!r}"
        raise DataError(
            f"{path}: {found}, and is not a complete Arrow file; save the dataset again, or copy the file again"
        )
    try:
        with pyarrow.memory_map(str(path)) as source, pyarrow.ipc.open_stream(source) as batches:
            for batch in batches:
                batch.validate(full=True)
    except (OSError, ValueError, LookupError, NotImplementedError, MemoryError) as error:
        reason = " ".join(str(error).split())[:200]
        raise DataError(f"{path}: is damaged: {reason}; save the dataset again, or copy the file again") from error
