"""Files and checksums of a decoded cache.

    OUT/cache.json            format version and preprocessing of the pixels
    OUT/SPLIT/index.json      shards and other files with their checksums; skipped images
    OUT/SPLIT/00000.bin       (n, 3, S, S) uint8 without a header; then 00001.bin, ...
    OUT/SPLIT/captions.jsonl  one line per image: {"name": ..., "captions": [...]}
    OUT/SPLIT/tokens.bin      (M, T) int32: token ids of all captions, if a tokenizer was given
    OUT/SPLIT/progress.jsonl  journal of the finished shards, deleted when the split is complete

Every file has a SHA-256. Every image also has a CRC-32, so that reading one image does not need the whole shard.
Letters: n images of a shard, S image side, M captions, T tokens.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from miniclip.data.cache.index import CAPTIONS_LINE, MAX_SIZE, PIXELS, has_form, index_problem
from miniclip.errors import DataError
from miniclip.utils.atomic import write_atomically
from miniclip.utils.files import open_regular, parse_json

if TYPE_CHECKING:
    from miniclip.tokenizer import TextTokenizer

FORMAT = "miniclip cache 2"
HEADER, INDEX, CAPTIONS, TOKENS, JOURNAL = "cache.json", "index.json", "captions.jsonl", "tokens.bin", "progress.jsonl"
FIX = "build the cache again in the same folder; undamaged shards are kept"
MAX_JSON_BYTES = 1 << 30  # limit for an index, which has about 10 bytes an image
MAX_LINE_BYTES = 1 << 26  # limit for a line of captions or of the journal


def read_header(path: Path) -> dict[str, Any]:
    """Return the content of `cache.json`, which all splits share.

    Raises:
        FileNotFoundError: the folder does not exist.
        DataError: the folder is not a cache, or the file is damaged.
    """
    if not path.is_dir():
        raise FileNotFoundError(f"{path}: no such folder; expected one made by `miniclip data cache`")
    content = _read_json(path / HEADER)
    if not has_form(content, {"pixels": PIXELS}) or not 1 <= content["pixels"]["size"] <= MAX_SIZE:
        raise DataError(f"{path / HEADER}: its preprocessing is damaged: {FIX}")
    return content


def read_index(file: Path) -> dict[str, Any]:
    """Return the content of a split's `index.json`.

    Raises:
        DataError: the file is missing or damaged, or contradicts itself.
    """
    content = _read_json(file)
    problem = index_problem(content)
    if problem is not None:
        raise DataError(f"{file}: {problem} cannot be right: {FIX}")
    return content


def write_json(file: Path, content: dict[str, Any]) -> None:
    """Write a JSON file with the format version and a checksum, atomically."""
    text = json.dumps(_with_checksum({"format": FORMAT, **content}), indent=1) + "\n"
    write_atomically(file, lambda path: path.write_text(text, encoding="utf-8"))


def read_captions(file: Path, expected: str) -> tuple[list[str], list[list[str]]]:
    """Return the names and the captions of all images.

    Args:
        file: captions.jsonl.
        expected: its SHA-256.

    Raises:
        DataError: the file is missing or damaged.
    """
    names: list[str] = []
    captions: list[list[str]] = []
    digest = hashlib.sha256()
    with opened(file) as lines:
        while line := lines.readline(MAX_LINE_BYTES):
            digest.update(line)
            row = parse_line(line)
            if not has_form(row, CAPTIONS_LINE) or not row["captions"]:
                raise DataError(f"{file}, line {len(names) + 1}: is not a name with captions: {FIX}")
            names.append(row["name"])
            captions.append(row["captions"])
    if digest.hexdigest() != expected:
        raise _has_changed(file)
    return names, captions


def parse_line(line: bytes) -> Any:
    """Parse a line of JSON; None if it is not JSON or incomplete."""
    try:
        return parse_json(line) if line.endswith(b"\n") else None
    except ValueError:
        return None


def read_bytes(file: Path, entry: dict[str, Any]) -> bytearray:
    """Return the content of a file.

    Args:
        file: its path.
        entry: its size and checksum in the index.

    Raises:
        DataError: the file is missing, or its size or checksum differs.
    """
    require_bytes(file, entry["bytes"])
    content = bytearray(entry["bytes"])
    with opened(file) as source:
        count = source.readinto(content)
    if count != len(content) or hashlib.sha256(content).hexdigest() != entry["sha256"]:
        raise _has_changed(file)
    return content


def require_bytes(file: Path, expected: int) -> None:
    """Check the size of a file.

    Raises:
        DataError: the file is missing or has another size.
    """
    if not file.is_file():
        raise DataError(f"{file}: is missing: {FIX}")
    size = file.stat().st_size
    if size != expected:
        raise DataError(f"{file}: is {size:,} bytes long, expected {expected:,}: {FIX}")


def require_checksum(file: Path, expected: str) -> None:
    """Check the SHA-256 of a file.

    Raises:
        DataError: it differs.
    """
    with opened(file) as source:
        if hashlib.file_digest(source, "sha256").hexdigest() != expected:
            raise _has_changed(file)


@contextmanager
def opened(file: Path) -> Iterator[BufferedReader]:
    """Open a file of a cache.

    Raises:
        DataError: it is missing, or cannot be read.
    """
    if not os.path.lexists(file):
        raise DataError(f"{file}: is missing: {FIX}")
    try:
        with open_regular(file) as source:
            yield cast(BufferedReader, source)
    except OSError as error:
        reason = error.strerror or str(error).removeprefix(f"{file}: ")
        raise DataError(f"{file}: cannot be read: {reason}: {FIX}") from error


def tokenizer_checksum(tokenizer: TextTokenizer) -> str:
    """Return the SHA-256 of a tokenizer's saved file; equal tokenizers have equal checksums."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "tokenizer.json"
        tokenizer.save(file)
        return hashlib.sha256(file.read_bytes()).hexdigest()


def _has_changed(file: Path) -> DataError:
    return DataError(f"{file}: has changed since it was written (its checksum differs): {FIX}")


def _read_json(file: Path) -> dict[str, Any]:
    """Read cache.json or index.json, and check its version and its checksum."""
    with opened(file) as source:
        text = source.read(min(os.fstat(source.fileno()).st_size, MAX_JSON_BYTES))
    try:
        content = parse_json(text)
        is_unchanged = isinstance(content, dict) and _with_checksum(content) == content
    except (ValueError, RecursionError) as error:
        raise DataError(f"{file}: is not JSON ({error}): {FIX}") from None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        version = content.get("format") if isinstance(content, dict) else content
        raise DataError(f"{file}: has format {version!r:.80}, expected {FORMAT!r}: {FIX}")
    if not is_unchanged:
        raise _has_changed(file)
    return content


def _with_checksum(content: dict[str, Any]) -> dict[str, Any]:
    """Add a checksum of all other entries."""
    rest = {key: value for key, value in content.items() if key != "sha256"}
    return rest | {"sha256": hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()}
