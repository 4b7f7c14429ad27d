"""Fixing chunk by chunk equals ftfy and html on the whole text."""

import itertools
import re
from re import _constants as sre
from re import _parser as parser

import pytest
from ftfy.badness import BADNESS_RE, MOJIBAKE_CATEGORIES, is_bad
from hypothesis import given, settings
from hypothesis import strategies as st

from miniclip.tokenizer.chunk_cache import ContextDependent
from miniclip.tokenizer.cleaning import chunk_fixer, fix_text

FUZZ = settings(deadline=None, derandomize=True, max_examples=500)

# Characters in the patterns of is_bad; characters of ftfy's other steps; entities.
SUSPECTS = sorted({*"".join(MOJIBAKE_CATEGORIES.values()), *re.sub(r"[\x00-\x7f]", "", BADNESS_RE.pattern)})
OTHERS = [*"aZ9.,?!'\"<&;#\n\r\t\x0b\x1b[m，Ａﬁŉ’“éü中😀", "&amp;", "&lt", "&NTILDE;", "\u0301", "\u0308", "\ufe0f"]
OTHERS += ["\u200d", "e\u0301", "\ud83d", "\ude00", "\u00a0", "\u3000", "\x85", "\u2028", "\ufeff"]
any_other = st.characters(exclude_categories=(), exclude_characters=" ")
pieces = st.sampled_from(SUSPECTS) | st.sampled_from(OTHERS) | any_other
chunks = st.lists(pieces, max_size=4).map("".join)


def fix(chunk: str) -> str | None:
    """Return a fixed chunk, or None if it depends on its context."""
    try:
        return chunk_fixer()(chunk)
    except ContextDependent:
        return None


@given(st.lists(chunks, max_size=6))
@FUZZ
def test_chunks_are_fixed_as_in_any_caption(captions: list[str]):
    independent = [chunk for chunk in captions if fix(chunk) is not None]
    assert fix_text(" ".join(independent)).split() == " ".join(fix(chunk) for chunk in independent).split()


def test_every_code_point():
    forms = ("a{}", "{}a", "é{}", "{}’", "{0}{0}")  # high code points do not differ here
    for form, end in [("{}", 0x110000), *((form, 0x3000) for form in forms)]:
        for start in range(0, end, 0x400):
            texts = [form.format(chr(code)) for code in range(start, start + 0x400) if code != ord(" ")]
            independent = {chunk: fixed for chunk in texts if (fixed := fix(chunk)) is not None}
            assert fix_text(" ".join(independent)).split() == " ".join(independent.values()).split()


@pytest.mark.parametrize(
    ("chunk", "fixed"),
    [
        ("café", "café"),
        ("women’s", "women's"),
        ("“And”", '"And"'),
        ("cafe\u0301.", "café."),
        ("花，白猫。", "花,白猫。"),
        ("👨\u200d👩\u200d👧", "👨\u200d👩\u200d👧"),
        ("bakery.\n", "bakery."),
        ("&", "&"),
        ("R&B", "R&B"),
    ],
)
def test_common_chunks_are_independent(chunk: str, fixed: str):
    assert fix(chunk) == fixed == fix_text(chunk).strip()


@pytest.mark.parametrize(
    "chunk", ["&amp;", "&lt", "cafÃ©", "Â", "Ã", "a\x0bb", "\x1b[0m", "\ud83d\ude00", "é\n¨", "ﬁ", "＆"]
)
def test_context_dependent_chunks(chunk: str):
    assert fix(chunk) is None


# A proof, from every pattern of is_bad, that a caption is not bad if none of its chunks is


def alternatives() -> list[list]:
    """Return the patterns of is_bad as sequences of items that match one character; optional items double them."""
    [(kind, (_, branches))] = parser.parse(BADNESS_RE.pattern, BADNESS_RE.flags)
    assert kind is sre.BRANCH
    sequences = []
    for branch in branches:
        choices = []
        for op, value in branch:
            if op is sre.MAX_REPEAT:
                low, high, [item] = value
                assert (low, high) == (0, 1)
                choices.append([[], [item]])
            else:
                choices.append([[(op, value)]])
        sequences += [list(itertools.chain(*items)) for items in itertools.product(*choices)]
    return sequences


def accepts(item, char: str) -> bool:
    op, value = item
    if op is sre.LITERAL:
        return char == chr(value)
    if op is sre.ANY:
        return char != "\n"
    assert op is sre.IN, op
    negated = value[0][0] is sre.NEGATE
    return negated != any(_in_class(part, char) for part in value[negated:])


def _in_class(part, char: str) -> bool:
    op, value = part
    if op is sre.RANGE:
        return value[0] <= ord(char) <= value[1]
    if op is sre.CATEGORY:
        return bool(re.match({sre.CATEGORY_SPACE: r"\s", sre.CATEGORY_WORD: r"\w"}[value], char))
    assert op is sre.LITERAL, op
    return char == chr(value)


def matches(items: list, text: str) -> bool:
    return len(items) <= len(text) and all(map(accepts, items, text))


def test_patterns_extend_over_a_space_by_at_most_a_letter():
    assert len(alternatives()) > 30
    for items in alternatives():
        if items[0][0] is sre.AT:  # ^ followed by two literals: after "a ", another pattern matches the first
            (_, first), (_, second) = items[1:]
            assert items[0][1] is sre.AT_BEGINNING
            assert second == ord(" ")
            assert all(op is sre.LITERAL and is_bad(f"a {chr(code)} a") for op, code in first)
            continue
        assert all(accepts(item, " ") for item in items if accepts(item, "\n") or accepts(item, "\r"))
        blank = [place for place, item in enumerate(items) if accepts(item, " ")]
        for number in range(len(blank) + 1):
            for spaces in itertools.combinations(blank, number):
                assert any(matches_one_chunk(items, *run) for run in runs(spaces, len(items)))


def runs(spaces: tuple[int, ...], length: int) -> list[tuple[int, int]]:
    """Return the start and end of the parts between the spaces."""
    ends = [-1, *spaces, length]
    return [(left + 1, right) for left, right in itertools.pairwise(ends) if left + 1 < right]


def matches_one_chunk(items: list, start: int, end: int) -> bool:
    """Return True if the pattern also matches with "a" in place of the chunks around one part.

    The part must contain a character beyond ASCII, because ASCII chunks are not tested.
    """
    if not any(not any(accepts(item, chr(code)) for code in range(128)) for item in items[start:end]):
        return False
    return matches(items[:start][::-1], " a") and matches(items[end:], " a")
