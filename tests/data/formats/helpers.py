"""Helpers of the readers' tests."""

import warnings

import pytest
from hypothesis import strategies as st

from miniclip.errors import DataError

TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\0"))
CAPTION = TEXT.map(str.strip).filter(bool)


def names(data) -> list[str]:
    return [path.name for path in data.paths]


def error_of(call, *arguments, **options) -> str:
    with pytest.raises(DataError) as error:
        call(*arguments, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


def skipped(call, *arguments, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return call(*arguments, on_error="skip", max_skip_fraction=options.pop("max_skip_fraction", 0.9), **options)
