"""Console output: the bar, and plain lines at a limited rate."""

import io
import sys

import pytest

from miniclip.loggers.console import ConsoleLogger, step_summary

STEP = {"step": 1, "epoch": 1, "loss": 2.0, "chance_loss": 2.1, "samples_per_second": 1234.5}


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


class Run:
    """The part of a trainer that ConsoleLogger uses."""

    step, total_steps, epochs = 0, 6_000_000, 9


@pytest.fixture
def printed_lines(monkeypatch):
    """Return a function that simulates steps of a duration without a terminal, and returns the printed lines."""

    def simulate(steps, seconds):
        out = io.StringIO()
        monkeypatch.setattr(sys, "stdout", out)
        monkeypatch.setattr(sys, "stderr", io.StringIO())
        clock = Clock()
        logger, run = ConsoleLogger(clock), Run()
        logger.on_start(run)
        for run.step in range(1, steps + 1):
            clock.now += seconds
            logger.on_step(run, {**STEP, "step": run.step})
        logger.on_end(run)
        return out.getvalue().splitlines()

    return simulate


def test_rate_of_lines_decreases_with_the_time(printed_lines):
    assert len(printed_lines(60, 1.0)) == 6
    assert 300 < len(printed_lines(6048, 100.0)) < 800
    lines = printed_lines(20_000, 0.001)
    assert len(lines) == 2
    assert lines[0].startswith(
        "step 1/6,000,000  epoch 1/9  loss 2.000 (chance 2.10), 1,234 samples/s  1 h 40 min left"
    )


def test_step_summary_shows_available_metrics():
    assert step_summary({**STEP, "mfu": 0.456, "data_wait": 0.021}).endswith("samples/s, MFU 46%, data wait 2%")
    assert step_summary({"step": 1, "epoch": 1}) == ""


def test_terminal_shows_a_bar(monkeypatch, start):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setattr(sys, "stderr", Terminal())
    start(log_every=1).fit()
    shown = sys.stderr.getvalue()
    assert "epoch 2/2" in shown
    assert "10/10" in shown
    assert "samples/s" in shown
    assert "R@1" in shown


def test_broken_pipe_does_not_end_the_run(start, monkeypatch):
    class Closed(io.StringIO):
        def write(self, text):
            raise BrokenPipeError(32, "Broken pipe")

    monkeypatch.setattr(sys, "stdout", Closed())
    with pytest.warns(UserWarning, match="ConsoleLogger: BrokenPipeError"):
        assert len(start(callbacks=[ConsoleLogger()]).fit().steps) == 10
