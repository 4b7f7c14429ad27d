"""Durations and sizes as text."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from miniclip.utils.formatting import format_bytes, format_duration


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.0123, "0.012 s"), (9, "9 s"), (59.6, "1 min"), (75, "1 min 15 s"), (7500, "2 h 5 min"), (90_000, "1 d 1 h")],
)
def test_format_duration(seconds, text):
    assert format_duration(seconds) == text


@given(st.floats(0, 1e9))
def test_every_duration_has_a_unit(seconds):
    assert format_duration(seconds)[-1] in "sndh"


@pytest.mark.parametrize(("count", "text"), [(512, "0 KiB"), (3 << 19, "1.5 MiB"), (3 << 29, "1.5 GiB")])
def test_format_bytes(count, text):
    assert format_bytes(count) == text
