"""What holds the fields of dataclasses to their annotations."""

import dataclasses
from typing import Literal

import pytest

from miniclip.utils.checks import check_types, kinds_and_words


@dataclasses.dataclass
class Settings:
    size: int | Literal["auto", "none"] | None = None
    kind: Literal["a", "b"] = "a"

    def __post_init__(self) -> None:
        check_types(self)


@pytest.mark.parametrize("size", [3, "auto", "none", None])
def test_a_type_joined_with_words_takes_both(size):
    assert Settings(size).size == size


@pytest.mark.parametrize("size", ["a", "Auto", 2.5, True, ["auto"]])
def test_and_nothing_else(size):
    with pytest.raises(TypeError, match=r"size is .*; expected int or unset or 'auto' or 'none'"):
        Settings(size)
    with pytest.raises(ValueError, match="kind is 'auto'; expected one of a, b"):
        Settings(kind="auto")


def test_kinds_and_words():
    assert kinds_and_words(int) == ((int,), ())
    assert kinds_and_words(float | None) == ((float, type(None)), ())
    assert kinds_and_words(Literal["a", "b"]) == ((), ("a", "b"))
    assert kinds_and_words(int | Literal["auto"] | None) == ((int, type(None)), ("auto",))
