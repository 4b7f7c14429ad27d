"""Cleaning as the normalizer of a tokenizer.json, for the tokenizers library.

The rows for ftfy and html are the nearest steps that the library has. The other rows equal the Python functions.
"""

from typing import Any

Json = dict[str, Any]


def _replace(pattern: str, content: str) -> Json:
    return {"type": "Replace", "pattern": {"Regex": pattern}, "content": content}


def _replace_string(pattern: str, content: str) -> Json:
    return {"type": "Replace", "pattern": {"String": pattern}, "content": content}


# The part of `fix_text` that the library can do.
FIX_TEXT: list[Json] = [
    _replace_string("&amp;", "&"),
    _replace_string("&amp;", "&"),  # twice, as OpenAI unescaped
    _replace_string("&lt;", "<"),
    _replace_string("&gt;", ">"),
    _replace_string("&nbsp;", " "),
    _replace("&quot;|[\u201c-\u201f]", '"'),
    _replace("&apos;|&#0*39;|[\u02bc\u2018-\u201b]", "'"),
]

# Python's whitespace has four more controls. The type Strip would remove the ends, but fails on empty text.
_SPACES = [_replace(r"[\s\x1c-\x1f]+", " "), _replace(r"\A | \z", "")]
# Python lowers a sigma at the end of a word to ς; the library lowers every sigma to σ.
_SIGMA = _replace(r"\p{Cased}\p{Case_Ignorable}*\KΣ(?!\p{Case_Ignorable}*\p{Cased})", "ς")
_LOWER = [_SIGMA, {"type": "Lowercase"}]
_NO_PUNCTUATION = _replace(r"[!-/:-@\[-`{-~]", "")

FIX_AND_NFC: list[Json] = [*FIX_TEXT, {"type": "NFC"}]

# Rows of the cleaning functions of open_clip. None is the beginning of another, so that a file identifies its cleaning.
OPEN_CLIP_NORMALIZERS: dict[str, list[Json]] = {
    "whitespace": [*FIX_AND_NFC, *_SPACES],
    "lower": [*FIX_AND_NFC, *_LOWER, *_SPACES],
    "canonicalize": [*FIX_AND_NFC, _replace("_", " "), _NO_PUNCTUATION, *_LOWER, *_SPACES],
}


def prepend_cleaning(clean: str, normalizer: Json | None) -> Json:
    """Return a normalizer that begins with one of open_clip's cleanings."""
    return {"type": "Sequence", "normalizers": [*OPEN_CLIP_NORMALIZERS[clean], *([normalizer] if normalizer else [])]}


def split_cleaning(normalizer: Json | None) -> tuple[str | None, Json | None]:
    """Return the cleaning that `prepend_cleaning` added to a normalizer, or None, and the normalizer without it."""
    steps = _steps(normalizer)
    for clean, rows in OPEN_CLIP_NORMALIZERS.items():
        if steps[: len(rows)] == rows:
            return clean, _sequence(steps[len(rows) :])
    return None, normalizer


def add_class_cleaning(normalizer: Json | None, config: Json) -> Json | None:
    """Return a normalizer with the cleaning of the transformers class that tokenizer_config.json names.

    Args:
        normalizer: normalizer of the tokenizer.json.
        config: content of the tokenizer_config.json.
    """
    name, lowercase = class_name(config), config.get("do_lower_case")
    rows: list[Json] = []
    if name == "SiglipTokenizer":
        rows = [_replace("▁", " "), *(_LOWER if lowercase in (None, True) else []), _NO_PUNCTUATION, *_SPACES]
    elif name == "Siglip2Tokenizer" or (name == "GemmaTokenizer" and (lowercase or _is_siglip(config))):
        rows = [{"type": "Lowercase"}]
    elif name == "BertTokenizer" and normalizer and normalizer.get("type") == "BertNormalizer":
        keys = {
            "lowercase": "do_lower_case",
            "strip_accents": "strip_accents",
            "handle_chinese_chars": "tokenize_chinese_chars",
        }
        return normalizer | {key: config[config_key] for key, config_key in keys.items() if config_key in config}
    steps = _steps(normalizer)
    return normalizer if steps[: len(rows)] == rows else _sequence([*rows, *([normalizer] if normalizer else [])])


def class_name(config: Json) -> str:
    """Return the name of the transformers class in a tokenizer_config.json, without "Fast"."""
    return str(config.get("tokenizer_class") or "").removesuffix("Fast")


def _is_siglip(config: Json) -> bool:
    return str(config.get("processor_class") or "").startswith("Siglip")


def _steps(normalizer: Json | None) -> list[Json]:
    return list(normalizer.get("normalizers", [normalizer])) if normalizer else []


def _sequence(steps: list[Json]) -> Json | None:
    if len(steps) < 2:
        return steps[0] if steps else None
    return {"type": "Sequence", "normalizers": steps}
