"""Predicted peak memory: exact for sizes that were not traced."""

from miniclip.runtime.allocation import AllocationTrace, peak_bytes, trace_two_sizes
from miniclip.runtime.memory import synthetic_step


def test_the_predicted_peak_is_exact(model):
    trial = synthetic_step(model)
    small, large = trace_two_sizes(list(model.parameters()), trial)
    with AllocationTrace(model.parameters()) as trace:
        trial(50)
    assert trace._bytes == 0, "the trial left a tensor"
    assert peak_bytes(small, large, 50) == max(trace.alive_bytes)


def test_peak_of_two_short_traces():
    assert peak_bytes([10, 30], [10, 50], 6) == 70
    assert peak_bytes([10, 20], [10, 20, 40], 8) == 80  # different operations: all memory grows with the batch
