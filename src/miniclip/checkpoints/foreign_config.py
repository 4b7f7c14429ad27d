"""Reading another project's configuration without overlooking a setting, and small helpers of the formats."""

from __future__ import annotations

import math
import warnings
from collections.abc import Collection, Mapping
from typing import Any

from miniclip.checkpoints.operations import Shape
from miniclip.config import CLIPConfig
from miniclip.utils.checks import is_finite
from miniclip.utils.formatting import one_line, short

MAX_INTEGER, MAX_NUMBER = (1 << 31) - 1, 1e30  # larger settings are damage; their products overflow

OPENAI_VOCABULARY = 49408  # tokens of OpenAI's tokenizer; the last one ends a text


class ConfigSection:
    """A section of another project's configuration, of which every setting has to be read.

    An unread setting could change the numbers, so `require_all_read` refuses it.

    Args:
        values: the section.
        name: of the section, for messages.
        defaults: the other project's defaults for settings that the section does not have.
    """

    def __init__(self, values: Mapping[str, Any], name: str, defaults: Mapping[str, Any]) -> None:
        if not isinstance(values, Mapping):
            raise ValueError(f"{name} is a {type(values).__name__}; expected an object")  # noqa: TRY004 (of a file)
        self.values, self.name = {**defaults, **values}, name
        self._unread = set(values)

    def get(self, key: str) -> Any:
        """Return a setting of any type."""
        self._unread.discard(key)
        return self.values[key]

    def integer(self, key: str, minimum: int = 0) -> int:
        """Return a whole number; a list of two equal sides counts as one."""
        value = self.get(key)
        if isinstance(value, list) and len(value) == 2 and value[0] == value[1]:
            value = value[0]
        if isinstance(value, bool) or not isinstance(value, int):
            raise ValueError(f"{self.name}.{key} is {short(value)}; expected a whole number (images are square)")  # noqa: TRY004
        if not minimum <= value <= MAX_INTEGER:
            raise ValueError(f"{self.name}.{key} is {short(value)}; expected {minimum} to {MAX_INTEGER}")
        return value

    def number(self, key: str, most: float = MAX_NUMBER) -> float:
        """Return a finite number, from -most to most."""
        value = self.get(key)
        if not _is_number(value):
            raise ValueError(f"{self.name}.{key} is {short(value)}; expected a number")
        if abs(value) > most:
            raise ValueError(f"{self.name}.{key} is {value}; expected at most {most:g}")
        return float(value)

    def flag(self, key: str) -> bool:
        """Return whether a setting is on; null is off, and a string such as "false" is refused."""
        value = self.get(key)
        if value not in (True, False, None):
            raise ValueError(f"{self.name}.{key} is {short(value)}; expected true or false")
        return bool(value)

    def choice(self, key: str, choices: Mapping[Any, str]) -> Any:
        """Return miniclip's name for a setting's value.

        Raises:
            ValueError: the value is not one of the choices.
        """
        value = self.get(key)
        if not isinstance(value, str | bool | None) or value not in choices:
            known = ", ".join(map(str, choices))
            raise ValueError(
                f"{self.name}.{key} is {short(value)}, which miniclip does not support; expected one of: {known}"
            )
        return choices[value]

    def require_unset(self, *keys: str) -> None:
        """Raise `ValueError` if one of these settings, which miniclip does not support, is set."""
        for key in keys:
            value = self.get(key) if key in self.values else None
            if value not in (None, False, 0, "none"):
                shown = "set" if isinstance(value, Mapping) else short(value)
                raise ValueError(f"{self.name}.{key} is {shown}, which miniclip does not support")

    def ignore(self, *keys: str) -> None:
        """Mark settings as read that do not change the outputs of a trained model."""
        self._unread -= set(keys)

    def require_all_read(self) -> None:
        """Raise `ValueError` if a setting was not read."""
        if self._unread:
            names = one_line(", ".join(f"{self.name}.{key}" for key in sorted(self._unread)))
            raise ValueError(f"unknown settings, which could change the model's numbers: {names}")


def warn_if_cropped_differently(config: CLIPConfig, crop_rounding: str, project: str) -> None:
    """Warn that another project rounds the crop's corner differently, which its files cannot express."""
    if config.resize == "shortest" and config.crop_rounding != crop_rounding:
        warnings.warn(
            f"{project} crops images at {crop_rounding} half pixels, this model at {config.crop_rounding} ones "
            "(config.crop_rounding): about one image size in four is cropped one pixel away",
            UserWarning,
            stacklevel=5,
        )


def exp(value: float, name: str) -> float:
    """Return the exponential of a setting.

    Raises:
        ValueError: the result is too large for a float.
    """
    try:
        return math.exp(value)
    except OverflowError:
        raise ValueError(f"{name} is {value}, a logarithm; expected at most 709") from None


def rgb_triple(value: Any, name: str) -> tuple[float, float, float]:
    """Return three numbers, a mean or a standard deviation by color channel; one number stands for all three."""
    values = value if isinstance(value, list | tuple) else [value] * 3
    if len(values) != 3 or not all(map(_is_number, values)):
        raise ValueError(f"{name} is {short(value)}; expected three numbers")
    return float(values[0]), float(values[1]), float(values[2])


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and is_finite(value)


def mlp_ratio(width: int, mlp_width: int) -> float:
    """Return r with int(width * r) == mlp_width: the plain quotient if rounding allows it."""
    quotient = mlp_width / width
    return quotient if int(width * quotient) == mlp_width else (mlp_width + 0.5) / width


def grid_side(positions: int, class_tokens: int) -> int:
    """Return the patches on a side, from the number of position embeddings.

    Raises:
        ValueError: the patches are not a square.
    """
    side = math.isqrt(max(0, positions - class_tokens))
    if side**2 != positions - class_tokens:
        raise ValueError(f"{positions} position embeddings are not a square of patches and {class_tokens} class token")
    return side


def count_layers(keys: Collection[str], template: str) -> int:
    """Return the number of blocks of a tower, by a key with `{i}` for the block's number."""
    return next(i for i in range(len(keys) + 1) if template.replace("{i}", str(i)) not in keys)


def shape_of(shapes: Mapping[str, Shape], key: str, dims: int) -> Shape:
    """Return a tensor's shape.

    Raises:
        ValueError: the tensor is missing, or it has another number of dimensions.
    """
    if key not in shapes or len(shapes[key]) != dims:
        raise ValueError(f"{key}: found {shapes.get(key, 'no such key')}, expected a tensor of {dims} dimensions")
    return shapes[key]


def end_of_argmax(vocab_size: int) -> int | None:
    """Return the end token of a text tower that pools at the highest id of each row, as OpenAI's code does.

    A larger or smaller vocabulary may be padded or have added tokens. Then only the rows show the position: None.
    """
    return OPENAI_VOCABULARY - 1 if vocab_size == OPENAI_VOCABULARY else None
