"""The rules at their thresholds, on made-up records. `test_doctor.py` applies them to trainings."""

import dataclasses
import math

import pytest

from miniclip.diagnostics.rules import ALL_RULES
from miniclip.diagnostics.rules.validation import LOSS_AND_RECALL_RISE
from miniclip.diagnostics.rules.window import MIN_RECORDS, MIN_STEPS, RunFacts, RunWindow

FACTS = RunFacts(steps=1000, warmup_steps=50, max_logit_scale=100.0, captions=1000)
HEALTHY = {
    "loss": 2.0,
    "chance_loss": math.log(128),
    "loss_floor": 0.05,
    "logit_scale": 20.0,
    "grad_norm_image": 0.5,
    "grad_norm_text": 2.0,
    "alignment": 0.6,
    "uniformity_image": -2.5,
    "uniformity_text": -2.7,
    "effective_rank_image": 20.0,
    "effective_rank_text": 18.0,
    "pairs": 128,
    "distinct_captions": 127,
    "distinct_images": 128,
    "data_wait": 0.02,
}


def window_of(count=MIN_RECORDS + 1, start=60, stride=10, first=None, facts=FACTS, **changes):
    """Window of a healthy first record and `count` records with changes, `stride` steps apart."""
    window = RunWindow(facts)
    window.add({**HEALTHY, "step": 1, "logit_scale": 14.3, **(first or {})})
    for i in range(count):
        window.add({**HEALTHY, "step": start + stride * i, **changes})
    return window


def evaluated(*figures, loss=1.0):
    """Window with evaluations of given validation losses and recalls."""
    window = window_of(loss=loss)
    for epoch, (val_loss, recall) in enumerate(figures, 1):
        recalls = {"text_to_image": {"R@1": recall - 1}, "image_to_text": {"R@1": recall + 1}}
        window.add(
            {"step": 100 * epoch, "epoch": epoch, "val_loss": val_loss, "val_chance_loss": math.log(128), **recalls}
        )
    return window


def names(window):
    return {rule.name for rule in ALL_RULES if rule.detect(window) is not None}


def test_healthy_run_has_no_problems():
    assert names(window_of()) == set()
    assert names(evaluated((3.0, 10.0), (2.0, 20.0), (1.9, 25.0), (1.92, 25.0))) == set()
    assert names(RunWindow(FACTS)) == set()


@pytest.mark.parametrize(
    ("name", "changes", "harmless"),
    [
        ("loss stuck at chance", {"loss": 4.84}, {"loss": 4.7}),
        ("loss stuck at chance", {"loss": 7.0}, {}),
        ("loss stuck at chance", {"loss": 4.0, "chance_loss": 4.01, "distinct_captions": 128}, {}),
        ("embedding collapse", {"uniformity_image": -0.001}, {"uniformity_image": -0.2}),
        ("embedding collapse", {"effective_rank_text": 1.01}, {"effective_rank_text": 2.0}),
        ("logit scale at maximum", {"logit_scale": 100.0}, {"logit_scale": 90.0}),
        ("logit scale near 1", {"logit_scale": 1.0}, {"logit_scale": 4.0}),
        ("repeated captions in a batch", {"distinct_captions": 100}, {"distinct_captions": 123}),
        ("repeated images in a batch", {"distinct_images": 100}, {"distinct_images": 123}),
        ("tower without gradient", {"grad_norm_image": 1e-5}, {"grad_norm_image": 0.01}),
        ("tower without gradient", {"grad_norm_text": 0.0}, {}),
        ("data wait", {"data_wait": 0.6}, {"data_wait": 0.2}),
    ],
)
def test_batch_rules(name, changes, harmless):
    assert names(window_of(**changes)) == {name}
    assert names(window_of(**harmless)) == set()
    assert name not in names(window_of(MIN_RECORDS - 2, **changes)), "too few records"
    assert name not in names(window_of(MIN_RECORDS, stride=2, **changes)), "too few steps"


@pytest.mark.parametrize(
    "changes", [{"loss": 4.85}, {"uniformity_text": 0.0}, {"logit_scale": 1.0}, {"grad_norm_text": 0.0}]
)
def test_warmup_is_excluded(changes):
    assert names(window_of(facts=RunFacts(1000, 100, 100.0), **changes)) == set()
    assert names(window_of(start=110, facts=RunFacts(1000, 100, 100.0), **changes)) != set()


def test_scale_at_maximum_is_fine_late_with_much_learned():
    late = {"start": 700, "logit_scale": 100.0}
    assert names(window_of(**late, loss=0.5)) == set()
    assert names(window_of(**late, loss=4.0)) == {"logit scale at maximum"}
    assert names(window_of(logit_scale=100.0, first={"logit_scale": 100.0})) == set(), "OpenAI's models start there"


def test_frozen_tower_may_have_no_gradient():
    facts = RunFacts(1000, 50, 100.0, trained_towers=("text",))
    assert names(window_of(facts=facts, grad_norm_image=0.0)) == set()


def test_missing_or_nonfinite_metrics_are_ignored_except_the_loss():
    assert names(window_of(uniformity_image=math.nan, effective_rank_image=None)) == set()
    assert names(window_of(loss=math.nan)) == {"non-finite loss"}
    assert names(window_of(loss=None)) == {"non-finite loss"}
    window = RunWindow(FACTS)
    for step in range(1, 100):  # steps without batch metrics
        window.add({"step": step, "loss": 4.85, "chance_loss": 4.85})
    assert names(window) == set()


def test_busy_cores():
    facts = dataclasses.replace(FACTS, threads=2, cores=2)
    assert names(window_of(3, facts=facts, other_cores=0.6)) == {"busy cores"}
    assert names(window_of(3, facts=facts, other_cores=0.4)) == set()
    assert names(window_of(2, facts=facts, other_cores=0.6)) == set(), "too few values"
    assert names(window_of(3, facts=dataclasses.replace(facts, threads_sleep=True), other_cores=0.6)) == set()
    assert names(window_of(3, facts=dataclasses.replace(facts, threads=1), other_cores=1.9)) == set()
    assert names(window_of(3, facts=dataclasses.replace(facts, cores=4), other_cores=1.9)) == set(), "two are free"
    assert names(window_of(3, facts=dataclasses.replace(facts, cores=4), other_cores=2.1)) == {"busy cores"}
    ranks = dataclasses.replace(facts, threads=8, cores=16, ranks=4)
    assert names(window_of(3, facts=ranks, other_cores=20.0)) == set(), "44 of 64 are free for 32 threads"
    assert names(window_of(3, facts=ranks, other_cores=33.0)) == {"busy cores"}
    window = window_of(3, facts=facts, other_cores=2.0)
    for step in range(100, 130, 10):
        window.add({**HEALTHY, "step": step, "other_cores": 0.1})
    assert names(window) == set(), "the other program has ended"
    for step in range(130, 300, 2):  # fast steps: few of their records have a value
        window.add({**HEALTHY, "step": step, **({"other_cores": 1.0} if step % 26 == 0 else {})})
    assert names(window) == {"busy cores"}


def test_more_threads_than_cores():
    assert names(RunWindow(dataclasses.replace(FACTS, threads=16, cores=2))) == {"more threads than cores"}
    assert names(RunWindow(dataclasses.replace(FACTS, threads=2, cores=2))) == set()


def test_window_drops_old_records():
    window = window_of(loss=4.85)
    assert names(window) == {"loss stuck at chance"}
    for step in range(1000, 1400):
        window.add({**HEALTHY, "step": step})
    assert names(window) == set()
    assert len(window.batch_records) == MIN_STEPS + 1
    assert len(window.steps) <= MIN_STEPS + 1
    for step in range(2000, 9000, 100):
        window.add({**HEALTHY, "step": step})
    assert len(window.batch_records) == MIN_RECORDS


def test_rising_validation_loss():
    with_recall = evaluated((2.0, 20.0), (1.0, 30.0), (1.2, 32.0), (1.5, 34.0))
    assert names(with_recall) == {"validation loss rises while recall rises"}
    assert "from 1.000 (epoch 2) to 1.500, R@1 from 30.0 to 34.0" in LOSS_AND_RECALL_RISE.detect(with_recall)
    without_recall = (2.0, 20.0), (1.0, 30.0), (2.0, 29.0), (4.0, 28.0)
    assert names(evaluated(*without_recall, loss=0.2)) == {"overfitting"}
    assert names(evaluated(*without_recall, loss=3.9)) == set(), "the training loss is not better"
    assert names(evaluated((1.0, 30.0), (4.0, 28.0), loss=0.1)) == set(), (
        "one evaluation after the lowest loss is too few"
    )


def test_truncated_captions():
    assert names(window_of(facts=RunFacts(1000, 50, 100.0, captions=1000, truncated_captions=10))) == {
        "truncated captions"
    }
    assert names(window_of(facts=RunFacts(1000, 50, 100.0, captions=1000, truncated_captions=9))) == set()


@pytest.mark.parametrize(("steps", "expected"), [(46, {"short run"}), (99, {"short run"}), (100, set())])
def test_short_run(steps, expected):
    assert names(RunWindow(RunFacts(steps, 20, 100.0))) == expected


@pytest.mark.parametrize(
    ("step", "recall", "is_reported"),
    [(1000, 2.4, True), (1000, 9.0, False), (900, 2.4, False)],
    ids=["end", "good", "early"],
)
def test_end_at_chance(step, recall, is_reported):
    window = window_of()
    recalls = {"R@1": recall / 10, "R@5": recall / 2, "R@10": recall}
    chance = {way: {"R@1": 0.2, "R@5": 1.0, "R@10": 2.0} for way in ("text_to_image", "image_to_text")}
    losses = {"val_loss": 4.8, "val_chance_loss": math.log(128)}
    evaluation = {"text_to_image": recalls, "image_to_text": recalls, "chance_recall": chance, **losses}
    window.add({"step": step, "epoch": 9, **evaluation})
    assert names(window) == ({"no better than chance at the end"} if is_reported else set())


def test_every_rule_has_a_meaning_and_advice():
    assert len({rule.name for rule in ALL_RULES}) == len(ALL_RULES)
    for rule in ALL_RULES:
        assert min(len(rule.name), len(rule.meaning), len(rule.advice)) > 5
        assert rule.meaning.endswith(".")
        assert rule.advice.endswith(".")
