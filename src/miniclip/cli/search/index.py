"""`miniclip index`: build an index of images, or update it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from miniclip.cli.parsing import add_command
from miniclip.utils.formatting import format_command, format_duration

EPILOG = """examples:
  miniclip index vit_b_16 photos/                  writes photos.index
  miniclip index runs/shapes photos/ -o my.index
  miniclip index vit_b_16 shards/                  also tars, parquet files, tables and caches
  miniclip index photos.index                      updates it: the same model, the same folder
  miniclip index dupes photos.index                lists equal and similar images (`miniclip index dupes --help`)

The same command updates an index, and continues an interrupted build. Only new and changed images are encoded.
"""


def add(commands: Any) -> None:
    """Add the command."""
    index = add_command(commands, "index", index_command, "encode a folder of images, to search in it", EPILOG)
    index.add_argument("model", metavar="MODEL", help="a name, a run, a checkpoint, a Hub repository; or an index")
    index.add_argument("source", nargs="?", metavar="SOURCE", help="folder of images, or a dataset (docs/data.md)")
    index.add_argument("-o", "--output", metavar="INDEX", help="directory of the index (default: SOURCE.index)")
    index.add_argument("--batch-size", type=int, default=64, metavar="N", help="images per batch (default 64)")
    index.add_argument("--num-workers", type=int, metavar="N", help="threads that read images (default: one per core)")
    index.add_argument("--retry", action="store_true", help="try unreadable files again that have not changed")
    index.add_argument("--device", help="cpu, cuda or mps (default: the GPU if there is one)")


def index_command(
    model: str,
    source: str | None,
    output: str | None,
    batch_size: int,
    num_workers: int | None,
    retry: bool,
    device: str | None,
) -> None:
    """Run `miniclip index`."""
    from miniclip.runtime.devices import select_device
    from miniclip.search import Index
    from miniclip.search.updating.building import recorded, update_index
    from miniclip.search.updating.update import UpdateOptions

    target = select_device(device)
    if source is None:
        if output is not None:
            raise ValueError("-o needs a model and a source, as in: miniclip index vit_b_16 photos/ -o my.index")
        output, (model, source) = model, recorded(model)
    options = UpdateOptions(batch_size, num_workers, progress=sys.stderr.isatty(), retry=retry)
    try:
        path, _, report = update_index(model, source, output, options, target)
    except KeyboardInterrupt:
        print("stopped; the same command continues the index", file=sys.stderr)
        raise
    for name, reason in report.unreadable.items():
        print(f"unreadable: {' '.join(f'{name}: {reason}'.split())}", file=sys.stderr)
    with Index.open(path) as index:
        print(summary(shown_path(path), len(index), report))
    print(f"next: {format_command('miniclip', 'search', shown_path(path), 'a red bicycle')}")


def shown_path(path: Path) -> str:
    """Return a path relative to the working directory if it is below it."""
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


def summary(path: str, total: int, report: Any) -> str:
    """Return the counts of an update as one line."""
    counts = ("added", "updated", "renamed", "removed")
    parts = [f"{getattr(report, name):,} {name}" for name in counts if getattr(report, name)]
    if report.duplicates:
        parts.append(f"{report.duplicates:,} of them duplicate{'s' * (report.duplicates > 1)}")
    if unreadable := len(report.unreadable) + report.remembered:
        again = f" ({report.remembered:,} not tried again; --retry)" if report.remembered else ""
        parts.append(f"{unreadable:,} unreadable{again}")
    changes = ", ".join(parts) or "nothing has changed"
    speed = f", {report.encoded / report.seconds:,.1f} images/s" if report.encoded else ""
    return f"{path}: {total:,} images; {changes}; {format_duration(report.seconds)}{speed}"
