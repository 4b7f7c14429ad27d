"""Cleaning of texts before they are split into words, as OpenAI, open_clip and this library do it."""

import html
import string
import unicodedata
from collections.abc import Callable

_REMOVE_PUNCTUATION = str.maketrans("", "", string.punctuation)


def clean(text: str) -> str:
    """Return the text in lowercase and NFC, for trained tokenizers; in this order, cleaning twice changes nothing."""
    if text.isascii():
        return text.lower()
    text = replace_surrogates(text)
    # Python lowers a capital sigma by its place in the word; the tokenizers library always lowers it to σ.
    return unicodedata.normalize("NFC", text.replace("Σ", "σ").lower())


def clean_openai(text: str) -> str:
    """Return the text as OpenAI's CLIP cleans it: fixed, with single spaces, in lowercase."""
    return " ".join(fix_text(text).split()).lower()


def fix_text(text: str) -> str:
    """Fix mojibake and odd characters with ftfy, then unescape HTML twice, as OpenAI and open_clip do first."""
    if text.isascii() and text.isprintable() and "&" not in text:
        return text
    import ftfy  # slow to import, and most captions do not need it

    return html.unescape(html.unescape(ftfy.fix_text(text)))


def replace_surrogates(text: str) -> str:
    """Join surrogate pairs to one character, and replace lone surrogates by U+FFFD."""
    if text.isascii():
        return text
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def _whitespace(text: str) -> str:
    return " ".join(fix_text(text).split())


def _lower(text: str) -> str:
    return _whitespace(text).lower()


def _canonicalize(text: str) -> str:
    return " ".join(fix_text(text).replace("_", " ").translate(_REMOVE_PUNCTUATION).lower().split())


# Cleaning functions of open_clip's HFTokenizer, by their names in its configurations.
OPEN_CLIP_CLEANERS: dict[str | None, Callable[[str], str]] = {
    None: lambda text: text,
    "whitespace": _whitespace,
    "lower": _lower,
    "canonicalize": _canonicalize,
}
