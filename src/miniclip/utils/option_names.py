"""Names of options in messages: `tokenizer='a.json'` for a caller from Python, `--tokenizer a.json` in a command.

A message is written once. The command line sets the flags of the running command, and `option` uses them.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar

_flags: ContextVar[Mapping[str, str] | None] = ContextVar("flags", default=None)


def option(name: str, value: object = None) -> str:
    """Return an option as the user writes it.

    Args:
        name: the name in Python.
        value: None gives the name only.

    >>> option("image_size", 64)
    'image_size=64'
    >>> with flags({"image_size": "--image-size{}"}):
    ...     option("image_size", 64)
    '--image-size 64'
    """
    template = (_flags.get() or {}).get(name)
    if template is None:
        return name if value is None else f"{name}={value!r}"
    if value is False and template.startswith("--"):
        return f"--no-{template.removeprefix('--').format('')}"
    return template.format("" if value is None or isinstance(value, bool) else f" {shlex.quote(str(value))}")


@contextmanager
def flags(templates: Mapping[str, str]) -> Iterator[None]:
    """Context in which `option` returns a command's flags.

    Args:
        templates: from names in Python to flags, with `{}` in place of a value, as in `--image-size{}`.
    """
    token = _flags.set(templates)
    try:
        yield
    finally:
        _flags.reset(token)
