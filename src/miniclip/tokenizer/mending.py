"""OpenAI's mending of texts: ftfy, then HTML's entities. And what it makes of a chunk, whatever stands beside it.

ftfy takes its time, and captions repeat their words. All its steps but one look at a character and those that touch
it, so they do with a chunk (what stands between two spaces) the same as with the caption. The one that does not looks
for mojibake, and touches nothing as long as `ftfy.badness.is_bad` finds none. The patterns of is_bad are seven
characters long at most, and none reaches over a space further than to see that a letter, or anything, stands there.
So a caption is not bad if no chunk of it is bad with spaces and letters around; the tests take the patterns apart to
prove it. A chunk that may be bad, or that takes rarer steps, is left to the caption it stands in.
"""

import functools
import html
import re
import unicodedata
from collections.abc import Callable

from miniclip.tokenizer.chunks import Apart


def mend(text: str) -> str:
    """OpenAI's first steps, which open_clip takes for every tokenizer: ftfy, then HTML's entities, twice."""
    if text.isascii() and text.isprintable() and "&" not in text:
        return text  # nothing to mend
    import ftfy  # slow to import, and most captions do without

    return html.unescape(html.unescape(ftfy.fix_text(text)))


@functools.cache
def chunk_mender() -> Callable[[str], str]:
    """What makes of a chunk what `mend` does in any caption of such chunks, with spaces between them.

    It raises `Apart` for a chunk where that may depend on the caption, or takes more steps than are taken here.
    """
    from ftfy.badness import is_bad
    from ftfy.fixes import fix_character_width, uncurl_quotes, unescape_html

    takes_other_steps = _other_steps().search

    def mend_chunk(chunk: str) -> str:
        text = chunk.rstrip("\r\n")  # of a line: whitespace, whatever it becomes
        if text.isascii() and text.isprintable():
            if "&" in text and not text == html.unescape(text) == unescape_html(text):
                raise Apart
            return text
        straight = uncurl_quotes(fix_character_width(text))
        mended = unicodedata.normalize("NFC", straight)
        if takes_other_steps(straight + mended) or is_bad(f"a {text} a"):
            raise Apart
        if mended != text and is_bad(f"a {mended} a"):  # ftfy looks again at what it changed
            raise Apart
        return mended

    return mend_chunk


def _other_steps() -> re.Pattern[str]:
    """A character that one of ftfy's steps takes away or changes, by its own tables; "&", for the entities; lines."""
    from ftfy import chardata, fixes

    tables = "".join(map(chr, {*chardata.CONTROL_CHARS, *chardata.LIGATURES, *chardata.WIDTH_MAP}))
    classes = (chardata.SINGLE_QUOTE_RE, chardata.DOUBLE_QUOTE_RE, chardata.C1_CONTROL_RE, fixes.SURROGATE_RE)
    return re.compile("|".join([f"[&\r\n\u2028\u2029{re.escape(tables)}]", *(found.pattern for found in classes)]))
