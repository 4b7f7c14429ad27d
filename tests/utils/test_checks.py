"""Checks of dataclass fields against their annotations."""

import dataclasses
from typing import Literal

import pytest

from miniclip.utils.checks import check_types, types_and_literals


@dataclasses.dataclass
class Settings:
    size: int | Literal["auto", "none"] | None = None
    kind: Literal["a", "b"] = "a"

    def __post_init__(self) -> None:
        check_types(self)


@pytest.mark.parametrize("size", [3, "auto", "none", None])
def test_type_or_literal_accepts_both(size):
    assert Settings(size).size == size


@pytest.mark.parametrize("size", ["a", "Auto", 2.5, True, ["auto"]])
def test_other_values_are_refused(size):
    with pytest.raises(TypeError, match=r"size is .*; expected int or unset or 'auto' or 'none'"):
        Settings(size)
    with pytest.raises(ValueError, match="kind is 'auto'; expected one of a, b"):
        Settings(kind="auto")


def test_kinds_and_words():
    assert types_and_literals(int) == ((int,), ())
    assert types_and_literals(float | None) == ((float, type(None)), ())
    assert types_and_literals(Literal["a", "b"]) == ((), ("a", "b"))
    assert types_and_literals(int | Literal["auto"] | None) == ((int, type(None)), ("auto",))
