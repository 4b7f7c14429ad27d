"""The files that a tokenizer is read from and written to: tokenizer.json, OpenAI's merges, vocab.json with merges.txt.

The format of tokenizer.json is that of the tokenizers library (https://github.com/huggingface/tokenizers); the pair of
vocab.json and merges.txt is how transformers wrote CLIP's tokenizer before.
"""

import gzip
import json
import os
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from miniclip.errors import CheckpointError
from miniclip.tokenizer.bpe import (
    END,
    MIN_VOCAB_SIZE,
    PATTERN,
    START,
    WORD_END,
    Pair,
    byte_symbols,
    check_parts,
    vocabulary,
)
from miniclip.utils.atomic import write_atomically

OPENAI_MERGES = 49152 - 256 - 2  # of the lines in OpenAI's file; the rest were never used

# tokenizer.json is written, and known again, by these rows. MENDING is what the library can do of OpenAI's cleaning.
MENDING = [
    {"type": "Replace", "pattern": pattern, "content": content}
    for pattern, content in [
        *[({"String": "&amp;"}, "&")] * 2,  # twice, as OpenAI unescaped
        ({"String": "&lt;"}, "<"),
        ({"String": "&gt;"}, ">"),
        ({"String": "&nbsp;"}, " "),
        ({"Regex": "&quot;|[\u201c-\u201f]"}, '"'),
        ({"Regex": "&apos;|&#0*39;|[\u02bc\u2018-\u201b]"}, "'"),
    ]
]
_SPACES = {"type": "Replace", "pattern": {"Regex": r"\s+"}, "content": " "}
_CLEANING = [{"type": "Lowercase"}, {"type": "NFC"}, _SPACES]
# transformers' files clean in this order, and name the special tokens first; they are read as if they were our own.
# The order tells for some capitals with a loose accent, such as T + U+0308: a letter here, a letter and a mark there.
_CLEANING_TRANSFORMERS = [{"type": "NFC"}, _SPACES, {"type": "Lowercase"}]
_PATTERN_TRANSFORMERS = r"<\|startoftext\|>|<\|endoftext\|>|" + PATTERN
_BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}

_DAMAGE = (gzip.BadGzipFile, EOFError, zlib.error, UnicodeDecodeError, json.JSONDecodeError, RecursionError)
ODD_JSON = (AttributeError, IndexError, KeyError, TypeError)  # other keys or types than a tokenizer.json has


def find_tokenizer(directory: str | os.PathLike[str]) -> Path | None:
    """The file of a directory to read a tokenizer from, or None where the directory holds none that can be read.

    It is tokenizer.json; else vocab.json, where merges.txt is beside it; else the one file of merges in OpenAI's format
    (merges.txt, bpe*.txt, *.txt.gz).
    """
    directory = Path(directory)
    if (directory / "tokenizer.json").is_file():
        return directory / "tokenizer.json"
    if (directory / "vocab.json").is_file() and (directory / "merges.txt").is_file():
        return directory / "vocab.json"
    merges = {file for pattern in ("merges.txt", "bpe*.txt", "*.txt.gz") for file in directory.glob(pattern)}
    return merges.pop() if len(merges) == 1 else None


def write(path: str | os.PathLike[str], value: dict[str, Any]) -> None:
    """Write a tokenizer.json at once or not at all.

    Args:
        path: the file, if the name ends in .json or a file is there; else a directory, made where it is missing.
        value: what to write.
    """
    file = Path(path)
    if file.is_dir() or not (file.is_file() or file.suffix == ".json"):
        file = file / "tokenizer.json"
    text = json.dumps(value, ensure_ascii=False, indent=2)
    write_atomically(file, lambda temporary: temporary.write_text(text, encoding="utf-8", newline="\n"))


def read(file: Path) -> tuple[dict[str, int], list[Pair], bool]:
    """The vocabulary, the merges and `openai_cleaning` of a file; its content tells the format.

    Of the pair vocab.json and merges.txt, either is the file: the other one is found beside it, by its name.

    Raises:
        CheckpointError: the file is damaged, or holds another kind of tokenizer.
    """
    try:
        text = _text(file)
        if _is_merges(text):
            vocab_file = file.with_name("vocab.json")
            if file.name == "merges.txt" and vocab_file.is_file():
                return _join_pair(json.loads(_text(vocab_file)), text)
            merges = _parse_merges(text)
            return vocabulary(merges), merges, True
        data = json.loads(text)
        if data and all(type(index) is int for index in data.values()):  # a vocabulary alone
            return _join_pair(data, _text(_beside(file)))
        parts = _parse_json(data)
        check_parts(*parts[:2])
        return parts
    except (*_DAMAGE, *ODD_JSON) as error:
        raise CheckpointError(
            f"{file}: damaged, or neither a tokenizer.json nor OpenAI's file of merges ({error!r})"
        ) from error
    except ValueError as error:
        raise CheckpointError(f"{file}: {error}") from error


def read_json(file: Path) -> Any:
    """The value in a file of JSON; None if the file is of another format, as OpenAI's merges are.

    Raises:
        CheckpointError: the file is damaged.
    """
    try:
        text = _text(file)
        return None if _is_merges(text) else json.loads(text)
    except _DAMAGE as error:
        raise CheckpointError(f"{file}: damaged, or no JSON ({error!r})") from error


def is_clip(data: Any) -> bool:
    """Whether the parsed content of a tokenizer.json makes a tokenizer of CLIP's kind, with no tokens added to it."""
    try:
        vocab, merges, _ = _parse_json(data)
        check_parts(vocab, merges)
        return {token["content"] for token in data.get("added_tokens") or []} <= {START, END}
    except (ValueError, *ODD_JSON):
        return False


def to_json(vocab: dict[str, int], merges: Sequence[Pair], openai_cleaning: bool) -> dict[str, Any]:
    """A tokenizer as a tokenizer.json, which `read` and the tokenizers library read."""
    specials = {START: vocab[START], END: vocab[END]}
    start, end = ({"SpecialToken": {"id": token, "type_id": 0}} for token in specials)
    first, second = ([start, {"Sequence": {"id": text, "type_id": 0}}, end] for text in "AB")
    splitting = {"type": "Split", "pattern": {"Regex": PATTERN}, "behavior": "Removed", "invert": True}
    cleaning = [*(MENDING if openai_cleaning else []), *_CLEANING]
    erase = [{"type": "Replace", "pattern": {"String": token}, "content": ""} for token in specials]
    space = {"type": "Replace", "pattern": {"String": WORD_END}, "content": byte_symbols()[ord(" ")]}
    strip = {"type": "Replace", "pattern": {"Regex": r" \z"}, "content": ""}  # type Strip panics on empty text
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],  # the library would find the special tokens in the middle of captions if they were here
        "normalizer": {"type": "Sequence", "normalizers": cleaning},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [splitting, _BYTE_LEVEL]},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": first,
            "pair": first + second,
            "special_tokens": {name: {"id": name, "ids": [i], "tokens": [name]} for name, i in specials.items()},
        },
        "decoder": {"type": "Sequence", "decoders": [*erase, space, _BYTE_LEVEL, strip]},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": WORD_END,
            "fuse_unk": False,
            "byte_fallback": False,
            "vocab": vocab,
            "merges": [" ".join(pair) for pair in merges],
        },
    }


def _text(file: Path) -> str:
    data = file.read_bytes()
    return (gzip.decompress(data) if data.startswith(b"\x1f\x8b") else data).decode("utf-8")


def _is_merges(text: str) -> bool:
    return "#version" in text.partition("\n")[0]


def _beside(vocab_file: Path) -> Path:
    merges_file = vocab_file.with_name("merges.txt")
    if not merges_file.is_file():
        raise ValueError("a vocabulary without its merges; expected merges.txt beside it")
    return merges_file


def _join_pair(vocab: dict[str, int], text: str) -> tuple[dict[str, int], list[Pair], bool]:
    """vocab.json, which has the ids, with the merges of merges.txt; ValueError if they are not of one tokenizer.

    transformers reads the pair without OpenAI's cleaning, and so do we.
    """
    merges = _parse_merges(text, max(OPENAI_MERGES, len(vocab) - MIN_VOCAB_SIZE))
    made = vocabulary(merges)
    odd = [token for token in vocab if token not in made] or [token for token in made if token not in vocab]
    if odd:
        where = "the vocabulary alone" if odd[0] in vocab else "the merges alone"
        raise ValueError(f"vocab.json and merges.txt disagree: {len(odd)} tokens are of {where}, such as {odd[0]!r}")
    check_parts(vocab, merges)
    return vocab, merges, False


def _parse_merges(text: str, limit: int = OPENAI_MERGES) -> list[Pair]:
    """OpenAI's bpe_simple_vocab_16e6.txt, or the merges.txt made from it: a line of version, then a pair a line."""
    merges = [_pair(line) for line in text.splitlines()[1 : limit + 1]]
    if not any(second.endswith(WORD_END) for _, second in merges):
        raise ValueError(f"no merge ends a word with {WORD_END}; expected CLIP's merges (these could be GPT-2's)")
    return merges


def _pair(merge: str | list[str]) -> Pair:
    parts = merge.split(" ") if isinstance(merge, str) else merge
    if len(parts) != 2:
        raise ValueError(f"the merge {merge!r} is damaged; expected two tokens")
    return parts[0], parts[1]


def _parse_json(data: dict[str, Any]) -> tuple[dict[str, int], list[Pair], bool]:
    """The vocabulary, the merges and openai_cleaning of a tokenizer.json; ValueError if it is of another kind."""
    model, pre_tokenizer = data["model"], _steps(data["pre_tokenizer"], "pretokenizers")
    cleaning = _steps(data["normalizer"], "normalizers")
    plain = [step for step in cleaning if step not in MENDING]
    known = plain in (_CLEANING, _CLEANING_TRANSFORMERS)
    if not (known and _is_clip_model(model) and _is_clip_splitting(pre_tokenizer)):
        normalizer, splitter = (" + ".join(step["type"] for step in x) or "none" for x in (cleaning, pre_tokenizer))
        raise ValueError(
            f"another kind of tokenizer: model {model.get('type')} with end_of_word_suffix "
            f"{model.get('end_of_word_suffix')!r}, normalizer {normalizer}, pre_tokenizer {splitter}; expected "
            f"byte-level BPE as CLIP's, with {WORD_END!r}. miniclip.tokenizer.load_tokenizer reads others too"
        )
    return model["vocab"], [_pair(merge) for merge in model["merges"]], cleaning[:1] == MENDING[:1]


def _steps(part: dict[str, Any] | None, name: str) -> list[dict[str, Any]]:
    """The steps of a normalizer or pre_tokenizer: of a sequence, of a single one, of none."""
    return list(part.get(name, [part])) if part else []


def _is_clip_model(model: dict[str, Any]) -> bool:
    unwanted = ("dropout", "continuing_subword_prefix", "byte_fallback", "ignore_merges")
    kind = (model.get("type", "BPE"), model.get("end_of_word_suffix"))  # old files do not say their type
    return kind == ("BPE", WORD_END) and not any(model.get(key) for key in unwanted)


def _is_clip_splitting(steps: list[dict[str, Any]]) -> bool:
    if [step["type"] for step in steps] != ["Split", "ByteLevel"]:
        return False
    pattern = steps[0]["pattern"].get("Regex")
    return pattern in (PATTERN, _PATTERN_TRANSFORMERS) and not steps[1].get("add_prefix_space")
