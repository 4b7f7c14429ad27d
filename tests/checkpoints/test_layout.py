"""How another project's settings are read: each is taken once, and what nobody took is refused."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from miniclip.checkpoints.layout import Settings, layers, ratio, shape_of, side, triple


def test_what_is_not_said_is_the_default_and_what_is_not_taken_is_refused():
    settings = Settings({"a": 1, "b": 2, "c": 3}, "part", {"a": 0, "d": 4})
    assert (settings.take("a"), settings.take("d")) == (1, 4)
    with pytest.raises(ValueError, match=r"unknown settings, .*: part\.b, part\.c$"):
        settings.done()
    settings.ignore("b", "absent")
    settings.take("c")
    settings.done()


@pytest.mark.parametrize("values", [None, [], "x", 3])
def test_a_section_that_is_none(values):
    with pytest.raises(ValueError, match=f"part is a {type(values).__name__}; expected an object"):
        Settings(values, "part", {})


@pytest.mark.parametrize(("value", "number"), [(3, 3), ([3, 3], 3), (1, 1)])
def test_whole_numbers(value, number):
    assert Settings({"n": value}, "part", {}).number("n") == number


@pytest.mark.parametrize("value", [3.0, "3", True, None, [3, 4], [3], [True, True], {}])
def test_what_is_no_whole_number(value):
    with pytest.raises(ValueError, match=r"part\.n is .*; expected a whole number") as caught:
        Settings({"n": value}, "part", {}).number("n")
    assert repr(value if not isinstance(value, list) or value != [True, True] else True) in str(caught.value)


@pytest.mark.parametrize("value", [3, 0.5, 1e-6])
def test_numbers(value):
    found = Settings({"n": value}, "part", {}).real("n")
    assert isinstance(found, float)
    assert found == value


@pytest.mark.parametrize("value", ["3", False, None, [3]])
def test_what_is_no_number(value):
    with pytest.raises(ValueError, match=r"part\.n is .*; expected a number"):
        Settings({"n": value}, "part", {}).real("n")


def test_choices():
    settings = Settings({"kind": "a", "flag": None}, "part", {})
    assert settings.choose("kind", {"a": 1, "b": 2}) == 1
    assert settings.choose("flag", {None: "nothing"}) == "nothing"
    for value in ("c", ["a"], 1, {}):
        with pytest.raises(ValueError, match=r"part\.kind is .*, which miniclip has no part for; known: a, b"):
            Settings({"kind": value}, "part", {}).choose("kind", {"a": 1, "b": 2})


def test_what_there_is_no_part_for_may_be_off():
    off = {"a": None, "b": False, "c": 0, "d": "none", "e": 0.0}
    settings = Settings(off, "part", {})
    settings.refuse(*off, "absent")
    settings.done()
    for value in (True, 1, "yes", 1e-4, [0]):
        with pytest.raises(ValueError, match=r"part\.a is .*, which miniclip has no part for"):
            Settings({"a": value}, "part", {}).refuse("a")
    with pytest.raises(ValueError, match=r"part\.a is .*miniclip has no part for"):
        Settings({"a": {"width": 3}}, "part", {}).refuse("a")


@pytest.mark.parametrize("value", [[0.1, 0.2, 0.3], (0.1, 0.2, 0.3)])
def test_three_numbers(value):
    assert triple(value, "mean") == (0.1, 0.2, 0.3)


def test_one_number_for_three():
    assert triple(0.5, "mean") == (0.5, 0.5, 0.5)
    assert triple(1, "std") == (1.0, 1.0, 1.0)


@pytest.mark.parametrize("value", [[0.1], [0.1] * 4, ["a", "b", "c"], None, "abc", {}, [None] * 3])
def test_what_is_no_three_numbers(value):
    with pytest.raises(ValueError, match=r"mean is .*; expected three numbers"):
        triple(value, "mean")


@example(7, 61)  # 7 * (61 / 7) is a little less than 61
@given(st.integers(1, 5000), st.integers(1, 30000))
def test_a_ratio_gives_the_width_that_it_came_from(width, hidden):
    assert int(width * ratio(width, hidden)) == hidden


def test_ratios_stay_plain_where_they_can():
    assert ratio(768, 3072) == 4.0
    assert ratio(1152, 4304) == 4304 / 1152


@given(st.integers(1, 60), st.integers(0, 1))
def test_sides_of_squares(length, tokens):
    assert side(length**2 + tokens, tokens) == length
    with pytest.raises(ValueError, match="are no square of patches"):
        side(length**2 + tokens + 1, tokens)


def test_blocks_are_counted():
    keys = {f"blocks.{i}.norm.weight" for i in (0, 1, 2, 4)} | {"other"}
    assert layers(keys, "blocks.{i}.norm.weight") == 3
    assert layers(keys, "layers.{i}.norm.weight") == 0
    assert layers({"b.0", "b.1"}, "b.{i}") == 2


def test_a_tensor_of_so_many_dimensions():
    assert shape_of({"a": (2, 3)}, "a", 2) == (2, 3)
    with pytest.raises(ValueError, match=r"a: found \(2, 3\), expected a tensor of 1 dimensions"):
        shape_of({"a": (2, 3)}, "a", 1)
    with pytest.raises(ValueError, match="b: found no such key, expected a tensor of 2"):
        shape_of({"a": (2, 3)}, "b", 2)
