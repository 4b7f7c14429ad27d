"""Skip log: raise, or warn once, leave out and count."""

import pickle
import warnings

import pytest

from miniclip import DataError
from miniclip.data.skipping import MAX_WARNINGS, SkipLog, reason_of
from miniclip.errors import UnreadableError


def fill(skip_log, names):
    for name in names:
        skip_log.add(name, "is empty")


def test_raise_has_name_and_reason():
    with pytest.raises(DataError, match=r"a\.jpg: the file is empty") as caught:
        SkipLog().add("a.jpg", "the file is empty")
    error = pickle.loads(pickle.dumps(caught.value))  # worker processes send it
    assert isinstance(error, UnreadableError)
    assert (error.name, error.reason, str(error)) == ("a.jpg", "the file is empty", "a.jpg: the file is empty")


def test_reason_of_is_one_line_without_the_name():
    assert reason_of(UnreadableError("a.jpg", "the file\nis empty")) == "the file is empty"
    assert reason_of(OSError("no such\nfile")) == "no such file"


def test_skip_warns_once_for_each_name():
    skip_log = SkipLog("skip")
    with pytest.warns(UserWarning, match=r"a\.jpg: the file is empty \(skipped\)"):
        skip_log.add("a.jpg", "the file is empty")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        skip_log.add("a.jpg", "the file is empty")
    assert "a.jpg" in skip_log
    assert skip_log.reasons == {"a.jpg": "the file is empty"}


def test_many_warnings_are_suppressed_but_counted():
    skip_log = SkipLog("skip")
    with warnings.catch_warnings(record=True, action="always") as shown:
        fill(skip_log, map(str, range(100)))
    assert len(shown) == MAX_WARNINGS
    assert "further warnings are suppressed" in str(shown[-1].message)
    assert len(skip_log) == 100


@pytest.mark.parametrize(("total", "fits"), [(40, True), (39, False)])
def test_check_fraction(total, fits):
    skip_log = SkipLog("skip", max_skip_fraction=0.05)
    with pytest.warns(UserWarning, match="is empty"):
        fill(skip_log, "ab")
    if fits:
        skip_log.check_fraction(total)
    else:
        with pytest.raises(DataError, match=r"2 of 39 cannot be used, more than 5\.0%; the first: a: is empty"):
            skip_log.check_fraction(total)


@pytest.mark.parametrize("arguments", [("ignore",), ("skip", 1.5), ("skip", -0.1)])
def test_invalid_arguments_raise(arguments):
    with pytest.raises(ValueError, match="expected"):
        SkipLog(*arguments)


def test_branch_is_counted_separately_and_merged():
    skip_log = SkipLog("skip", max_skip_fraction=0.5)
    branch = skip_log.branch()
    with pytest.warns(UserWarning, match="is empty"):
        fill(branch, "a")
    branch.check_fraction(2)
    assert not skip_log.reasons
    skip_log.merge(branch)
    assert list(skip_log.reasons) == ["a"]
