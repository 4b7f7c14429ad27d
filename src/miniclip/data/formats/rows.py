"""What all readers share: rows of a picture and its captions in, pictures with clean captions of one split out.

A reader says what is where, as `Entry`s in the order of the file. Then, for all of them alike:
1. captions become text: numbers are written out, blank ones dropped, those that are no text are left out;
2. rows of the same picture become one picture;
3. the split is the set's own, or drawn;
4. the picture files are looked for; missing ones are left out.
What is left out is raised, or named and counted: `skip_log.py` has the rule.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

from miniclip.data.formats.files import PLACES, find_files
from miniclip.data.formats.text_files import not_text
from miniclip.data.skipping import MAX_SKIP_FRACTION, OnError, SkipLog
from miniclip.data.splits import chosen, meaning, settled
from miniclip.errors import DataError

LONGEST = 100_000  # characters of a caption: what is longer is a quote that was never closed, or another file's text

_URL = re.compile(r"(?:[a-z][a-z0-9+.-]+://|data:)", re.IGNORECASE)


class Stored(Protocol):
    """A picture that is no file of its own: it lies in a table, or in another store. `str` of it is its name."""

    def read(self) -> bytes:
        """The bytes of the picture file."""


class Entry(NamedTuple):
    """A picture and some captions of it, as a set has them.

    Attributes:
        where: what a user finds the row by: "photos.csv, line 7".
        name: the picture, as the set calls it: mostly a path from the set's folder on.
        captions: text, numbers or None.
        split: the set's word for the split, None where it has none.
        picture: where it is; None: a file that `name` leads to.
    """

    where: str
    name: str
    captions: Sequence[object]
    split: str | None = None
    picture: Path | Stored | None = None


class Rule(NamedTuple):
    """What a user asks of any reader.

    Attributes:
        split: "train", "val", "test" or "all".
        seed: of the drawn split.
        on_error: "raise" or "skip".
        max_skip_fraction: the share that may be left out.
    """

    split: str = "all"
    seed: int = 0
    on_error: OnError = "raise"
    max_skip_fraction: float = MAX_SKIP_FRACTION


@dataclass
class Pictures:
    """What a set has: the pictures of one split, or of all with the split of each, in the order of the set."""

    paths: list[Path | Stored]
    captions: list[list[str]]
    splits: list[str]
    skip_log: SkipLog
    about: str


@dataclass(slots=True)
class _Group:
    where: str
    captions: list[str]
    split: str | None
    picture: Path | Stored | None


def collect(
    source: Path,
    entries: Iterable[Entry],
    rule: Rule,
    skip_log: SkipLog,
    *,
    about: str,
    base: Path | None = None,
    places: Sequence[str] = PLACES,
    split_by: Path | None = None,
    exact: bool = False,
) -> Pictures:
    """Make a set of what a reader found.

    Args:
        source: the file or folder that errors about the whole name.
        entries: what is there.
        rule: what is asked for.
        skip_log: of the same rule; the reader may have left out rows already.
        about: the layout, in words.
        base: the folder that the pictures' names start from; by default that of the source.
        places: where below it to look for them.
        split_by: the file that says the split, where that is not the source.
        exact: the split is said of every picture, and not by the names of files (`splits.settled`).

    Raises:
        DataError: nothing is left, or more than may be left out.
        ValueError: no such split.
    """
    groups, rows = _grouped(entries, skip_log)
    skip_log.require_few(rows)
    if not groups:
        raise DataError(f"{source}: names no pictures with captions{_first(skip_log)}")
    base = base or (source if source.is_dir() else source.parent)
    splits, split_words = settled({name: group.split for name, group in groups.items()}, rule.seed, exact)
    said_by = f"{split_by or source} has" if "own" in split_words else f"these {len(groups)} pictures have"
    names = chosen(list(groups), splits, rule.split, said_by)
    paths = _found(base, names, groups, places, skip_log, rule)
    captions = [groups[name].captions for name in paths]
    counts = Counter(splits[name] for name in groups if name in splits)
    order = sorted(counts, key=lambda split: (("train", "val", "test", split).index(split), split))
    sizes = ", ".join(f"{split} {counts[split]:,}" for split in order)
    said = [splits.get(name, "") for name in paths]
    return Pictures(list(paths.values()), captions, said, skip_log, f"{about}; {split_words}: {sizes}")


def _grouped(entries: Iterable[Entry], skip_log: SkipLog) -> tuple[dict[str, _Group], int]:
    """Pictures by name with their clean captions, and how many rows there were."""
    groups: dict[str, _Group] = {}
    rows = known = 0
    for entry in entries:
        rows += 1 + len(skip_log) - known  # and those before it that the reader could not take apart
        _take(entry, groups, skip_log)
        known = len(skip_log)
    rows += len(skip_log) - known
    bare = [name for name, group in groups.items() if not group.captions]
    for name in bare:
        if name not in skip_log and groups[name].where not in skip_log:  # else its captions are named already
            skip_log.add(f"{groups[name].where}: {name}", "has no caption that is not blank; write one, or take it out")
        del groups[name]
    return groups, rows


def _take(entry: Entry, groups: dict[str, _Group], skip_log: SkipLog) -> None:
    """Put an entry to its picture."""
    problem = _wrong_name(entry)
    if problem is not None:
        skip_log.add(entry.where, problem)
        return
    group = groups.setdefault(entry.name, _Group(entry.where, [], entry.split, entry.picture))
    if _differ(group.split, entry.split):
        skip_log.add(entry.where, f"{entry.name} is in {group.split!r} in {group.where}, here in {entry.split!r}")
    else:
        group.captions += _clean(entry, skip_log)


def _differ(one: str | None, other: str | None) -> bool:
    return one is not other and (one is None or other is None or meaning(one) != meaning(other))


def _wrong_name(entry: Entry) -> str | None:
    if entry.picture is not None:
        return None
    if not entry.name:
        return "names no picture; expected a path"
    if is_url(entry.name):
        shown = entry.name if len(entry.name) <= 80 else entry.name[:80] + "…"
        return f"{shown!r} is a URL; download the pictures first (img2dataset does that), and give their paths"
    return not_text(entry.name)


def is_url(name: str) -> bool:
    """Whether a picture's name is an address, or a picture written out as one ("data:…")."""
    return _URL.match(name) is not None


def _clean(entry: Entry, skip_log: SkipLog) -> list[str]:
    """The captions of an entry that can be used, as stripped text; blank ones are dropped, as they describe nothing."""
    kept = []
    for caption in entry.captions:
        text, problem = as_text(caption)
        if problem is not None:
            skip_log.add(entry.where, problem)
        elif text:
            kept.append(text)
    return kept


def as_text(caption: object) -> tuple[str, str | None]:
    """A caption as text, and why it cannot be one: a number is written out, nothing (None, not a number) is blank."""
    if isinstance(caption, str):
        text = caption.strip()
        if len(text) > LONGEST:
            return "", (
                f"a caption of {len(text):,} characters, more than {LONGEST:,}: a quote that is never closed, or "
                "another file's text? shorten it"
            )
        problem = not_text(text)
        return text, None if problem is None else f"the caption {problem}"
    if caption is None or (isinstance(caption, float) and math.isnan(caption)):
        return "", None
    if isinstance(caption, int | float) and not isinstance(caption, bool):
        return str(caption), None
    return "", f"the caption is {str(caption)[:80]!r}, a {type(caption).__name__}; expected text"


def _found(
    base: Path, names: Sequence[str], groups: dict[str, _Group], places: Sequence[str], skip_log: SkipLog, rule: Rule
) -> dict[str, Path | Stored]:
    """Where each picture is; those that are not there are left out."""
    files = [name for name in names if groups[name].picture is None]
    folder, paths = find_files(base, files, places)
    absent = [name for name in files if name not in paths]
    if absent and rule.on_error == "raise":
        first = ", ".join(absent[:3]) + (", …" if len(absent) > 3 else "")
        raise DataError(
            f"{base}: {len(absent)} of the {len(names)} pictures that have captions are not in {folder}: {first}; "
            f"put all the pictures there, or take the rows of the missing ones out"
        )
    missing = SkipLog(rule.on_error, rule.max_skip_fraction)
    for name in absent:
        missing.add(str(folder / name), f"there is no such picture ({groups[name].where})")
    missing.require_few(len(names))
    skip_log.reasons |= missing.reasons
    known = {name: groups[name].picture or paths.get(name) for name in names}
    found = {name: path for name, path in known.items() if path is not None}
    if not found:
        raise DataError(f"{base}: none of the {len(names)} pictures is there{_first(skip_log)}")
    return found


def _first(skip_log: SkipLog) -> str:
    for name, reason in skip_log.reasons.items():
        return f"; {len(skip_log):,} left out, the first: {name}: {reason}"
    return ""
