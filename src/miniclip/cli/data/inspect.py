"""`miniclip data inspect`: what is in a data set, and what is wrong with it."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import Any

from miniclip.cli.parsing import add_command

EPILOG = """examples:
  miniclip data inspect photos.csv                   every layout that `miniclip train --data` takes
  miniclip data inspect flickr30k --split train --sheet sheet.png
  miniclip data inspect photos --tokenizer runs/mine/best
"""


def add(commands: Any) -> None:
    """Add the command."""
    text = "say what is in a data set and what is wrong with it"
    inspect = add_command(commands, "inspect", inspect_command, text, EPILOG)
    inspect.add_argument("data", metavar="PATH", help="a folder, a table, tars, a packed set, or shapes")
    inspect.add_argument("--split", help="train, val, test or all (default: all, where the set has that)")
    inspect.add_argument("--sheet", metavar="FILE.png", help="draw some pictures with their captions there")
    inspect.add_argument(
        "--tokenizer",
        metavar="PATH",
        help="count tokens with this one: a tokenizer.json, or a checkpoint directory (default: learn one, as train)",
    )
    inspect.add_argument("--at-most", type=int, default=20, metavar="N", help="lines of each list (default 20)")


def inspect_command(data: str, split: str | None, sheet: str | None, tokenizer: str | None, at_most: int) -> None:
    """`miniclip data inspect`."""
    from miniclip.data import inspect
    from miniclip.data.tools.contact_sheet import contact_sheet
    from miniclip.tokenizer.loading import load_tokenizer

    if sheet is not None:
        require_png(Path(sheet))
    if at_most < 1:
        raise ValueError(f"--at-most is {at_most}; expected 1 or more")
    loaded = None if tokenizer is None else load_tokenizer(tokenizer)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # all that is left out is listed below
        pairs, split = opened(data, split)
        found = inspect(pairs, tokenizer=loaded, progress=sys.stderr.isatty())
    print(f"{data}, {split}")
    print(found.report(at_most))
    if sheet is not None:
        contact_sheet(pairs, sheet, indices=found.readable)
        print(f"contact sheet: {sheet}")


def opened(data: str, split: str | None) -> tuple[Any, str]:
    """The set, with whatever of it can be read, and which split of it."""
    from miniclip.data import open_data

    rule: dict[str, Any] = {"on_error": "skip", "max_skip_fraction": 1.0}
    if split is not None:
        return open_data(data, split, **rule), split
    try:
        return open_data(data, "all", **rule), "all"
    except ValueError as error:
        if type(error) is not ValueError:  # DataError is one, too
            raise
        return open_data(data, "train", **rule), "train"


def require_png(path: Path) -> None:
    """Say before minutes of work that the sheet could not be written.

    Raises:
        ValueError: it is called as no PNG is.
        FileNotFoundError: its folder is not there.
    """
    if path.suffix.lower() != ".png":
        raise ValueError(f"--sheet {path}: the sheet is a PNG; call it {path.with_suffix('.png')}")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"--sheet {path}: there is no folder {path.parent}")
    if path.is_dir():
        raise ValueError(f"--sheet {path}: is a folder")
