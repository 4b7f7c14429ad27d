"""What cannot be read ends the run, or is named once, left out and counted."""

import warnings

import pytest

from miniclip import DataError
from miniclip.data.skipping import SHOWN, LeftOut


def fill(left_out, names):
    for name in names:
        left_out.add(name, "is empty")


def test_raise_names_the_thing_and_the_reason():
    with pytest.raises(DataError, match=r"a\.jpg: the file is empty"):
        LeftOut().add("a.jpg", "the file is empty")


def test_skip_warns_once_a_thing():
    left_out = LeftOut("skip")
    with pytest.warns(UserWarning, match=r"a\.jpg: the file is empty \(left out\)"):
        left_out.add("a.jpg", "the file is empty")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        left_out.add("a.jpg", "the file is empty")
    assert "a.jpg" in left_out
    assert left_out.reasons == {"a.jpg": "the file is empty"}


def test_thousands_are_counted_and_not_shown():
    left_out = LeftOut("skip")
    with warnings.catch_warnings(record=True, action="always") as shown:
        fill(left_out, map(str, range(100)))
    assert len(shown) == SHOWN
    assert "further ones are counted" in str(shown[-1].message)
    assert len(left_out) == 100


@pytest.mark.parametrize(("total", "fits"), [(40, True), (39, False)])
def test_a_share_may_be_gone_and_no_more(total, fits):
    left_out = LeftOut("skip", at_most=0.05)
    with pytest.warns(UserWarning, match="is empty"):
        fill(left_out, "ab")
    if fits:
        left_out.require_few(total)
    else:
        with pytest.raises(DataError, match=r"2 of 39 cannot be used, more than 5\.0%; the first: a: is empty"):
            left_out.require_few(total)


@pytest.mark.parametrize("arguments", [("ignore",), ("skip", 1.5), ("skip", -0.1)])
def test_other_words_and_shares(arguments):
    with pytest.raises(ValueError, match="expected"):
        LeftOut(*arguments)
