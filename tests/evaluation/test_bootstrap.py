"""Bootstrap intervals and paired differences."""

import pytest
import torch

from miniclip.evaluation.bootstrap import Scores, intervals, means, paired_differences


def scores(hits: torch.Tensor, counts: torch.Tensor | None = None) -> Scores:
    hits = hits.double().view(len(hits), -1)
    return Scores(hits, torch.ones(len(hits), dtype=torch.float64) if counts is None else counts.double())


def test_interval_of_a_share_is_that_of_the_normal_approximation():
    hits = (torch.arange(400) % 4 == 0).double()  # 25%
    low, high = intervals(scores(hits), draws=4000)[0].tolist()
    width = 1.96 * (0.25 * 0.75 / 400) ** 0.5
    assert low == pytest.approx(0.25 - width, abs=0.005)
    assert high == pytest.approx(0.25 + width, abs=0.005)


def test_captions_of_an_image_are_drawn_together():
    hits = torch.tensor([5.0, 0.0] * 50)  # all captions of an image agree
    together = intervals(scores(hits, torch.full((100,), 5.0)))[0]
    apart = intervals(scores(torch.tensor([1.0, 0.0] * 250)))[0]
    assert means(scores(hits, torch.full((100,), 5.0))).item() == 0.5
    assert float(together[1] - together[0]) > 1.8 * float(apart[1] - apart[0])


def test_equal_models_do_not_differ():
    hits = torch.rand(50) > 0.5
    (difference,) = paired_differences(scores(hits), scores(hits))
    assert difference == (0, 0, 0, 1)


def test_pairing_finds_a_small_difference_that_intervals_hide():
    first = torch.arange(300) % 2 == 0
    second = first.clone()
    second[1:30:2] = True  # 15 more hits, none fewer
    (difference,) = paired_differences(scores(first), scores(second))
    assert difference.value == pytest.approx(0.05)
    assert difference.low > 0
    assert difference.p == pytest.approx(0.001)
    assert intervals(scores(first))[0, 1] > intervals(scores(second))[0, 0]


def test_other_images_are_refused():
    with pytest.raises(ValueError, match="scores of 3 and 4 images"):
        paired_differences(scores(torch.ones(3)), scores(torch.ones(4)))
