"""What a user's values are checked by: types of dataclass fields, and the nearest known name."""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Iterable
from typing import Any, Literal, get_args, get_origin, get_type_hints


def did_you_mean(name: str, choices: Iterable[str], listed_by: str | None = None) -> str:
    """The end of an error message: the nearest choice, then all, as in `; did you mean 'a'? known: a, b`.

    Args:
        name: what was found.
        choices: what is known.
        listed_by: what to call for a list of them, in place of the list: where they are many.
    """
    choices = list(choices)
    near = difflib.get_close_matches(name, choices, n=1, cutoff=0.5)
    hint = f"; did you mean {near[0]!r}?" if near else ";"
    return f"{hint} {listed_by} lists them" if listed_by else f"{hint} known: {', '.join(choices)}"


def check_types(instance: Any) -> None:
    """Hold the fields of a dataclass to their annotations: a wrong type fails here and not hours later.

    An int is welcome where a float is expected; a bool is neither; a float must be finite. A type may be joined with
    words, as in `int | Literal["auto"]`.

    Raises:
        TypeError: a field has another type.
        ValueError: a field is none of the words that its type names, or not finite.
    """
    hints = get_type_hints(type(instance))
    for field in dataclasses.fields(instance):
        _check(field.name, getattr(instance, field.name), hints[field.name])


def _check(name: str, value: Any, hint: Any) -> None:
    if get_origin(hint) is Literal:
        if value not in get_args(hint):
            raise ValueError(f"{name} is {value!r}; expected one of {', '.join(get_args(hint))}")
    elif get_origin(hint) is tuple:
        parts = get_args(hint)
        if not isinstance(value, tuple):
            raise TypeError(f"{name} is {value!r}; expected {len(parts)} numbers")
        if len(value) != len(parts):
            raise ValueError(f"{name} is {value!r}; expected {len(parts)} numbers")
        for part, part_hint in zip(value, parts, strict=True):
            _check(name, part, part_hint)
    else:
        kinds, words = kinds_and_words(hint)
        if not _is_one_of(value, kinds) and value not in words:
            names = ["unset" if kind is type(None) else kind.__name__ for kind in kinds]
            expected = " or ".join([*names, *map(repr, words)])
            raise TypeError(f"{name} is {value!r}, a {type(value).__name__}; expected {expected}")
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"{name} is {value}; expected a finite number")


def kinds_and_words(hint: Any) -> tuple[tuple[Any, ...], tuple[str, ...]]:
    """The types and the words of an annotation: `int | Literal["auto"]` to `(int,)` and `("auto",)`."""
    parts = (hint,) if get_origin(hint) is Literal else get_args(hint) or (hint,)
    words = (word for part in parts if get_origin(part) is Literal for word in get_args(part))
    return tuple(part for part in parts if get_origin(part) is not Literal), tuple(words)


def _is_one_of(value: Any, kinds: tuple[Any, ...]) -> bool:
    if isinstance(value, bool):
        return bool in kinds
    return isinstance(value, kinds) or (isinstance(value, int) and float in kinds)
