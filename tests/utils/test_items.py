"""Collections of a user's items as lists."""

import numpy as np
import pytest
import torch

from miniclip.utils.items import describe, listed, strings


def test_descriptions():
    assert describe(3) == "an int"
    assert describe(None) == "a NoneType"
    assert describe(np.zeros((2, 3))) == "an array (2, 3) of float64"
    assert describe(torch.zeros(2)) == "a Tensor (2,) of float32"
    assert describe(torch.nn.Linear(1, 1)) == "a Linear"


def test_lists_are_not_copied_and_others_are_read_once():
    items = [3, "a", None]
    assert listed(items, "items", "items") is items
    for form in (tuple(items), iter(items), dict(enumerate(items)).values(), np.array(items, dtype=object)):
        assert listed(form, "items", "items") == items
    assert strings(np.array("a"), "texts") == strings("a", "texts") == strings(["a"], "texts") == ["a"]


@pytest.mark.parametrize(
    "items",
    [{"a": 1}, {1, 2}, 3, None, np.zeros((2, 2)), np.array(3), torch.zeros(2, 2)],
    ids=["dict", "set", "number", "None", "two dimensions", "no dimension", "tensor"],
)
def test_other_collections_are_refused(items):
    with pytest.raises(TypeError, match=r"items: found an? .*; expected numbers"):
        listed(items, "items", "numbers")
