"""Rule 6 of the design: plain English in docstrings, comments, messages, test names and pages.

`python -m tests.house.test_english [FOLDER …]` prints every place that the rule refuses.
"""

import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from tests.house.source import ROOT, Prose, pages, prose_of_page, prose_of_python, python_files, read, relative

MAX_SENTENCE_WORDS = 30
FOLDERS = ("src", "tests", "benchmarks", "docs")

# Refused wherever a person reads: a pattern, and the replacement.
PHRASES = {
    r"pictur(?:e|es|ed)": "image, plot or figure",
    r"data sets?": "dataset",
    r"(?:drawn|packed|whole|this|each|every) sets?(?! (?:of|to|up|by|in|with|from|the)\b)": "dataset",
    r"whoever|whomever": "the process that, the caller",
    r"whatever": "any",
    r"mend(?:s|ed|ing)?": "fix",
    r"(?<!let )(?<!leave )(?<!leaves )(?<!left )alone": "only, by itself",
    r"(?<!there )(?:is|are|was|were) no(?! (?:longer|more|less)\b)": "is not a, has no",
    r"so many": "the number of, N",
    r"(?:a|another) pass more": "one more ...",
    r"(?:taken?|takes|taking) (?:a run )?up(?! to)": "resume",
    r"in hand": "current",
    r"the word (?:that|to)": "allow_changes, the flag",
    r"(?:looks?|looked|looking) (?:at|into|after)|a look": "read, inspect, log",
    r"(?:asked|asks|ask|asking) (?:for|about)": "request, need",
    r"says?|said|saying": "state, print, name, describe",
    r"knows|knew": "has, contains",
    r"(?<!who )wants|wanted": "needs",
    r"speaks?|spoken": "describe",
    r"goes on|go on|going on|gone on": "continue, resume",
    r"(?:lets?|letting) go": "release",
    r"ailments?": "rule, finding",
    r"by heart": "memorise, overfit",
    r"in silence": "silently",
    r"in words": "as text, spelled out",
    r"unlike length": "different lengths",
    r"to the same bit|to the bit": "bit for bit",
    r"theirs|ours": "name the thing",
    r"where (?:it|they|that|this|one|there) (?:is|are|was|were)": "if ...",
    r"(?:which|what|that) (?:is|are) to be": "must be, will be",
    r"without (?:a )?reason to": "delete",
    r"would else": "would otherwise",
    r"nobody|no one": "no process, no code",
    r"it is (?:wise|well) to": "delete",
    r"what (?:is|was|are|were) (?:given|left|asked|there|found|not|whole|gone|written|kept)": "a noun",
    r"for (?:good|nothing)": "permanently, without effect",
    r"at (?:one|a) go|in one go": "at once",
}  # fmt: skip
# Refused only at the start of a docstring, or of a test's name.
STARTS = re.compile(r"(?:what|of|whoever|whatever|where|how|who|which|those|that|such|so|whose)\b", re.I)
START_ADVICE = "start with a noun phrase or an imperative"
# Refused as a sentence's first word inside a docstring.
FRAGMENTS = re.compile(r"(?:What|Of|Whoever|Whatever) ")

COMPILED = {re.compile(rf"\b(?:{pattern})\b", re.I): advice for pattern, advice in PHRASES.items()}
ANY = re.compile(rf"\b(?:{'|'.join(PHRASES)})\b", re.I)  # one search in most texts, in place of one for each phrase
SENTENCE_END = re.compile(r"[.!?:;](?:\s+|$)|\n\s*\n|\n\s*(?:[-*] |\d+\. |\w[\w, *|\[\]]*: )|\n\s{2,}(?=\S+: )")
SECTIONS = re.compile(r"^\s*(?:Args|Returns|Raises|Attributes|Yields|Examples?|Note|Source):\s*$", re.M)


def sentences(text: str) -> Iterator[str]:
    """Yield the sentences of a docstring; an argument's description is a sentence of its own."""
    text = re.sub(
        r"(?<=\n\n)(?: {4}.*\n?)*? {4}.* = .*\n(?: {4}.*(?:\n|$))*", "", SECTIONS.sub("\n\n", text)
    )  # formulas
    yield from (part for part in SENTENCE_END.split(text) if part and part.strip())


def faults(prose: Prose) -> Iterator[tuple[str, str]]:
    """Yield what is refused in a piece of prose: the words found, and what to write instead."""
    text = " ".join(without_code(prose.text).split())
    for pattern, advice in COMPILED.items() if ANY.search(text) else ():
        for match in pattern.finditer(text):
            yield match[0], advice
    if prose.kind == "docstring":
        if STARTS.match(prose.text):
            yield f"{prose.text.split()[0]} … as a start", START_ADVICE
        for sentence in sentences(prose.text):
            words = len(sentence.split())
            if words > MAX_SENTENCE_WORDS:
                yield f"a sentence of {words} words ({' '.join(sentence.split()[:6])} …)", "one idea a sentence"
            if FRAGMENTS.match(sentence.strip()) and sentence.strip() not in prose.text[: len(sentence) + 1]:
                yield f"{' '.join(sentence.split()[:3])} …", "subject, verb, object"
    if prose.kind == "comment" and prose.text.startswith("of "):
        yield "of … as a start", START_ADVICE
    if prose.kind == "name" and re.match(r"test (?:what|of|whoever|where|how|who|which)\b", prose.text):
        yield prose.text, "name the behaviour"


def without_code(text: str) -> str:
    """Drop what stands between backticks: names of code are not prose."""
    return re.sub(r"``[^`]*``|`[^`\n]*`", "", text)


def pieces(path: Path) -> Iterable[Prose]:
    """Return the prose of a file; string literals count only outside the tests, where captions are data."""
    if path.suffix == ".md":
        return prose_of_page(read(path))
    return prose_of_python(read(path), messages=not relative(path).startswith("tests/"))


def report(paths: Iterable[Path]) -> list[str]:
    """Return a line for every fault of some files."""
    return [
        f"{relative(path)}:{prose.line}: {prose.kind}: {words!r}; write: {advice}"
        for path in paths
        for prose in pieces(path)
        for words, advice in faults(prose)
    ]


def all_files() -> list[Path]:
    """Return all files with prose that people write, without this one."""
    python = [*python_files(*FOLDERS), ROOT / "hubconf.py"]
    left_out = {Path(__file__).resolve(), ROOT / "docs/benchmark/results.md"}  # results.md is written by the benchmarks
    return [path for path in [*python, *pages()] if path not in left_out]


def test_faults_are_seen():
    source = (
        '"""What one token of each row finds."""\n\n'
        'def test_what_is_kept():\n    """A run taken up. Of five, one is chosen."""\n'
        '    # a picture is no file\n    raise ValueError(f"{path}: mend the file")\n'
        "    sides = 4  # of a square\n"
    )
    words = [words for prose in prose_of_python(source) for words, _ in faults(prose)]
    for expected in (
        "What … as a start",
        "taken up",
        "picture",
        "is no",
        "mend",
        "test what is kept",
        "Of five, one …",
        "of … as a start",
    ):
        assert expected in words, expected
    long = f'"""{"word " * 31}."""'
    assert next(words for prose in prose_of_python(long) for words, _ in faults(prose)).startswith("a sentence of 31")
    page = "Whoever reads it.\n\n```python\npicture = 1\n```\n\nA `picture` and\n[a picture](picture.png).\n"
    assert [(prose.line, words) for prose in prose_of_page(page) for words, _ in faults(prose)] == [
        (1, "Whoever"), (7, "picture"),
    ]  # fmt: skip


def test_plain_english_passes():
    source = (
        '"""Exclusive lock on a run directory.\n\nArgs:\n    path: the directory; it is created if missing.\n"""\n'
        'raise ValueError("lr is -1; expected a number above 0")\ntokens = {"picture": 1}\n'
    )
    assert [words for prose in prose_of_python(source) for words, _ in faults(prose)] == []


@pytest.mark.parametrize("folder", [*FOLDERS, "pages"])
def test_plain_english(folder):
    paths = [path for path in all_files() if relative(path).startswith(folder) or folder == "pages"]
    lines = report(path for path in paths if (path.suffix == ".md") == (folder == "pages"))
    assert not lines, "\n".join(lines)


if __name__ == "__main__":
    arguments = sys.argv[1:]
    lines = report(path for path in all_files() if not arguments or relative(path).startswith(tuple(arguments)))
    print("\n".join(lines))
    counts = Counter("/".join(line.split(":")[0].split("/")[:3]) for line in lines)
    print("\n".join(f"{count:5} {room}" for room, count in counts.most_common()), file=sys.stderr)
