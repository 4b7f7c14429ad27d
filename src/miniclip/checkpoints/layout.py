"""What every layout is made of, and how another project's settings are read without overlooking one."""

from __future__ import annotations

import math
import warnings
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

from miniclip.checkpoints.key_maps import Row
from miniclip.checkpoints.operations import Shape
from miniclip.config import CLIPConfig


class Plan(NamedTuple):
    """How to read a checkpoint: the model that it is, the rows that its weights go by, and its tokenizer's options."""

    config: CLIPConfig
    rows: tuple[Row, ...]
    tokenizer: Mapping[str, Any] = {}  # of `load_tokenizer`
    tokenizer_repo: str | None = None  # where the tokenizer is to be had if there is none beside the weights


class Written(NamedTuple):
    """How to write one: the rows that our weights go by, the files of settings beside them, the weights' name."""

    rows: tuple[Row, ...]
    files: Mapping[str, Mapping[str, Any]]
    weights: str


class Settings:
    """A section of another project's configuration, from which each setting is taken once.

    What nobody took could change the numbers: `done` refuses it.

    Args:
        values: the section.
        name: of the section, for messages.
        defaults: what the other project takes where the section says nothing.
    """

    def __init__(self, values: Mapping[str, Any], name: str, defaults: Mapping[str, Any]) -> None:
        if not isinstance(values, Mapping):
            raise ValueError(f"{name} is a {type(values).__name__}; expected an object")  # noqa: TRY004 (of a file)
        self.values, self.name = {**defaults, **values}, name
        self._left = set(values)

    def take(self, key: str) -> Any:
        """A setting's value."""
        self._left.discard(key)
        return self.values[key]

    def number(self, key: str, least: int = 0) -> int:
        """A setting that is a whole number."""
        value = self.take(key)
        if isinstance(value, list) and len(value) == 2 and value[0] == value[1]:
            value = value[0]  # a square, by both of its sides
        if isinstance(value, bool) or not isinstance(value, int):
            raise ValueError(f"{self.name}.{key} is {value!r}; expected a whole number (pictures are square)")  # noqa: TRY004
        if value < least:
            raise ValueError(f"{self.name}.{key} is {value}; expected at least {least}")
        return value

    def real(self, key: str) -> float:
        """A setting that is a number."""
        value = self.take(key)
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise ValueError(f"{self.name}.{key} is {value!r}; expected a number")
        return float(value)

    def choose(self, key: str, choices: Mapping[Any, str]) -> Any:
        """Our word for a setting's value.

        Raises:
            ValueError: we have none.
        """
        value = self.take(key)
        if not isinstance(value, str | bool | None) or value not in choices:
            known = ", ".join(map(str, choices))
            raise ValueError(f"{self.name}.{key} is {value!r}, which miniclip has no part for; known: {known}")
        return choices[value]

    def refuse(self, *keys: str) -> None:
        """Raise `ValueError` where one of these settings, which miniclip has no part for, is set to anything."""
        for key in keys:
            value = self.take(key) if key in self.values else None
            if value not in (None, False, 0, "none"):
                said = "set" if isinstance(value, Mapping) else repr(value)
                raise ValueError(f"{self.name}.{key} is {said}, which miniclip has no part for")

    def ignore(self, *keys: str) -> None:
        """These settings do not change a model that is not being trained."""
        self._left -= set(keys)

    def done(self) -> None:
        """Raise `ValueError` where a setting was not looked at."""
        if self._left:
            names = ", ".join(f"{self.name}.{key}" for key in sorted(self._left))
            raise ValueError(f"unknown settings, which could change the model's numbers: {names}")


def warn_of_crops(config: CLIPConfig, theirs: str, project: str) -> None:
    """Warn where another project crops half a pixel beside: no setting of its files could say it."""
    if config.resize == "shortest" and config.crop_rounding != theirs:
        warnings.warn(
            f"{project} crops pictures at {theirs} half pixels, this model at {config.crop_rounding} ones (config.crop_rounding): "
            "pictures of about one size in four it will see one pixel beside",
            UserWarning,
            stacklevel=5,
        )


def triple(value: Any, name: str) -> tuple[float, float, float]:
    """Three numbers: a mean or a deviation of the colours."""
    values = value if isinstance(value, list | tuple) else [value] * 3
    if len(values) != 3 or not all(isinstance(v, int | float) for v in values):
        raise ValueError(f"{name} is {value!r}; expected three numbers")
    return float(values[0]), float(values[1]), float(values[2])


def ratio(width: int, hidden: int) -> float:
    """The number r for which int(width * r) is hidden: the plain quotient where rounding allows."""
    return hidden / width if int(width * (hidden / width)) == hidden else (hidden + 0.5) / width


def side(rows: int, tokens: int) -> int:
    """Patches on a side, by the rows of the position embeddings.

    Raises:
        ValueError: they are no square.
    """
    found = math.isqrt(rows - tokens)
    if found**2 != rows - tokens:
        raise ValueError(f"{rows} position embeddings are no square of patches and {tokens} class token")
    return found


def layers(keys: Collection[str], template: str) -> int:
    """Blocks of a tower, by the keys: `template` has `{i}` for the block's number."""
    return next(i for i in range(len(keys) + 1) if template.replace("{i}", str(i)) not in keys)


def shape_of(shapes: Mapping[str, Shape], key: str, dims: int) -> Shape:
    """A tensor's shape.

    Raises:
        ValueError: it is not there, or has not so many dimensions.
    """
    if key not in shapes or len(shapes[key]) != dims:
        raise ValueError(f"{key}: found {shapes.get(key, 'no such key')}, expected a tensor of {dims} dimensions")
    return shapes[key]
