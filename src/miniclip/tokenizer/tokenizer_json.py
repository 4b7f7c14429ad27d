"""tokenizer.json of CLIP's tokenizer, in the format of the tokenizers library.

Source: https://github.com/huggingface/tokenizers.
"""

from collections.abc import Sequence
from typing import Any

from miniclip.tokenizer.bpe import END, PATTERN, START, WORD_END, Pair, byte_symbols, vocabulary
from miniclip.tokenizer.normalizers import FIX_TEXT
from miniclip.utils.formatting import short

Json = dict[str, Any]
Parts = tuple[dict[str, int], list[Pair], bool]  # vocabulary, merges, openai_cleaning

INVALID_JSON = (AttributeError, IndexError, KeyError, TypeError, RecursionError)  # from missing keys, types and depths

_SPACES = {"type": "Replace", "pattern": {"Regex": r"\s+"}, "content": " "}
_CLEANING = [{"type": "Lowercase"}, {"type": "NFC"}, _SPACES]
# Files of transformers clean in this order, and their pattern begins with the special tokens; they are read as if this
# library had written them. The order matters for some capitals with a loose accent, such as T + U+0308: one letter
# here, a letter and a mark there.
_CLEANING_TRANSFORMERS = [{"type": "NFC"}, _SPACES, {"type": "Lowercase"}]
_PATTERN_TRANSFORMERS = r"<\|startoftext\|>|<\|endoftext\|>|" + PATTERN
_BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}


def check_vocabulary(vocab: dict[str, int], merges: Sequence[Pair]) -> None:
    """Check the vocabulary and the merges of a tokenizer of CLIP's kind.

    Raises:
        ValueError: they do not fit each other.
    """
    if sorted(vocab.values()) != list(range(len(vocab))):
        raise ValueError(f"the ids of the vocabulary are not 0 to {len(vocab) - 1}, each once")
    missing = [token for token in vocabulary([]) if token not in vocab]
    if missing:
        raise ValueError(f"the vocabulary lacks {len(missing)} of the tokens of byte-level BPE, such as {missing[0]!r}")
    if (vocab[START], vocab[END]) != (len(vocab) - 2, len(vocab) - 1):
        raise ValueError(f"{START} and {END} have the ids {vocab[START]} and {vocab[END]}, expected the last two")
    for rank, (a, b) in enumerate(merges):
        if a not in vocab or b not in vocab or a + b not in vocab:
            raise ValueError(
                f"merge {rank}, {short(a)} with {short(b)}, joins or makes a token that the vocabulary lacks"
            )


def build(vocab: dict[str, int], merges: Sequence[Pair], openai_cleaning: bool) -> Json:
    """Return the content of a tokenizer.json."""
    specials = {START: vocab[START], END: vocab[END]}
    start, end = ({"SpecialToken": {"id": token, "type_id": 0}} for token in specials)
    first, second = ([start, {"Sequence": {"id": text, "type_id": 0}}, end] for text in "AB")
    split = {"type": "Split", "pattern": {"Regex": PATTERN}, "behavior": "Removed", "invert": True}
    cleaning = [*(FIX_TEXT if openai_cleaning else []), *_CLEANING]
    erase = [{"type": "Replace", "pattern": {"String": token}, "content": ""} for token in specials]
    space = {"type": "Replace", "pattern": {"String": WORD_END}, "content": byte_symbols()[ord(" ")]}
    strip = {"type": "Replace", "pattern": {"Regex": r" \z"}, "content": ""}  # type Strip fails on empty text
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],  # special tokens listed here would be found in the middle of captions
        "normalizer": {"type": "Sequence", "normalizers": cleaning},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, _BYTE_LEVEL]},
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


def parse(data: Json) -> Parts:
    """Return the vocabulary, the merges and openai_cleaning of a tokenizer.json.

    Raises:
        ValueError: the file describes another kind of tokenizer, or its parts do not fit each other.
    """
    model, pre_tokenizer = data["model"], _steps(data["pre_tokenizer"], "pretokenizers")
    normalizer = _steps(data["normalizer"], "normalizers")
    without_fixes = [step for step in normalizer if step not in FIX_TEXT]
    is_clip_cleaning = without_fixes in (_CLEANING, _CLEANING_TRANSFORMERS)
    if not (is_clip_cleaning and _is_clip_model(model) and _is_clip_splitting(pre_tokenizer)):
        cleaning, splitting = (" + ".join(step["type"] for step in x) or "none" for x in (normalizer, pre_tokenizer))
        raise ValueError(
            f"another kind of tokenizer: model {model.get('type')} with end_of_word_suffix "
            f"{model.get('end_of_word_suffix')!r}, normalizer {cleaning}, pre_tokenizer {splitting}; expected CLIP's "
            f"byte-level BPE, with {WORD_END!r}. miniclip.tokenizer.load_tokenizer reads other kinds"
        )
    vocab, merges = model["vocab"], [parse_pair(merge) for merge in model["merges"]]
    check_vocabulary(vocab, merges)
    return vocab, merges, normalizer[:1] == FIX_TEXT[:1]


def is_clip(data: Any) -> bool:
    """Return True if the content of a tokenizer.json is CLIP's tokenizer, without added tokens."""
    try:
        parse(data)
        return {token["content"] for token in data.get("added_tokens") or []} <= {START, END}
    except (ValueError, *INVALID_JSON):
        return False


def parse_pair(merge: str | list[str]) -> Pair:
    """Return a merge that is written as "a b" or as a list.

    Raises:
        ValueError: it does not have two tokens.
    """
    parts = merge.split(" ") if isinstance(merge, str) else merge
    if len(parts) != 2:
        raise ValueError(f"the merge {short(merge)} is damaged; expected two tokens")
    return parts[0], parts[1]


def _steps(part: Json | None, name: str) -> list[Json]:
    """Return the steps of a normalizer or pre_tokenizer, which can be a sequence, a single step, or None."""
    return list(part.get(name, [part])) if part else []


def _is_clip_model(model: Json) -> bool:
    refused = ("dropout", "continuing_subword_prefix", "byte_fallback", "ignore_merges")
    kind = (model.get("type", "BPE"), model.get("end_of_word_suffix"))  # old files have no type
    return kind == ("BPE", WORD_END) and not any(model.get(key) for key in refused)


def _is_clip_splitting(steps: list[Json]) -> bool:
    if [step["type"] for step in steps] != ["Split", "ByteLevel"]:
        return False
    pattern = steps[0]["pattern"].get("Regex")
    return pattern in (PATTERN, _PATTERN_TRANSFORMERS) and not steps[1].get("add_prefix_space")
