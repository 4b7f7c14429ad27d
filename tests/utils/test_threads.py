"""The thread pool drops pending work."""

import threading

import pytest

from miniclip.utils.threads import thread_pool


def test_work_is_done():
    with thread_pool(3) as pool:
        assert list(pool.map(lambda x: x * x, range(50))) == [x * x for x in range(50)]


def test_interruption_drops_pending_work():
    begun, go = [], threading.Event()

    def work(number):
        begun.append(number)
        go.wait(timeout=30)

    def interrupted():
        with thread_pool(2) as pool:
            for number in range(1000):
                pool.submit(work, number)
            threading.Timer(0.05, go.set).start()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert len(begun) < 10
