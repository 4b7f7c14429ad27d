"""Shards that an earlier or interrupted build of a cache has left.

A shard is written completely or not at all, then appended to a journal with its checksum. The next build keeps the
shards whose checksums still match. The journal's first line identifies the source: names, captions, the content of some
images, and preprocessing. Names do not suffice: those of stored images are often only row numbers.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from miniclip.data.cache.format import (
    INDEX,
    JOURNAL,
    MAX_LINE_BYTES,
    opened,
    parse_line,
    read_index,
    require_bytes,
    require_checksum,
)
from miniclip.data.cache.index import SOURCE, has_form, is_valid_shard
from miniclip.data.dataset import ImageCaptionDataset, ImageFiles
from miniclip.data.given import original
from miniclip.data.image_types import as_image
from miniclip.data.preprocess import Preprocess
from miniclip.errors import DataError

Shard = dict[str, Any]  # its form is in index.py
Source = dict[str, Any]  # images, captions, sha256, pixels, sample

SAMPLED_IMAGES = 16


def source_of(data: ImageCaptionDataset, names: Sequence[str], preprocess: Preprocess) -> Source:
    """Return a fingerprint of what a cache is built from: image names, captions, some images, and preprocessing."""
    digest = hashlib.sha256()
    for name, captions in zip(names, data.captions, strict=True):
        digest.update(json.dumps([name, list(captions)]).encode())
    counts = {"images": len(data), "captions": sum(map(len, data.captions))}
    sampled = sorted({number * len(data) // SAMPLED_IMAGES for number in range(SAMPLED_IMAGES)}) if len(data) else []
    sample = [_checksum(data, index) for index in sampled]
    return {**counts, "sha256": digest.hexdigest(), "pixels": preprocess.pixel_settings, "sample": sample}


def _checksum(data: ImageCaptionDataset, index: int) -> str | None:
    """Return a checksum of an encoded image, or of the pixels that a dataset makes itself; None if it is unreadable."""
    data, index = original(data, index)
    try:
        content = data.encoded(index) if isinstance(data, ImageFiles) else as_image(data[index][0]).tobytes()
        return hashlib.sha256(content).hexdigest()[:16]
    except (DataError, OSError):
        return None


def has_newer_images(data: ImageCaptionDataset, span: range, file: Path) -> bool:
    """Return whether an image file of a shard was written after the shard."""
    built = file.stat().st_mtime_ns
    for place, index in (original(data, index) for index in span):
        path = place.paths[index] if isinstance(place, ImageFiles) else None
        if isinstance(path, Path) and path.exists() and path.stat().st_mtime_ns > built:
            return True
    return False


def _is_same(old: Source, new: Source) -> bool:
    """Compare two sources; an image that could not be read may have been repaired."""
    pairs = zip(old.get("sample", []), new["sample"], strict=False)
    return {**old, "sample": None} == {**new, "sample": None} and all(a == b or None in (a, b) for a, b in pairs)


def intact_shards(folder: Path, source: Source, spans: Sequence[range]) -> dict[int, Shard]:
    """Return the shards of an earlier build that are undamaged, by the index of their first image.

    Args:
        folder: of the split.
        source: of this build.
        spans: indices of the images of each shard.

    Raises:
        ValueError: they were built from another source.
    """
    for temporary in folder.glob(".*.????????"):  # left by a build that was killed
        temporary.unlink()
    recorded = _recorded(folder)
    if recorded is None:
        return {}
    old_source, shards = recorded
    if not _is_same(old_source, source):
        raise ValueError(
            f"{folder} was built from other images or captions, or with other settings ({old_source['images']:,} "
            f"images, now {source['images']:,}): name another folder, or remove that one"
        )
    intact, size = {}, source["pixels"]["size"]
    numbers = {span.start: number for number, span in enumerate(spans)}
    for shard in shards:
        first = shard.get("first") if isinstance(shard, dict) else None
        number = numbers.get(first) if isinstance(first, int) else None
        if number is None or not is_valid_shard(shard, number, spans[number], size):
            continue
        with suppress(DataError):
            require_bytes(folder / shard["file"], shard["bytes"])
            require_checksum(folder / shard["file"], shard["sha256"])
            intact[shard["first"]] = shard
    return intact


def record_shard(folder: Path, source: Source, shard: Shard) -> None:
    """Append a finished shard to the journal."""
    with (folder / JOURNAL).open("a+", encoding="utf-8") as file:
        file.seek(0)
        content = file.read()
        if not content:
            file.write(json.dumps(source) + "\n")
        elif not content.endswith("\n"):  # the last line was cut by a crash
            file.truncate(content.rindex("\n") + 1 if "\n" in content else 0)
        file.write(json.dumps(shard) + "\n")
        file.flush()
        os.fsync(file.fileno())


def _recorded(folder: Path) -> tuple[Source, list[Any]] | None:
    """Return source and shards from the index, or else from the journal."""
    if (folder / INDEX).is_file():
        with suppress(DataError):  # the shards of a damaged index are built again
            index = read_index(folder / INDEX)
            return index["source"], index["shards"]
    if not (folder / JOURNAL).is_file():
        return None
    records = []
    with opened(folder / JOURNAL) as file:
        while (record := parse_line(file.readline(MAX_LINE_BYTES))) is not None:  # nothing after a truncated line
            records.append(record)
    return (records[0], records[1:]) if records and has_form(records[0], SOURCE) else None
