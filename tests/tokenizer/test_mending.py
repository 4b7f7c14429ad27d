"""What is mended chunk by chunk is what ftfy and html make of the whole text."""

import itertools
import re
from re import _constants as sre
from re import _parser as parser

import pytest
from ftfy.badness import BADNESS_RE, MOJIBAKE_CATEGORIES, is_bad
from hypothesis import given, settings
from hypothesis import strategies as st

from miniclip.tokenizer.chunks import Apart
from miniclip.tokenizer.mending import chunk_mender, mend

FUZZ = settings(deadline=None, derandomize=True, max_examples=2_000)

# All that is_bad looks for, and what goes with it, the steps of ftfy, entities.
SUSPECTS = sorted({*"".join(MOJIBAKE_CATEGORIES.values()), *re.sub(r"[\x00-\x7f]", "", BADNESS_RE.pattern)})
OTHERS = [*"aZ9.,?!'\"<&;#\n\r\t\x0b\x1b[m，Ａﬁŉ’“éü中😀", "&amp;", "&lt", "&NTILDE;", "\u0301", "\u0308", "\ufe0f"]
OTHERS += ["\u200d", "e\u0301", "\ud83d", "\ude00", "\u00a0", "\u3000", "\x85", "\u2028", "\ufeff"]
any_other = st.characters(exclude_categories=(), exclude_characters=" ")
pieces = st.sampled_from(SUSPECTS) | st.sampled_from(OTHERS) | any_other
chunks = st.lists(pieces, max_size=4).map("".join)


def alone(chunk: str) -> str | None:
    try:
        return chunk_mender()(chunk)
    except Apart:
        return None


@given(st.lists(chunks, max_size=6))
@FUZZ
def test_chunks_are_mended_as_in_any_caption(found: list[str]):
    kept = [chunk for chunk in found if alone(chunk) is not None]
    assert mend(" ".join(kept)).split() == " ".join(alone(chunk) for chunk in kept).split()


def test_every_code_point():
    forms = ("a{}", "{}a", "é{}", "{}’", "{0}{0}")  # far from the start, code points are alike
    for form, end in [("{}", 0x110000), *((form, 0x3000) for form in forms)]:
        for start in range(0, end, 0x400):
            kept = [form.format(chr(code)) for code in range(start, start + 0x400) if code != ord(" ")]
            kept = [chunk for chunk in kept if alone(chunk) is not None]
            assert mend(" ".join(kept)).split() == " ".join(map(alone, kept)).split()


@pytest.mark.parametrize(
    ("chunk", "mended"),
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
def test_what_captions_have_is_mended_alone(chunk: str, mended: str):
    assert alone(chunk) == mended == mend(chunk).strip()


@pytest.mark.parametrize(
    "chunk", ["&amp;", "&lt", "cafÃ©", "Â", "Ã", "a\x0bb", "\x1b[0m", "\ud83d\ude00", "é\n¨", "ﬁ", "＆"]
)
def test_what_is_left_to_the_caption(chunk: str):
    assert alone(chunk) is None


# A proof that a caption is not bad when its chunks are not: every pattern of is_bad, taken apart


def alternatives() -> list[list]:
    """Sequences of items that each match a character, one with and one without what is optional."""
    [(kind, (_, branches))] = parser.parse(BADNESS_RE.pattern, BADNESS_RE.flags)
    assert kind is sre.BRANCH
    found = []
    for branch in branches:
        choices = []
        for op, value in branch:
            if op is sre.MAX_REPEAT:
                low, high, [item] = value
                assert (low, high) == (0, 1)
                choices.append([[], [item]])
            else:
                choices.append([[(op, value)]])
        found += [list(itertools.chain(*items)) for items in itertools.product(*choices)]
    return found


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


def test_no_pattern_reaches_over_a_space_further_than_to_a_letter():
    assert len(alternatives()) > 30
    for items in alternatives():
        if items[0][0] is sre.AT:  # ^ and more: in the place of its character, after "a ", others find it
            (_, first), (_, second) = items[1:]
            assert items[0][1] is sre.AT_BEGINNING
            assert second == ord(" ")
            assert all(op is sre.LITERAL and is_bad(f"a {chr(code)} a") for op, code in first)
            continue
        assert all(accepts(item, " ") for item in items if accepts(item, "\n") or accepts(item, "\r"))
        blank = [place for place, item in enumerate(items) if accepts(item, " ")]
        for number in range(len(blank) + 1):
            for spaces in itertools.combinations(blank, number):
                assert any(found_alone(items, *run) for run in runs(spaces, len(items)))


def runs(spaces: tuple[int, ...], length: int) -> list[tuple[int, int]]:
    """Where the parts between the spaces begin and end."""
    ends = [-1, *spaces, length]
    return [(left + 1, right) for left, right in itertools.pairwise(ends) if left + 1 < right]


def found_alone(items: list, start: int, end: int) -> bool:
    """Whether what matches, matches with a chunk that ends or begins with this part, and "a" on either side.

    And the chunk is one that is looked at: not in ASCII.
    """
    if not any(not any(accepts(item, chr(code)) for code in range(128)) for item in items[start:end]):
        return False
    return matches(items[:start][::-1], " a") and matches(items[end:], " a")
