"""The rules on made-up records: each at its threshold, and silent on healthy ones. `test_doctor.py` provokes them."""

import math

import pytest

from miniclip.diagnostics import rules as ailments
from miniclip.diagnostics.rules import ALL, STEPS, WINDOW, Facts, Seen

FACTS = Facts(steps=1000, warmup=50, max_logit_scale=100.0, captions=1000)
HEALTHY = {
    "loss": 2.0,
    "log_n": math.log(128),
    "loss_nothing": math.log(128),
    "loss_least": 0.05,
    "logit_scale": 20.0,
    "grad_norm_image": 0.5,
    "grad_norm_text": 2.0,
    "alignment": 0.6,
    "uniformity_image": -2.5,
    "uniformity_text": -2.7,
    "effective_rank_image": 20.0,
    "effective_rank_text": 18.0,
    "pairs": 128,
    "captions": 127,
    "pictures": 128,
    "data_wait": 0.02,
}


def seen_of(count=WINDOW + 1, start=60, apart=10, first=None, facts=FACTS, **changes):
    """A run of a healthy first look and then so many looks, so many steps apart, with these changes."""
    seen = Seen(facts)
    seen.add({**HEALTHY, "step": 1, "logit_scale": 14.3, **(first or {})})
    for i in range(count):
        seen.add({**HEALTHY, "step": start + apart * i, **changes})
    return seen


def evaluated(*figures, loss=1.0):
    """A run with these validation losses and recalls, the training loss given."""
    seen = seen_of(loss=loss)
    for epoch, (val_loss, recall) in enumerate(figures, 1):
        recalls = {"text_to_image": {"R@1": recall - 1}, "image_to_text": {"R@1": recall + 1}}
        seen.add({"step": 100 * epoch, "epoch": epoch, "val_loss": val_loss, "val_log_n": math.log(128), **recalls})
    return seen


def names(seen):
    return {ailment.name for rule, ailment in ALL.items() if rule(seen) is not None}


def test_a_healthy_run_has_nothing():
    assert names(seen_of()) == set()
    assert names(evaluated((3.0, 10.0), (2.0, 20.0), (1.9, 25.0), (1.92, 25.0))) == set()
    assert names(Seen(FACTS)) == set()


@pytest.mark.parametrize(
    ("name", "changes", "spared"),
    [
        ("loss stuck at log N", {"loss": 4.84}, {"loss": 4.7}),
        ("loss stuck at log N", {"loss": 7.0}, {}),
        ("loss stuck at log N", {"loss": 4.0, "loss_nothing": 4.01, "captions": 128}, {}),
        ("collapse", {"uniformity_image": -0.001}, {"uniformity_image": -0.2}),
        ("collapse", {"effective_rank_text": 1.01}, {"effective_rank_text": 2.0}),
        ("scale at its greatest", {"logit_scale": 100.0}, {"logit_scale": 90.0}),
        ("scale fell to 1", {"logit_scale": 1.0}, {"logit_scale": 4.0}),
        ("same caption twice in a batch", {"captions": 100}, {"captions": 123}),
        ("same picture twice in a batch", {"pictures": 100}, {"pictures": 123}),
        ("a tower without gradient", {"grad_norm_image": 1e-5}, {"grad_norm_image": 0.01}),
        ("a tower without gradient", {"grad_norm_text": 0.0}, {}),
        ("waiting for data", {"data_wait": 0.6}, {"data_wait": 0.2}),
    ],
)
def test_looks(name, changes, spared):
    assert names(seen_of(**changes)) == {name}
    assert names(seen_of(**spared)) == set()
    assert name not in names(seen_of(WINDOW - 2, **changes)), "too few looks"
    assert name not in names(seen_of(WINDOW, apart=2, **changes)), "too few steps"


@pytest.mark.parametrize(
    "changes", [{"loss": 4.85}, {"uniformity_text": 0.0}, {"logit_scale": 1.0}, {"grad_norm_text": 0.0}]
)
def test_nothing_is_said_of_the_warm_up(changes):
    assert names(seen_of(facts=Facts(1000, 100, 100.0), **changes)) == set()
    assert names(seen_of(start=110, facts=Facts(1000, 100, 100.0), **changes)) != set()


def test_a_scale_that_comes_to_its_greatest_late_with_much_learned_is_usual():
    late = {"start": 700, "logit_scale": 100.0}
    assert names(seen_of(**late, loss=0.5)) == set()
    assert names(seen_of(**late, loss=4.0)) == {"scale at its greatest"}
    assert names(seen_of(logit_scale=100.0, first={"logit_scale": 100.0})) == set(), "OpenAI's models start there"


def test_a_frozen_tower_may_be_without_gradient():
    facts = Facts(1000, 50, 100.0, trained=("text",))
    assert names(seen_of(facts=facts, grad_norm_image=0.0)) == set()


def test_figures_that_are_missing_or_not_finite_are_no_ailment_but_of_the_loss():
    assert names(seen_of(uniformity_image=math.nan, effective_rank_image=None)) == set()
    assert names(seen_of(loss=math.nan)) == {"loss not finite"}
    assert names(seen_of(loss=None)) == {"loss not finite"}
    seen = Seen(FACTS)
    for step in range(1, 100):  # steps that are no looks
        seen.add({"step": step, "loss": 4.85, "log_n": 4.85})
    assert names(seen) == set()


def test_the_window_forgets():
    seen = seen_of(loss=4.85)
    assert names(seen) == {"loss stuck at log N"}
    for step in range(1000, 1400):
        seen.add({**HEALTHY, "step": step})
    assert names(seen) == set()
    assert len(seen.looks) == STEPS + 1
    assert len(seen.steps) <= STEPS + 1
    for step in range(2000, 9000, 100):
        seen.add({**HEALTHY, "step": step})
    assert len(seen.looks) == WINDOW


def test_a_validation_loss_that_rises():
    with_recall = evaluated((2.0, 20.0), (1.0, 30.0), (1.2, 32.0), (1.5, 34.0))
    assert names(with_recall) == {"validation loss rises while recall rises"}
    assert "from 1.000 (epoch 2) to 1.500, R@1 from 30.0 to 34.0" in ailments.loss_rises_with_recall(with_recall)
    without = (2.0, 20.0), (1.0, 30.0), (2.0, 29.0), (4.0, 28.0)
    assert names(evaluated(*without, loss=0.2)) == {"overfitting"}
    assert names(evaluated(*without, loss=3.9)) == set(), "the training loss is no better: that is no overfitting"
    assert names(evaluated((1.0, 30.0), (4.0, 28.0), loss=0.1)) == set(), "one evaluation after the least is too few"


def test_captions_cut():
    assert names(seen_of(facts=Facts(1000, 50, 100.0, captions=1000, cut=10))) == {"captions cut"}
    assert names(seen_of(facts=Facts(1000, 50, 100.0, captions=1000, cut=9))) == set()


def test_every_ailment_says_what_it_means_and_what_to_try():
    assert len({ailment.name for ailment in ALL.values()}) == len(ALL)
    for ailment in ALL.values():
        assert min(len(ailment.name), len(ailment.meaning), len(ailment.advice)) > 5
        assert ailment.meaning.endswith(".")
        assert ailment.advice.endswith(".")
