"""Files of CLIP's tokenizer: tokenizer.json, OpenAI's merges, and the older pair of vocab.json and merges.txt."""

import gzip
import json
import os
import zlib
from io import BytesIO
from pathlib import Path
from typing import Any

from miniclip.errors import CheckpointError
from miniclip.tokenizer.bpe import MIN_VOCAB_SIZE, WORD_END, Pair, vocabulary
from miniclip.tokenizer.tokenizer_json import INVALID_JSON, Parts, check_vocabulary, parse, parse_pair
from miniclip.utils.atomic import write_atomically
from miniclip.utils.files import parse_json, read_limited
from miniclip.utils.formatting import format_bytes, one_line, short

NUM_OPENAI_MERGES = 49152 - 256 - 2  # lines of OpenAI's file that are used

MAX_BYTES = 128 << 20  # limit for a file; a tokenizer.json of a million pieces has about 60 MiB
MAX_MERGES = 32 << 20  # bytes of a file of merges, decompressed; OpenAI's has 3 MiB


def find_tokenizer(directory: str | os.PathLike[str]) -> Path | None:
    """Return the file of a directory from which a tokenizer is read, or None.

    The candidates, in this order: tokenizer.json; vocab.json with merges.txt; a single file of merges in OpenAI's
    format (merges.txt, bpe*.txt, *.txt.gz).
    """
    directory = Path(directory)
    if os.path.lexists(directory / "tokenizer.json"):  # a dangling link is an error, not a reason for another file
        return directory / "tokenizer.json"
    if os.path.lexists(directory / "vocab.json") and os.path.lexists(directory / "merges.txt"):
        return directory / "vocab.json"
    merges = {file for pattern in ("merges.txt", "bpe*.txt", "*.txt.gz") for file in directory.glob(pattern)}
    return merges.pop() if len(merges) == 1 else None


def write(path: str | os.PathLike[str], value: dict[str, Any]) -> None:
    """Write a tokenizer.json atomically.

    Args:
        path: a file if the name ends in .json or the file exists; else a directory, created if it does not exist.
        value: content of the file.
    """
    file = Path(path)
    if file.is_dir() or not (file.is_file() or file.suffix == ".json"):
        file = file / "tokenizer.json"
    text = json.dumps(value, ensure_ascii=False)  # with indent, Python's encoder would take a second for each save
    write_atomically(file, lambda temporary: temporary.write_text(text, encoding="utf-8", newline="\n"))


def read(file: Path) -> Parts:
    """Return the vocabulary, the merges and openai_cleaning of a file; the format is detected from the content.

    Args:
        file: for the pair of vocab.json and merges.txt, either of them; the other one is read beside it.

    Raises:
        CheckpointError: the file is damaged, or contains another kind of tokenizer.
    """
    try:
        text = _text(file)
        if _is_merges(text):
            vocab_file = file.with_name("vocab.json")
            if file.name == "merges.txt" and os.path.lexists(vocab_file):
                return _combine(parse_json(_text(vocab_file)), text)
            merges = _parse_merges(text)
            return vocabulary(merges), merges, True
        data = parse_json(text)
        if data and all(type(index) is int for index in data.values()):  # vocab.json
            return _combine(data, _text(_merges_beside(file)))
        return parse(data)
    except (_DamagedError, json.JSONDecodeError, *INVALID_JSON) as error:
        raise CheckpointError(
            f"{file}: damaged, or neither a tokenizer.json nor OpenAI's file of merges ({described(error)})"
        ) from error
    except ValueError as error:
        raise CheckpointError(f"{file}: {one_line(error, 1000)}") from error


def read_json(file: Path) -> Any:
    """Return the content of a JSON file, or None for a file of merges.

    Raises:
        CheckpointError: the file is damaged.
    """
    try:
        text = _text(file)
        return None if _is_merges(text) else parse_json(text)
    except ValueError as error:
        raise CheckpointError(f"{file}: damaged, or not JSON ({described(error)})") from error


class _DamagedError(ValueError):
    """Content that is not text, or not of its compressed format."""


def described(error: Exception) -> str:
    """Return the message of an error in a file on one line, after its type if the message does not stand by itself."""
    return one_line(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {one_line(error)}"


def _text(file: Path) -> str:
    """Return the text of a file, decompressed.

    Raises:
        ValueError: it is not text, or too large.
    """
    data = read_limited(file, MAX_BYTES)
    try:
        if data.startswith(b"\x1f\x8b"):
            with gzip.open(BytesIO(data)) as compressed:
                data = compressed.read(MAX_MERGES + 1)
            if len(data) > MAX_MERGES:
                raise ValueError(f"decompresses to more than the {MAX_MERGES >> 20} MiB of any tokenizer")
        return data.decode("utf-8")
    except (gzip.BadGzipFile, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise _DamagedError(described(error)) from None


def _is_merges(text: str) -> bool:
    """Return whether a text is a file of merges, by its first line; that of a tokenizer.json may hold any token."""
    return "#version" in text.partition("\n")[0] and not text.lstrip().startswith("{")


def _merges_beside(vocab_file: Path) -> Path:
    merges_file = vocab_file.with_name("merges.txt")
    if not os.path.lexists(merges_file):
        raise ValueError("a vocabulary without its merges; expected merges.txt beside it")
    return merges_file


def _combine(vocab: dict[str, int], merges_text: str) -> Parts:
    """Return the parts of vocab.json, which has the ids, and merges.txt.

    openai_cleaning is False, because transformers reads these files without OpenAI's cleaning.

    Raises:
        ValueError: the two files do not belong to one tokenizer.
    """
    merges = _parse_merges(merges_text, max(NUM_OPENAI_MERGES, len(vocab) - MIN_VOCAB_SIZE))
    expected = vocabulary(merges)
    differing = [token for token in vocab if token not in expected] or [t for t in expected if t not in vocab]
    if differing:
        file = "vocab.json" if differing[0] in vocab else "merges.txt"
        raise ValueError(
            f"vocab.json and merges.txt disagree: {len(differing)} tokens are only in {file}, such as "
            f"{short(differing[0])}"
        )
    check_vocabulary(vocab, merges)
    return vocab, merges, False


def _parse_merges(text: str, max_merges: int = NUM_OPENAI_MERGES) -> list[Pair]:
    """Return the merges of a file in OpenAI's format: a line with the version, then one pair per line."""
    if len(text) > MAX_MERGES:
        raise ValueError(f"{format_bytes(len(text))} of merges, expected at most {format_bytes(MAX_MERGES)}")
    merges = [parse_pair(line) for line in text.splitlines()[1 : max_merges + 1]]
    if not any(second.endswith(WORD_END) for _, second in merges):
        raise ValueError(f"no merge ends a word with {WORD_END}; expected CLIP's merges (these could be GPT-2's)")
    return merges
