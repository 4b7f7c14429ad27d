"""Expected calibration error."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from miniclip.evaluation.calibration import calibration_error, reliability


def plain_error(confidence: list[float], correct: list[bool], bins: int) -> float:
    total = 0.0
    for number in range(bins):
        low, high = number / bins, (number + 1) / bins
        rows = [i for i, c in enumerate(confidence) if low < c <= high or (c == 0 and number == 0)]
        if rows:
            accuracy, mean = sum(correct[i] for i in rows) / len(rows), sum(confidence[i] for i in rows) / len(rows)
            total += abs(accuracy - mean) * len(rows)
    return 100 * total / len(confidence)


@given(st.lists(st.tuples(st.integers(0, 1000), st.booleans()), min_size=1, max_size=60))
def test_matches_plain_loops(rows):
    confidence = [c / 1000 + 1e-7 * (0 < c < 1000) for c, _ in rows]  # off the bins' edges
    correct = [hit for _, hit in rows]
    value = calibration_error(torch.tensor(confidence, dtype=torch.float64), torch.tensor(correct))
    assert value == pytest.approx(plain_error(confidence, correct, 15), abs=1e-6)


def test_bins_of_equal_mass_have_equal_numbers_of_images():
    bins = reliability(torch.rand(150) ** 4, torch.rand(150) > 0.5, equal_mass=True)
    assert bins.images.tolist() == [10] * 15
    assert bins.confidence.diff().min() >= 0


def test_a_calibrated_and_an_overconfident_classifier():
    confidence = torch.full((100,), 0.8)
    assert calibration_error(confidence, torch.arange(100) < 80) == pytest.approx(0, abs=1e-4)
    assert calibration_error(confidence, torch.arange(100) < 50) == pytest.approx(30, abs=1e-4)


@pytest.mark.parametrize("values", [[], [1.5], [float("nan")]], ids=["none", "above 1", "NaN"])
def test_other_values_than_probabilities_are_refused(values):
    with pytest.raises(ValueError, match="confidence"):
        calibration_error(torch.tensor(values), torch.ones(len(values), dtype=torch.bool))
