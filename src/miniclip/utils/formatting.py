"""Durations, sizes and commands as short text."""

from __future__ import annotations

import reprlib
import shlex

_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 100


def format_duration(seconds: float) -> str:
    """Format a duration in its two largest units: `format_duration(7500)` is `2 h 5 min`."""
    if seconds < 10:
        return f"{seconds:.2g} s"
    seconds = round(seconds)
    units = (("d", 86400, "h", 3600), ("h", 3600, "min", 60), ("min", 60, "s", 1))
    for unit, size, smaller_unit, smaller_size in units:
        if seconds >= size:
            rest = seconds % size // smaller_size
            return f"{seconds // size:,} {unit}" + (f" {rest} {smaller_unit}" if rest else "")
    return f"{seconds} s"


def format_bytes(count: float) -> str:
    """Format a number of bytes: `format_bytes(3 << 29)` is `1.5 GiB`."""
    for unit, size in (("GiB", 1 << 30), ("MiB", 1 << 20)):
        if count >= size:
            return f"{count / size:,.1f} {unit}"
    return f"{count / 1024:,.0f} KiB"


def one_line(value: object, limit: int = 200) -> str:
    """Return text of a file or a library on one line, without control characters, and not too long."""
    text = " ".join("".join(c if c.isprintable() else " " for c in str(value)[: 5 * limit]).split())
    return text if len(text) <= limit else f"{text[:limit]} …"


def short(value: object) -> str:
    """Return the representation of a value that a file or a user gave, cut if it is long or deeply nested."""
    return _SHORT.repr(value)


def format_command(*words: object) -> str:
    """Format a command that a person can paste into a shell: `format_command("ls", "my run")` is `ls 'my run'`."""
    return shlex.join(map(str, words))
