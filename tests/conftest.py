"""The order of the tests, their collection, and the fixtures of `fixtures.py`.

The process of pytest-xdist that only starts the others and collects their results imports no torch.
"""

import gc
import signal

import pytest


def pytest_configure(config: pytest.Config) -> None:
    """Let pytest-xdist keep the order of the files; by default it starts those with few tests last, even slow ones.

    Ctrl-C must reach the processes that tests start: a shell that runs the tests in the background ignores it for all.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if hasattr(config.option, "loadscopereorder"):
        config.option.loadscopereorder = False
    starts_others = config.getoption("numprocesses", None) and not config.option.collectonly
    if hasattr(config, "workerinput") or not starts_others:
        config.pluginmanager.import_plugin("tests.fixtures")  # takes seconds, for which the processes would wait


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip the tests for a GPU without one, and begin with the files that have slow tests.

    Then two processes end at about the same time.
    """
    import torch

    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs a CUDA GPU"))
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.hookimpl(wrapper=True)
def pytest_collection():
    """Collect the tests without garbage collection, a fifth of the time: nearly all that is made then stays."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()


def pytest_collection_finish() -> None:
    """Exempt all objects of the imported modules from garbage collection, which would visit them again and again."""
    gc.collect()
    gc.freeze()
