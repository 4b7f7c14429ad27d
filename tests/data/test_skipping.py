"""What cannot be read ends the run, or is named once, left out and counted."""

import warnings

import pytest

from miniclip import DataError
from miniclip.data.skipping import SHOWN, SkipLog


def fill(skip_log, names):
    for name in names:
        skip_log.add(name, "is empty")


def test_raise_names_the_thing_and_the_reason():
    with pytest.raises(DataError, match=r"a\.jpg: the file is empty"):
        SkipLog().add("a.jpg", "the file is empty")


def test_skip_warns_once_a_thing():
    skip_log = SkipLog("skip")
    with pytest.warns(UserWarning, match=r"a\.jpg: the file is empty \(left out\)"):
        skip_log.add("a.jpg", "the file is empty")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        skip_log.add("a.jpg", "the file is empty")
    assert "a.jpg" in skip_log
    assert skip_log.reasons == {"a.jpg": "the file is empty"}


def test_thousands_are_counted_and_not_shown():
    skip_log = SkipLog("skip")
    with warnings.catch_warnings(record=True, action="always") as shown:
        fill(skip_log, map(str, range(100)))
    assert len(shown) == SHOWN
    assert "further ones are counted" in str(shown[-1].message)
    assert len(skip_log) == 100


@pytest.mark.parametrize(("total", "fits"), [(40, True), (39, False)])
def test_a_share_may_be_gone_and_no_more(total, fits):
    skip_log = SkipLog("skip", max_skip_fraction=0.05)
    with pytest.warns(UserWarning, match="is empty"):
        fill(skip_log, "ab")
    if fits:
        skip_log.require_few(total)
    else:
        with pytest.raises(DataError, match=r"2 of 39 cannot be used, more than 5\.0%; the first: a: is empty"):
            skip_log.require_few(total)


@pytest.mark.parametrize("arguments", [("ignore",), ("skip", 1.5), ("skip", -0.1)])
def test_other_words_and_shares(arguments):
    with pytest.raises(ValueError, match="expected"):
        SkipLog(*arguments)
