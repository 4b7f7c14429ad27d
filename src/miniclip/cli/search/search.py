"""`miniclip search`: find images in an index by text and by image."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from miniclip.cli.parsing import add_command

EPILOG = """queries:
  a red bicycle                        a text; quotes are not needed
  sunset.jpg                           an image, if the file exists
  '2*beach + sunset.jpg - "people"'    a sum with weights; + and - have spaces around them
  '"sunset.jpg"'                       in quotes, always a text; text: and image: before an item decide it too

examples:
  miniclip search photos.index a red bicycle
  miniclip search photos.index a red bicycle -k 50 --threshold 0.25 --path '2023/*' --after 2023-06-01
  miniclip search photos.index a red bicycle --sheet hits.png
  miniclip search photos.index a red bicycle -0 | xargs -0 cp -t chosen/
"""


def add(commands: Any) -> None:
    """Add the command."""
    search = add_command(commands, "search", search_command, "find images in an index by text and by image", EPILOG)
    search.add_argument("index", metavar="INDEX", help="directory that `miniclip index` wrote")
    search.add_argument("query", nargs="+", metavar="QUERY", help="texts and images, see below")
    search.add_argument("-k", type=int, default=10, metavar="N", help="greatest number of images (default 10)")
    search.add_argument("--threshold", type=float, metavar="X", help="smallest cosine similarity, -1 to 1")
    filters = search.add_argument_group("images to search among")
    filters.add_argument(
        "--path", action="append", metavar="PATTERN", help="folder, file or pattern in the indexed folder; repeatable"
    )
    filters.add_argument(
        "--after", metavar="DATE", help="changed at or after it: 2024-05-01, or 2024-05-01T18:30+02:00"
    )
    filters.add_argument("--before", metavar="DATE", help="changed before it; local time if it has no time zone")
    filters.add_argument("--min-size", metavar="BYTES", help="of the file, as 500kB or 2MB")
    filters.add_argument("--max-size", metavar="BYTES", help="likewise")
    filters.add_argument("--min-width", type=int, metavar="N", help="in pixels")
    filters.add_argument("--min-height", type=int, metavar="N", help="in pixels")
    search.add_argument("--template", action="append", help="prompt with {} for a text; may be repeated")
    search.add_argument("--engine", default="exact", metavar="NAME", help="exact (default), faiss or usearch")
    search.add_argument("--model", help="the index's model, if it is in another place now")
    output = search.add_argument_group("output")
    form = output.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print JSON instead of a table")
    form.add_argument("-0", "--null", action="store_true", help="print only paths, each ended by a null character")
    form.add_argument("--show", action="store_true", help="show thumbnails, in the terminals kitty, iTerm2 and alike")
    output.add_argument("--sheet", metavar="PNG", help="also draw the images into a contact sheet")


def search_command(
    index: str,
    query: list[str],
    k: int,
    threshold: float | None,
    template: list[str] | None,
    engine: Any,
    model: str | None,
    json: bool,
    null: bool,
    show: bool,
    sheet: str | None,
    path: list[str] | None,
    **filters: Any,
) -> None:
    """Run `miniclip search`."""
    from miniclip.cli.search import output
    from miniclip.cli.search.terminal import require_protocol, show_thumbnails
    from miniclip.search import Filter, Index, Query

    protocol = require_protocol(os.environ, sys.stdout.isatty()) if show else None
    if sheet is not None:
        from miniclip.data.tools.contact_sheet import require_sheet_path

        require_sheet_path(Path(sheet))
    where = Filter(path or (), **filters)
    expression = joined(query)
    parsed = Query.of(expression)
    with Index.open(index) as opened:
        load_model(opened, model)
        hits = opened.search(parsed, k, where=where, threshold=threshold, templates=template, engine=engine)
        if json:
            print(output.as_json(hits, expression, opened))
        elif null:
            output.print_paths([hit.path for hit in hits])
        elif protocol:
            show_thumbnails(opened, hits, protocol)
        elif hits:
            print(output.as_table(hits))
        if not hits:
            print("no image matches", file=sys.stderr)
        elif sheet is not None:
            output.write_sheet(opened, hits, Path(sheet))
            print(f"wrote {sheet}", file=sys.stderr)


def joined(words: list[str]) -> str:
    """Return the words of a query as one expression; a path with spaces stays one item."""
    if len(words) == 1:
        return words[0]
    return " ".join(_as_item(word) for word in words)


def _as_item(word: str) -> str:
    if " " in word and '"' not in word and Path(word).is_file():
        escaped = word.replace("\\", "\\\\")
        return f'image:"{escaped}"'
    return word


def load_model(index: Any, model: str | None) -> None:
    """Load the model of an index from a given place, or from the recorded one.

    Raises:
        ValueError: it cannot be loaded from the recorded place, or is another model.
    """
    import miniclip

    if model is not None:
        index.use_model(miniclip.load(model))
        return
    try:
        index.model  # noqa: B018  (loads it)
    except (OSError, ValueError) as error:
        name = index.snapshot.settings["model"] or "not recorded"
        raise ValueError(
            f"{index.path}: its model ({name}) cannot be loaded: {error}; if it is in another place now, give that as "
            "--model PLACE"
        ) from error
