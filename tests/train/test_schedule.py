"""The learning rate over the steps."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from miniclip.train.schedule import learning_rate


def test_docstring_example():
    rates = [learning_rate(step, peak=1.0, warmup=2, total=6) for step in range(6)]
    assert rates == pytest.approx([0.5, 1, 1, 0.8536, 0.5, 0.1464], abs=1e-4)


@given(st.integers(1, 500), st.floats(0, 0.99))
def test_rate_is_positive_and_at_most_the_peak(total, share):
    warmup = round(share * total)
    rates = [learning_rate(step, peak=2.0, warmup=warmup, total=total) for step in range(total)]
    assert all(0 < rate <= 2.0 for rate in rates)
    assert rates[:warmup] == sorted(rates[:warmup])
    assert rates[warmup:] == sorted(rates[warmup:], reverse=True)
