"""Threads end with whoever asked for them."""

import threading

import pytest

from miniclip.utils.threads import threads


def test_what_was_asked_for_is_done():
    with threads(3) as pool:
        assert list(pool.map(lambda x: x * x, range(50))) == [x * x for x in range(50)]


def test_after_an_interruption_what_has_not_begun_is_dropped():
    begun, go = [], threading.Event()

    def work(number):
        begun.append(number)
        go.wait(timeout=30)

    def interrupted():
        with threads(2) as pool:
            for number in range(1000):
                pool.submit(work, number)
            threading.Timer(0.05, go.set).start()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert len(begun) < 10
