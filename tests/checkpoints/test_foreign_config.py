"""Reading of another project's configuration: values, defaults, and the refusal of unread section."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from miniclip.checkpoints.foreign_config import (
    ConfigSection,
    count_layers,
    exp,
    grid_side,
    mlp_ratio,
    rgb_triple,
    shape_of,
)


def test_uses_defaults_and_refuses_unread_settings():
    section = ConfigSection({"a": 1, "b": 2, "c": 3}, "part", {"a": 0, "d": 4})
    assert (section.get("a"), section.get("d")) == (1, 4)
    with pytest.raises(ValueError, match=r"unknown settings, .*: part\.b, part\.c$"):
        section.require_all_read()
    section.ignore("b", "absent")
    section.get("c")
    section.require_all_read()


@pytest.mark.parametrize("values", [None, [], "x", 3])
def test_refuses_a_section_that_is_not_an_object(values):
    with pytest.raises(ValueError, match=f"part is a {type(values).__name__}; expected an object"):
        ConfigSection(values, "part", {})


@pytest.mark.parametrize(("value", "number"), [(3, 3), ([3, 3], 3), (1, 1)])
def test_reads_whole_numbers(value, number):
    assert ConfigSection({"n": value}, "part", {}).integer("n") == number


@pytest.mark.parametrize("value", [3.0, "3", True, None, [3, 4], [3], [True, True], {}])
def test_refuses_other_values_for_whole_numbers(value):
    with pytest.raises(ValueError, match=r"part\.n is .*; expected a whole number") as caught:
        ConfigSection({"n": value}, "part", {}).integer("n")
    assert repr(value if not isinstance(value, list) or value != [True, True] else True) in str(caught.value)


@pytest.mark.parametrize("value", [3, 0.5, 1e-6])
def test_reads_numbers(value):
    number = ConfigSection({"n": value}, "part", {}).number("n")
    assert isinstance(number, float)
    assert number == value


@pytest.mark.parametrize("value", ["3", False, None, [3]])
def test_refuses_other_values_for_numbers(value):
    with pytest.raises(ValueError, match=r"part\.n is .*; expected a number"):
        ConfigSection({"n": value}, "part", {}).number("n")


def test_reads_choices_and_refuses_others():
    section = ConfigSection({"kind": "a", "flag": None}, "part", {})
    assert section.choice("kind", {"a": 1, "b": 2}) == 1
    assert section.choice("flag", {None: "nothing"}) == "nothing"
    for value in ("c", ["a"], 1, {}):
        with pytest.raises(ValueError, match=r"part\.kind is .*, which miniclip does not support; expected.*: a, b"):
            ConfigSection({"kind": value}, "part", {}).choice("kind", {"a": 1, "b": 2})


def test_unsupported_settings_may_be_off():
    off = {"a": None, "b": False, "c": 0, "d": "none", "e": 0.0}
    section = ConfigSection(off, "part", {})
    section.require_unset(*off, "absent")
    section.require_all_read()
    for value in (True, 1, "yes", 1e-4, [0]):
        with pytest.raises(ValueError, match=r"part\.a is .*, which miniclip does not support"):
            ConfigSection({"a": value}, "part", {}).require_unset("a")
    with pytest.raises(ValueError, match=r"part\.a is .*miniclip does not support"):
        ConfigSection({"a": {"width": 3}}, "part", {}).require_unset("a")


@pytest.mark.parametrize("value", [[0.1, 0.2, 0.3], (0.1, 0.2, 0.3)])
def test_reads_three_numbers(value):
    assert rgb_triple(value, "mean") == (0.1, 0.2, 0.3)


def test_one_number_stands_for_three():
    assert rgb_triple(0.5, "mean") == (0.5, 0.5, 0.5)
    assert rgb_triple(1, "std") == (1.0, 1.0, 1.0)


@pytest.mark.parametrize("value", [[0.1], [0.1] * 4, ["a", "b", "c"], None, "abc", {}, [None] * 3])
def test_refuses_other_values_for_three_numbers(value):
    with pytest.raises(ValueError, match=r"mean is .*; expected three numbers"):
        rgb_triple(value, "mean")


@example(7, 61)  # 7 * (61 / 7) is a little less than 61
@given(st.integers(1, 5000), st.integers(1, 30000))
def test_mlp_ratio_gives_back_the_width(width, hidden):
    assert int(width * mlp_ratio(width, hidden)) == hidden


def test_mlp_ratio_is_the_plain_quotient_if_possible():
    assert mlp_ratio(768, 3072) == 4.0
    assert mlp_ratio(1152, 4304) == 4304 / 1152


@given(st.integers(1, 60), st.integers(0, 1))
def test_grid_side_of_squares(length, tokens):
    assert grid_side(length**2 + tokens, tokens) == length
    with pytest.raises(ValueError, match="are not a square of patches"):
        grid_side(length**2 + tokens + 1, tokens)


def test_counts_layers():
    keys = {f"blocks.{i}.norm.weight" for i in (0, 1, 2, 4)} | {"other"}
    assert count_layers(keys, "blocks.{i}.norm.weight") == 3
    assert count_layers(keys, "layers.{i}.norm.weight") == 0
    assert count_layers({"b.0", "b.1"}, "b.{i}") == 2


def test_shape_of_checks_the_dimensions():
    assert shape_of({"a": (2, 3)}, "a", 2) == (2, 3)
    with pytest.raises(ValueError, match=r"a: found \(2, 3\), expected a tensor of 1 dimensions"):
        shape_of({"a": (2, 3)}, "a", 1)
    with pytest.raises(ValueError, match="b: found no such key, expected a tensor of 2"):
        shape_of({"a": (2, 3)}, "b", 2)


def test_exp_refuses_results_that_overflow():
    assert exp(0.0, "scale") == 1.0
    with pytest.raises(ValueError, match=r"scale is 1000\.0, a logarithm; expected at most 709"):
        exp(1000.0, "scale")
