"""Output of searches: a table, JSON, paths for pipes, a contact sheet."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from PIL import Image

from miniclip.search import Hit, Index, Item


def shown(path: str) -> str:
    """Return a path for a terminal: relative to the working directory if below it, without control characters."""
    here = os.path.join(Path.cwd(), "")  # noqa: PTH118  (with a slash at the end)
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in path.removeprefix(here))


def as_table(hits: Sequence[Hit]) -> str:
    """Return a line per hit: score and path."""
    return "\n".join(f"{hit.score:7.4f}  {shown(hit.path)}" for hit in hits)


def as_json(hits: Iterable[Hit], query: str, index: Index) -> str:
    """Return the hits as JSON."""
    return dumped(
        {
            "index": str(index.path),
            "query": query,
            "hits": [{"path": hit.path, "score": round(hit.score, 6), **properties(hit.item)} for hit in hits],
        }
    )


def properties(item: Item) -> dict[str, Any]:
    """Return the properties of an image for JSON; images that are not files have no time of change."""
    changed = datetime.fromtimestamp(item.mtime_ns / 1e9, UTC).isoformat(timespec="seconds") if item.mtime_ns else None
    return {
        "name": item.name, "modified": changed, "size": item.size, "width": item.width, "height": item.height,
        "sha256": item.sha256,
    }  # fmt: skip


def dumped(value: Any) -> str:
    """Return JSON, with escapes only if a name of a file is not Unicode."""
    text = json.dumps(value, indent=2, ensure_ascii=False)
    try:
        text.encode()
    except UnicodeEncodeError:
        return json.dumps(value, indent=2)
    return text


def print_paths(paths: Iterable[str]) -> None:
    """Print paths as bytes, each ended by a null character, for `xargs -0`."""
    sys.stdout.flush()
    for path in paths:
        sys.stdout.buffer.write(os.fsencode(path) + b"\0")
    sys.stdout.buffer.flush()


class HitImages:
    """Images of hits as a dataset, with rank, score and name as captions; those that cannot be read are left out."""

    def __init__(self, index: Index, hits: Sequence[Hit]) -> None:
        self.index = index
        self.hits = [(rank, hit) for rank, hit in enumerate(hits, 1) if self._is_readable(hit)]
        self.captions = [[f"{rank}. {hit.score:.3f} {hit.item.name}"] for rank, hit in self.hits]

    def __len__(self) -> int:
        return len(self.hits)

    def __getitem__(self, number: int) -> tuple[Image.Image, list[str]]:
        return self.index.image(self.hits[number][1].item), self.captions[number]

    def _is_readable(self, hit: Hit) -> bool:
        from miniclip.errors import DataError

        try:
            self.index.image(hit.item)
        except (DataError, OSError) as error:
            print(f"left out of the contact sheet: {error}", file=sys.stderr)
            return False
        return True


def write_sheet(index: Index, hits: Sequence[Hit], path: Path) -> None:
    """Draw the images of hits into a contact sheet."""
    from miniclip.data.tools.contact_sheet import contact_sheet

    images = HitImages(index, hits)
    contact_sheet(images, path, count=len(images), columns=min(6, max(1, len(images))))
