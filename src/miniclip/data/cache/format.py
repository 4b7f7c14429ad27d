"""Files and checksums of a decoded cache.

    OUT/cache.json            format version and preprocessing of the pixels
    OUT/SPLIT/index.json      shards and other files with their checksums; skipped images
    OUT/SPLIT/00000.bin       (n, 3, S, S) uint8 without a header; then 00001.bin, ...
    OUT/SPLIT/captions.jsonl  one line per image: {"name": ..., "captions": [...]}
    OUT/SPLIT/tokens.bin      (M, T) int32: token ids of all captions, if a tokenizer was given
    OUT/SPLIT/progress.jsonl  journal of the finished shards, deleted when the split is complete

Letters: n images of a shard, S image side, M captions, T tokens.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from miniclip.errors import DataError
from miniclip.utils.atomic import write_atomically

if TYPE_CHECKING:
    from miniclip.tokenizer import TextTokenizer

FORMAT = "miniclip cache 1"
HEADER, INDEX, CAPTIONS, TOKENS, JOURNAL = "cache.json", "index.json", "captions.jsonl", "tokens.bin", "progress.jsonl"
FIX = "build the cache again in the same folder; undamaged shards are kept"


def read_header(path: Path) -> dict[str, Any]:
    """Return the content of `cache.json`, which all splits share.

    Raises:
        FileNotFoundError: the folder does not exist.
        DataError: the folder is not a cache, or the file is damaged.
    """
    if not path.is_dir():
        raise FileNotFoundError(f"{path}: no such folder; expected one made by `miniclip data cache`")
    return _read_json(path / HEADER, ("pixels",))


def read_index(file: Path) -> dict[str, Any]:
    """Return the content of a split's `index.json`.

    Raises:
        DataError: the file is missing or damaged.
    """
    return _read_json(file, ("shards", "captions", "tokens", "skipped", "source"))


def write_json(file: Path, content: dict[str, Any]) -> None:
    """Write a JSON file with the format version and a checksum, atomically."""
    text = json.dumps(_with_checksum({"format": FORMAT, **content}), indent=1) + "\n"
    write_atomically(file, lambda path: path.write_text(text, encoding="utf-8"))


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
    if sha256(file) != expected:
        raise DataError(f"{file}: has changed since it was written (its SHA-256 differs): {FIX}")


def sha256(file: Path) -> str:
    """Return the SHA-256 of a file."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def tokenizer_checksum(tokenizer: TextTokenizer) -> str:
    """Return the SHA-256 of a tokenizer's saved file; equal tokenizers have equal checksums."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "tokenizer.json"
        tokenizer.save(file)
        return sha256(file)


def _read_json(file: Path, keys: Sequence[str]) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"{file}: is missing; expected a folder made by `miniclip data cache`") from None
    except ValueError as error:
        raise DataError(f"{file}: is not JSON ({error}): {FIX}") from None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        version = content.get("format") if isinstance(content, dict) else content
        raise DataError(f"{file}: has format {version!r}, expected {FORMAT!r}: {FIX}")
    if _with_checksum(content) != content or any(key not in content for key in keys):
        raise DataError(f"{file}: has changed since it was written (its SHA-256 differs): {FIX}")
    return content


def _with_checksum(content: dict[str, Any]) -> dict[str, Any]:
    """Add a checksum of all other entries."""
    rest = {key: value for key, value in content.items() if key != "sha256"}
    return rest | {"sha256": hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()}
