"""Folders that `Dataset.save_to_disk` or `DatasetDict.save_to_disk` of Hugging Face's datasets wrote."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from miniclip.data.formats.json_layouts import read_head
from miniclip.errors import DataError


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
        return datasets.load_from_disk(str(root))
    except (OSError, ValueError, LookupError) as error:  # pyarrow's errors are ValueErrors
        reason = " ".join(str(error).split())
        raise DataError(f"{root}: cannot be read as a dataset of save_to_disk: {reason}; save it again") from error
