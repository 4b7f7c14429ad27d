"""Checks of an index: what names, sizes and counts must be follows from the order of the shards and the image side.

A checksum shows damage, not intent: anyone can write an index with a right one. No file outside the split's folder is
opened, and no memory is allocated for sizes that only the index claims.
"""

from __future__ import annotations

import re
from typing import Any

MAX_SIZE = 1 << 13  # pixels on a side; the largest models take about 1,000
BYTES_PER_ID = 4

Form = type | list[Any] | dict[str, Any]

PIXELS: Form = {"size": int, "resize": str, "crop_rounding": str, "interpolation": str}
SOURCE: Form = {"images": int, "captions": int, "sha256": str, "pixels": PIXELS, "sample": [object]}
_SKIPPED: Form = [{"image": int, "name": str, "reason": str}]
_FILE = {"bytes": int, "sha256": str}
SHARD: Form = {**_FILE, "file": str, "first": int, "images": int, "checksums": str, "skipped": _SKIPPED}
TOKENS: Form = {**_FILE, "tokenizer": str, "context_length": int, "pad": bool, "shape": [int], "truncated": int}
INDEX: Form = {"source": SOURCE, "shards": [SHARD], "captions": _FILE, "skipped": _SKIPPED}
CAPTIONS_LINE: Form = {"name": str, "captions": [str]}


def has_form(content: Any, form: Form) -> bool:
    """Return whether JSON has a form: a type, `[form of each item]`, or `{key: form}` with all keys of the form.

    An integer is not negative and below 2**48.
    """
    if isinstance(form, dict):
        return isinstance(content, dict) and all(
            key in content and has_form(content[key], part) for key, part in form.items()
        )
    if isinstance(form, list):
        return isinstance(content, list) and all(has_form(item, form[0]) for item in content)
    if form is int:
        return type(content) is int and 0 <= content < 1 << 48
    return isinstance(content, form)


def shard_name(number: int) -> str:
    """Return the file name of a shard."""
    return f"{number:05d}.bin"


def is_valid_shard(shard: Any, number: int, span: range, size: int) -> bool:
    """Return whether the entry of a shard has its form, and agrees with itself and its place.

    Args:
        shard: the entry.
        number: of the shard.
        span: indices of its images in the dataset, skipped ones included.
        size: image side, in pixels.
    """
    if not has_form(shard, SHARD):
        return False
    images = shard["images"]
    skipped = {image["image"] for image in shard["skipped"]}
    return bool(
        (shard["file"], shard["first"], shard["bytes"]) == (shard_name(number), span.start, images * 3 * size**2)
        and len(span) == images + len(skipped)
        and re.fullmatch("[0-9a-f]*", shard["checksums"])
        and len(shard["checksums"]) == 8 * images
        and len(skipped) == len(shard["skipped"])
        and all(image in span for image in skipped)
    )


def index_problem(index: dict[str, Any]) -> str | None:
    """Return the entry of an index that is wrong, or None."""
    if not has_form(index, INDEX) or "tokens" not in index:
        return "its entries"
    first, size = 0, index["source"]["pixels"]["size"]
    for number, shard in enumerate(index["shards"]):
        span = range(first, first + shard["images"] + len(shard["skipped"]))
        if not is_valid_shard(shard, number, span, size):
            return f"the entry of shard {number}"
        first = span.stop
    if first != index["source"]["images"]:
        return "the number of images"
    tokens = index["tokens"]
    return None if tokens is None or _are_valid_tokens(tokens) else "the entry of the token ids"


def _are_valid_tokens(tokens: Any) -> bool:
    if not has_form(tokens, TOKENS) or len(tokens["shape"]) != 2:
        return False
    rows, length = tokens["shape"]
    shortest = tokens["context_length"] if tokens["pad"] else 1
    fits = rows >= tokens["truncated"] and rows > 0 and shortest <= length <= tokens["context_length"] and length > 0
    return bool(fits and tokens["bytes"] == rows * length * BYTES_PER_ID)
