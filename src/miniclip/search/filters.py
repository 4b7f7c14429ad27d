"""Filters of a search: by path, date, bytes and pixels, as a condition in SQL on the items of an index."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

from miniclip.search.database import MAX_INTEGER, encode_name
from miniclip.utils.checks import whole_number
from miniclip.utils.items import describe

UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "ki": 2**10, "mi": 2**20, "gi": 2**30}
SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([kmg]?i?)b?\s*", re.IGNORECASE)
MAGIC = re.compile(r"[*?\[]")
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MAX_PATTERNS = 10_000  # SQLite takes 32,766 parameters


@dataclass(frozen=True)
class Filter:
    """Images to search among. All conditions hold together; of `paths`, one.

    Attributes:
        paths: patterns of names, as in "2023/*" or "*.png": `*` stands for any letters, slashes too, `?` for one, and
            `[ab]` for a or b. The name of a file or a folder is a pattern too. Upper and lower case differ.
        after: first moment of the last change of the file, in ISO format, as "2024-05-01" or "2024-05-01T18:30+02:00";
            in the local time zone if it has none. Images that are not files have no date.
        before: the moment at which the range ends, not part of it.
        min_size: bytes of the file, a number or a string such as "2 MB" or "500kB"; MiB has 1024 KiB.
        max_size: likewise.
        min_width: pixels of the upright image.
        min_height: likewise.

    Raises:
        ValueError: a date or size is not one, or a range is empty.
        TypeError: a value is of another type.
    """

    paths: str | Sequence[str] = ()
    after: str | datetime | None = None
    before: str | datetime | None = None
    min_size: int | str | None = None
    max_size: int | str | None = None
    min_width: int | None = None
    min_height: int | None = None

    def __post_init__(self) -> None:
        self.condition()
        for low, high, name in (
            (_nanoseconds("after", self.after), _nanoseconds("before", self.before), "after and before"),
            (_bytes("min_size", self.min_size), _bytes("max_size", self.max_size), "min_size and max_size"),
        ):
            if low is not None and high is not None and low > high:
                raise ValueError(f"{name}: the range is empty, because it ends before it begins")

    def condition(self, root: str = "") -> tuple[str, list[Any]]:
        """Return the condition in SQL and its parameters.

        Args:
            root: the indexed folder; a path that begins with it is relative to it.
        """
        parts, parameters = ["1"], list[Any]()
        patterns = [self.paths] if isinstance(self.paths, str) else list(self.paths)
        if patterns:
            if len(patterns) > MAX_PATTERNS:
                raise ValueError(f"paths: found {len(patterns):,} patterns; expected at most {MAX_PATTERNS:,}")
            patterns = [_relative(pattern, root) for pattern in patterns]
            globs = [glob for pattern in patterns for glob in _globs(pattern)]
            tests = ["name = CAST(? AS TEXT)"] * len(patterns) + ["name GLOB CAST(? AS TEXT)"] * len(globs)
            parts.append(_any_of(tests))
            parameters += [encode_name(text) for text in (*(pattern.rstrip("/") for pattern in patterns), *globs)]
        after, before = _nanoseconds("after", self.after), _nanoseconds("before", self.before)
        comparisons = [
            ("mtime_ns >= ?", after),
            ("mtime_ns < ?", before),
            ("mtime_ns != ?", None if after is None and before is None else 0),  # 0: no date
            ("size >= ?", _bytes("min_size", self.min_size)),
            ("size <= ?", _bytes("max_size", self.max_size)),
            ("width >= ?", _pixels("min_width", self.min_width)),
            ("height >= ?", _pixels("min_height", self.min_height)),
        ]
        for comparison, value in comparisons:
            if value is not None:
                parts.append(comparison)
                parameters.append(max(-MAX_INTEGER, min(value, MAX_INTEGER)))
        return " AND ".join(parts), parameters


def _any_of(conditions: list[str]) -> str:
    """Join conditions by OR as a balanced tree: SQLite limits the depth of an expression to 1,000."""
    while len(conditions) > 1:
        conditions = [f"({' OR '.join(conditions[start : start + 2])})" for start in range(0, len(conditions), 2)]
    return conditions[0]


def _relative(pattern: str, root: str) -> str:
    """Return a pattern from the indexed folder on; links before the first pattern's letter are followed."""
    if not isinstance(pattern, str):
        raise TypeError(f"paths: found {describe(pattern)}; expected patterns such as '2023/*'")
    if "\0" in pattern or not pattern:
        raise ValueError(f"paths: found {pattern!r}; expected a pattern such as '2023/*'")
    folder = root.rstrip("/") + "/"
    if root and pattern.startswith("/") and not f"{pattern}/".startswith(folder):
        magic = MAGIC.search(pattern)
        end = pattern.rindex("/", 0, magic.start()) + 1 if magic else len(pattern)
        resolved = os.path.join(os.path.realpath(pattern[:end]), pattern[end:])  # noqa: PTH118
        pattern = resolved if f"{resolved}/".startswith(folder) else pattern
    if root and f"{pattern}/".startswith(folder):
        pattern = pattern[len(folder) :]
    while pattern.startswith("./"):
        pattern = pattern[2:]
    return "*" if pattern in ("", ".") else pattern


def _globs(pattern: str) -> list[str]:
    """Return the patterns of SQLite for a pattern, which is also the name of a folder."""
    folder = MAGIC.sub(lambda letter: f"[{letter[0]}]", pattern.rstrip("/")) + "/*"
    return [folder, pattern] if MAGIC.search(pattern) else [folder]


def _nanoseconds(name: str, moment: str | datetime | None) -> int | None:
    """Return a moment in nanoseconds since 1970."""
    if moment is None:
        return None
    if isinstance(moment, str):
        try:
            moment = datetime.fromisoformat(moment.strip())
        except ValueError:
            raise ValueError(
                f"{name}: found {moment!r}; expected a date such as 2024-05-01 or 2024-05-01T18:30"
            ) from None
    if not isinstance(moment, datetime):
        raise TypeError(f"{name}: found {describe(moment)}; expected a date such as '2024-05-01', or a datetime")
    try:
        return (moment.astimezone(UTC) - EPOCH) // timedelta(microseconds=1) * 1000
    except (OverflowError, OSError, ValueError):
        raise ValueError(f"{name}: {moment} is out of range") from None


def _bytes(name: str, size: int | str | None) -> int | None:
    """Return a size in bytes."""
    if size is None or (isinstance(size, int) and not isinstance(size, bool) and size >= 0):
        return size
    match = SIZE.fullmatch(size) if isinstance(size, str) else None
    if match is None or match[2].lower() not in UNITS:
        raise ValueError(f"{name}: found {size!r}; expected bytes, as in 500000, '500kB' or '2 MB'")
    return round(Decimal(match[1]) * UNITS[match[2].lower()])


def _pixels(name: str, length: int | None) -> int | None:
    return None if length is None else whole_number(name, length, 0)
