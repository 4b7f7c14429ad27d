"""Cleaning of texts before they are split into words, as OpenAI, open_clip and this library do it.

ftfy is slow, and captions repeat their words, so OpenAI's cleaning can also fix each chunk (the text between two
spaces) once. All steps of ftfy but one depend only on a character and its neighbours, and a space separates chunks. The
other step fixes mojibake, and runs only if `ftfy.badness.is_bad` finds a suspicious pattern. These patterns have at
most seven characters. None extends over a space by more than a test for a letter or for any character. Therefore a
caption is not bad if none of its chunks is bad with a space and a letter on either side; the tests prove this for every
pattern. `ContextDependent` is raised for a chunk that may be bad or that needs rarer steps: the whole caption is then
fixed at once.
"""

import functools
import html
import re
import string
import unicodedata
from collections.abc import Callable

from miniclip.tokenizer.chunk_cache import ContextDependent

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


@functools.cache
def chunk_fixer() -> Callable[[str], str]:
    """Return a function that does to a chunk what `fix_text` does to it in any caption of such chunks.

    The function raises `ContextDependent` if the result may depend on the caption.
    """
    from ftfy.badness import is_bad
    from ftfy.fixes import fix_character_width, uncurl_quotes, unescape_html

    needs_other_steps = _other_steps().search

    def fix_chunk(chunk: str) -> str:
        text = chunk.rstrip("\r\n")  # line ends become whitespace in any case
        if text.isascii() and text.isprintable():
            if "&" in text and not text == html.unescape(text) == unescape_html(text):
                raise ContextDependent
            return text
        straight = uncurl_quotes(fix_character_width(text))
        fixed = unicodedata.normalize("NFC", straight)
        if needs_other_steps(straight + fixed) or is_bad(f"a {text} a"):
            raise ContextDependent
        if fixed != text and is_bad(f"a {fixed} a"):  # ftfy tests its result again
            raise ContextDependent
        return fixed

    return fix_chunk


def _other_steps() -> re.Pattern[str]:
    """Return a pattern for "&", line ends, and the characters that ftfy's other steps remove or change."""
    from ftfy import chardata, fixes

    tables = "".join(map(chr, {*chardata.CONTROL_CHARS, *chardata.LIGATURES, *chardata.WIDTH_MAP}))
    classes = (chardata.SINGLE_QUOTE_RE, chardata.DOUBLE_QUOTE_RE, chardata.C1_CONTROL_RE, fixes.SURROGATE_RE)
    return re.compile("|".join([f"[&\r\n\u2028\u2029{re.escape(tables)}]", *(regex.pattern for regex in classes)]))


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
