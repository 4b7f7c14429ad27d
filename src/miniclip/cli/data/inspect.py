"""`miniclip data inspect`: content and problems of a dataset."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import Any

from miniclip.cli.parsing import add_command

EPILOG = """examples:
  miniclip data inspect photos.csv                   any layout that `miniclip train --data` takes
  miniclip data inspect flickr30k --split train --sheet sheet.png
  miniclip data inspect photos --tokenizer runs/mine/best
"""


def add(commands: Any) -> None:
    """Add the command."""
    text = "print the content and the problems of a dataset"
    inspect = add_command(commands, "inspect", inspect_command, text, EPILOG)
    inspect.add_argument("data", metavar="PATH", help="a folder, a table, tars, a cache, or shapes")
    inspect.add_argument("--split", help="train, val, test or all (default: all; train for datasets without all)")
    inspect.add_argument("--sheet", metavar="FILE.png", help="draw some images with their captions into this file")
    inspect.add_argument(
        "--tokenizer",
        metavar="PATH",
        help="count tokens with this tokenizer.json or checkpoint directory (default: learn one, as train does)",
    )
    inspect.add_argument("--max-lines", type=int, default=20, metavar="N", help="lines of each list (default 20)")


def inspect_command(data: str, split: str | None, sheet: str | None, tokenizer: str | None, max_lines: int) -> None:
    """Run `miniclip data inspect`."""
    from miniclip.data import inspect
    from miniclip.data.tools.contact_sheet import contact_sheet, require_sheet_path
    from miniclip.tokenizer.loading import load_tokenizer

    if sheet is not None:
        require_sheet_path(Path(sheet))  # before minutes of work
        require_outside(Path(sheet), data)
    if max_lines < 1:
        raise ValueError(f"--max-lines is {max_lines}; expected 1 or more")
    loaded = None if tokenizer is None else load_tokenizer(tokenizer)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # the report lists everything that is skipped
        dataset, split = open_split(data, split)
        inspection = inspect(dataset, tokenizer=loaded, progress=sys.stderr.isatty())
    print(f"{data}, {split}")
    print(inspection.report(max_lines))
    if sheet is not None:
        contact_sheet(dataset, sheet, indices=inspection.readable)
        print(f"contact sheet: {sheet}")


def open_split(data: str, split: Any) -> tuple[Any, str]:
    """Open a dataset without what cannot be read; return it and the name of its split."""
    from miniclip.data import open_data

    options: dict[str, Any] = {"on_error": "skip", "max_skip_fraction": 1.0}
    if split is not None:
        return open_data(data, split, **options), split
    try:
        return open_data(data, "all", **options), "all"
    except ValueError as error:
        if type(error) is not ValueError:  # DataError is a ValueError
            raise
        return open_data(data, "train", **options), "train"


def require_outside(path: Path, data: str) -> None:
    """Check that a sheet is not among the images of a dataset.

    Raises:
        FileExistsError: the path is in the dataset's folder.
    """
    from miniclip.data.opening import parse_spec

    folder = parse_spec(data).path
    if folder.is_dir() and path.resolve().is_relative_to(folder.resolve()):
        raise FileExistsError(
            f"--sheet {path}: is in the folder of the dataset, {folder}, where it could be taken for an image: choose "
            "a path outside of it"
        )
