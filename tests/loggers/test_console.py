"""What a person sees: the bar's text, plain lines at a pace, durations."""

import io
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from miniclip.loggers.console import Progress, in_brief, in_time

STEP = {"step": 1, "epoch": 1, "loss": 2.0, "log_n": 2.1, "samples_per_second": 1234.5}


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


class Run:
    """What Progress asks of a trainer."""

    step, total_steps, epochs = 0, 6_000_000, 9


@pytest.fixture
def said(monkeypatch):
    """Runs through steps of so many seconds each, without a terminal; the lines."""

    def go(steps, seconds):
        out = io.StringIO()
        monkeypatch.setattr(sys, "stdout", out)
        monkeypatch.setattr(sys, "stderr", io.StringIO())
        clock = Clock()
        progress, run = Progress(clock), Run()
        progress.on_start(run)
        for run.step in range(1, steps + 1):
            clock.now += seconds
            progress.on_step(run, {**STEP, "step": run.step})
        progress.on_end(run)
        return out.getvalue().splitlines()

    return go


def test_a_minute_says_some_lines_and_a_week_some_hundred(said):
    assert len(said(60, 1.0)) == 6
    assert 300 < len(said(6048, 100.0)) < 800
    lines = said(20_000, 0.001)
    assert len(lines) == 2
    assert lines[0].startswith("step 1/6,000,000  epoch 1/9  loss 2.000 (log N 2.10), 1,234 pairs/s  1 h 40 min left")


def test_what_a_record_has_is_shown():
    assert in_brief({**STEP, "mfu": 0.456, "data_wait": 0.021}).endswith("pairs/s, 46% of peak, waiting 2%")
    assert in_brief({"step": 1, "epoch": 1}) == ""


def test_a_terminal_has_a_bar(monkeypatch, start):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setattr(sys, "stderr", Terminal())
    start(log_every=1).fit()
    shown = sys.stderr.getvalue()
    assert "epoch 2/2" in shown
    assert "10/10" in shown
    assert "pairs/s" in shown
    assert "R@1" in shown


def test_a_pipe_that_nobody_reads_ends_no_run(start, monkeypatch):
    class Closed(io.StringIO):
        def write(self, text):
            raise BrokenPipeError(32, "Broken pipe")

    monkeypatch.setattr(sys, "stdout", Closed())
    with pytest.warns(UserWarning, match="Progress: BrokenPipeError"):
        assert len(start(callbacks=[Progress()]).fit().steps) == 10


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.0123, "0.012 s"), (9, "9 s"), (59.6, "1 min"), (75, "1 min 15 s"), (7500, "2 h 5 min"), (90_000, "1 d 1 h")],
)
def test_durations(seconds, words):
    assert in_time(seconds) == words


@given(st.floats(0, 1e9))
def test_every_duration_has_words(seconds):
    assert in_time(seconds)[-1] in "sndh"
