"""Checks of a user's values: types of dataclass fields, and the nearest name for an unknown one."""

from __future__ import annotations

import dataclasses
import difflib
import math
import numbers
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from miniclip.utils.formatting import short

MAX_LISTED = 12  # known names in a message; more are noise
MIN_PREFIX = 3  # letters of a beginning that count as a likely meaning
LIKENESS = 0.75  # difflib's ratio: "trian" and "train" have 0.8, "learning-rate" and "rotate" less


def nearest(name: str, choices: Iterable[str]) -> str | None:
    """Return the choice that a name most likely stands for, or None.

    Case and punctuation do not count. The name is the same, or begins with one choice only, or one choice begins with
    it, or few letters differ.

    >>> nearest("ViT-B/32", ["vit_b_16", "vit_b_32"]), nearest("validation", ["train", "val"]), nearest("red", ["blue"])
    ('vit_b_32', 'val', None)
    """
    plain = {_letters(choice): choice for choice in choices}
    letters = _letters(name)
    if letters in plain:
        return plain[letters]
    begin = [key for key in plain if min(len(key), len(letters)) >= MIN_PREFIX and _share_beginning(key, letters)]
    near = begin if len(begin) == 1 else difflib.get_close_matches(letters, plain, n=1, cutoff=LIKENESS)
    return plain[near[0]] if near else None


def near_path(path: Path) -> str | None:
    """Return the path in the same folder that a missing one most likely stands for, or None."""
    try:
        near = nearest(path.name, [entry.name for entry in path.parent.iterdir()])
    except OSError:
        return None
    return near and str(path.with_name(near))


def did_you_mean(name: str, choices: Iterable[str], listed_by: str | None = None) -> str:
    """Return the end of an error message: a likely choice, then all, as in `; did you mean 'a'? known: a, b`.

    Args:
        name: the unknown name.
        choices: the known names; of many, at most a dozen are listed.
        listed_by: command or function that lists the choices; it replaces the list.
    """
    choices = list(choices)
    near = nearest(name, choices)
    hint = f"; did you mean {near!r}?" if near else ";"
    if listed_by:
        return f"{hint} {listed_by} lists them"
    if len(choices) > MAX_LISTED:
        return hint if near else f"{hint} known: {', '.join(choices[:MAX_LISTED])}, … ({len(choices)} in all)"
    return f"{hint} known: {', '.join(choices)}"


def _letters(name: str) -> str:
    return "".join(filter(str.isalnum, name)).lower()


def _share_beginning(a: str, b: str) -> bool:
    return a.startswith(b) or b.startswith(a)


def whole_number(name: str, value: Any, at_least: int | None = None) -> int:
    """Return an integer of Python or numpy as an int.

    Raises:
        TypeError: the value is a bool, or not an integer.
        ValueError: it is below `at_least`.
    """
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(f"{name} is {short(value)}, a {type(value).__name__}; expected an integer")
    if at_least is not None and value < at_least:
        raise ValueError(f"{name} {value}: expected at least {at_least}")
    return int(value)


def check_types(instance: Any, prefix: str = "") -> None:
    """Check the fields of a dataclass against their annotations.

    An int is accepted as a float, a bool is not a number, a float must be finite, and an int must fit in 64 bits.
    Numbers of numpy become Python's. Annotations can combine types and literals, as in `int | Literal["auto"]`.

    Args:
        instance: the dataclass.
        prefix: put before the names of fields in messages.

    Raises:
        TypeError: a field has another type.
        ValueError: a field is not one of the literals of its annotation, or is not finite.
    """
    hints = get_type_hints(type(instance))
    for field in dataclasses.fields(instance):
        value = getattr(instance, field.name)
        if get_origin(hints[field.name]) is tuple and not isinstance(value, str) and isinstance(value, Iterable):
            value = tuple(map(_plain, value))  # a list, an array
        value = _plain(value)
        object.__setattr__(instance, field.name, value)  # the dataclass may be frozen
        _check(prefix + field.name, value, hints[field.name])


def _plain(value: Any) -> Any:
    """Return a number of numpy as Python's, which JSON can hold; other values as they are."""
    if isinstance(value, int | float | str) or not isinstance(value, numbers.Real):
        return value
    return int(value) if isinstance(value, numbers.Integral) else float(value)


def _check(name: str, value: Any, hint: Any) -> None:
    if get_origin(hint) is Literal:
        if value not in get_args(hint):
            raise ValueError(f"{name} is {short(value)}; expected one of {', '.join(get_args(hint))}")
    elif get_origin(hint) is tuple:
        parts = get_args(hint)
        if not isinstance(value, tuple):
            raise TypeError(f"{name} is {short(value)}; expected {len(parts)} numbers")
        if len(value) != len(parts):
            raise ValueError(f"{name} is {short(value)}; expected {len(parts)} numbers")
        for part, part_hint in zip(value, parts, strict=True):
            _check(name, part, part_hint)
    else:
        types, literals = types_and_literals(hint)
        if not _is_one_of(value, types) and value not in literals:
            names = ["unset" if type_ is type(None) else type_.__name__ for type_ in types]
            expected = " or ".join([*names, *map(repr, literals)])
            raise TypeError(f"{name} is {short(value)}, a {type(value).__name__}; expected {expected}")
        if isinstance(value, int | float) and not is_finite(value):
            raise ValueError(f"{name} is {short(value)}; expected a finite number of at most 64 bits")


def is_finite(value: float) -> bool:
    """Return whether a float is finite, or an int fits in 64 bits with its sign."""
    return abs(value) < 1 << 63 if isinstance(value, int) else math.isfinite(value)


def types_and_literals(hint: Any) -> tuple[tuple[Any, ...], tuple[str, ...]]:
    """Split an annotation into types and literals: `int | Literal["auto"]` into `(int,)` and `("auto",)`."""
    parts = (hint,) if get_origin(hint) is Literal else get_args(hint) or (hint,)
    literals = (literal for part in parts if get_origin(part) is Literal for literal in get_args(part))
    return tuple(part for part in parts if get_origin(part) is not Literal), tuple(literals)


def _is_one_of(value: Any, types: tuple[Any, ...]) -> bool:
    if isinstance(value, bool):
        return bool in types
    return isinstance(value, types) or (isinstance(value, int) and float in types)
