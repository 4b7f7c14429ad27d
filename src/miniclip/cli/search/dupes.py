"""`miniclip index dupes`: groups of equal and similar images of an index."""

from __future__ import annotations

import sys
from typing import Any

from miniclip.cli.parsing import add_command

NAME = "index dupes"  # two words; `running.parse` joins them
EPILOG = """examples:
  miniclip index dupes photos.index
  miniclip index dupes photos.index --threshold 0.98 --json
  miniclip index dupes photos.index --threshold 1 --rest -0 | xargs -0 ls -l    equal files, without one of each group

A group holds chains of similar images: its first and its last image can differ. Look before you delete. The first image
of a group has the most pixels. For an index whose name is dupes, write ./dupes.
"""


def add(commands: Any) -> None:
    """Add the command."""
    dupes = add_command(commands, NAME, dupes_command, "list equal and similar images of an index", EPILOG)
    dupes.add_argument("index", metavar="INDEX", help="directory that `miniclip index` wrote")
    dupes.add_argument(
        "--threshold",
        type=float,
        default=0.95,
        metavar="X",
        help="smallest cosine similarity (default 0.95); 1: equal files",
    )
    dupes.add_argument("--rest", action="store_true", help="leave out the first image of each group")
    form = dupes.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print JSON")
    form.add_argument("-0", "--null", action="store_true", help="print only paths, each ended by a null character")


def dupes_command(index: str, threshold: float, rest: bool, json: bool, null: bool) -> None:
    """Run `miniclip index dupes`."""
    from miniclip.cli.search import output
    from miniclip.search import Index

    with Index.open(index) as opened:
        groups = opened.duplicates(threshold, progress=sys.stderr.isatty())
    first = 1 if rest else 0
    if null:
        output.print_paths(path for group in groups for path in group.paths[first:])
    elif json:
        print(output.dumped([_record(group, first) for group in groups]))
    else:
        for group in groups:
            print("equal files:" if group.exact else "similar:")
            for path, item in list(zip(group.paths, group.items, strict=True))[first:]:
                print(f"  {output.shown(path)}  {item.width} × {item.height}, {item.size:,} bytes")
    count = sum(len(group.paths) for group in groups)
    print(
        f"{count:,} images in {len(groups):,} group{'s' * (len(groups) > 1)}" if groups else "no duplicates",
        file=sys.stderr,
    )


def _record(group: Any, first: int) -> dict[str, Any]:
    from miniclip.cli.search import output

    images = list(zip(group.paths, group.items, strict=True))[first:]
    return {"equal": group.exact, "images": [{"path": path, **output.properties(item)} for path, item in images]}
