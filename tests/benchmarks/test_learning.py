"""Recall after equal training time: splits, clock, schedule, statistics and records."""

import json

import pytest
import torch

from benchmarks.learning import command, limits, records, sets, trials
from benchmarks.learning.clock import Clock
from benchmarks.learning.run import Spec, run, train_one
from benchmarks.learning.statistics_of_runs import p_value, time_to_reach
from benchmarks.learning.trials import with_change

TINY = {
    "preset": "bert_vit_tiny",
    "batch_size": 16,
    "architecture": {"image": {"layers": 1, "width": 32}, "text": {"layers": 1, "width": 32, "vocab_size": 600}},
}


class TestTuningSplit:
    def test_holds_one_drawing_of_emoji_with_others(self):
        names = [f"{style}_{concept}.jpg" for concept in range(50) for style in ("a", "b", "c")]
        names += [f"a_{concept}.jpg" for concept in range(50, 60)]
        chosen = [names[index] for index in sets.tuning_indices("emoji", names)]
        concepts = [sets.concept(name) for name in chosen]
        assert len(chosen) == len(set(concepts)) == 160 // 4
        assert all(int(concept.split(".")[0]) < 50 for concept in concepts)

    def test_depends_on_the_names_only(self):
        names = [f"{index}.jpg" for index in range(400)]
        chosen = {names[index] for index in sets.tuning_indices("clipart", names)}
        turned = names[::-1]
        assert chosen == {turned[index] for index in sets.tuning_indices("clipart", turned)}
        assert len(chosen) == 100

    def test_leaves_the_rest_for_training(self, tmp_path):
        task = sets.load("shapes", tmp_path, "tuning", small=True)
        assert not set(task.train.names) & set(task.scored.names)
        assert len(task.train) + len(task.scored) == sets.SMALL_IMAGES


class Counter:
    """A system whose steps take no time, with a clock that counts one second a step."""

    batch_size, facts = 2, {"precision": "float32"}

    def __init__(self):
        self.progress = []

    def step(self, batch, progress):
        self.progress.append(progress)


def test_the_schedule_is_a_function_of_the_consumed_budget(monkeypatch):
    clock, system = Clock(torch.device("cpu")), Counter()
    monkeypatch.setattr(clock, "_now", iter(range(100)).__next__)
    while clock.seconds < 4:
        train_one(system, iter("abcd"), clock, budget=4)
    assert system.progress == [0, 0.25, 0.5, 0.75]


@pytest.mark.parametrize("system", ["miniclip", pytest.param("open_clip", marks=pytest.mark.peer)])
def test_a_run(system, tmp_path):
    settings = TINY
    if system == "open_clip":
        pytest.importorskip("open_clip")
        settings = {**command.open_clip_system.SETTINGS, "batch_size": 16}
    record = run(Spec("shapes", "tuning", system, settings, 0, 0.2, points=2, small=True), tmp_path)
    assert len(record["curve"]) == 2
    assert record["pairs"] == 16 * record["curve"][-1]["steps"]
    assert record["curve"][-1]["seconds"] >= 0.2
    assert 0 <= record["curve"][-1]["mean_R@1"] <= 100


def test_miniclip_ends_at_a_learning_rate_of_zero_and_starts_from_its_own_weights(tmp_path):
    from benchmarks.learning.miniclip_system import MiniclipSystem
    from benchmarks.learning.systems import Start

    task = sets.load("shapes", tmp_path, "tuning", small=True)
    system = MiniclipSystem(Start(task.train, TINY, 0, torch.device("cpu")))
    before = {name: weight.clone() for name, weight in system.trainer.model.state_dict().items()}
    system.warm_up()
    assert all(torch.equal(weight, before[name]) for name, weight in system.trainer.model.state_dict().items())
    assert not system.trainer.optimizer.state
    rates = []
    for progress in (0.1, 0.55, 0.9999):  # the end of the warmup, the middle of the cosine, the end of the budget
        system.trainer.progress.step = round(10_000 * progress)
        system.step(next(system.batches()), progress)
        rates.append(system.trainer.optimizer.param_groups[0]["lr"] / system.trainer.config.lr)
    assert rates == pytest.approx([1, 0.5, 0], abs=1e-3)


class TestStatistics:
    def test_p_value_is_that_of_welch(self):
        pytest.importorskip("scipy")
        assert p_value([1.0, 2.0, 3.0], [11.0, 12.0, 13.0]) < 0.001
        assert p_value([1.0, 2.0, 3.0], [1.5, 2.0, 2.5]) == pytest.approx(1.0)
        assert p_value([1.0], [2.0, 3.0]) is None
        assert p_value([1.0, 1.0], [1.0, 1.0]) is None

    def test_time_to_reach_is_that_of_the_mean_curve(self):
        curves = [[(10.0, 10.0), (20.0, 20.0)], [(10.0, 20.0), (20.0, 40.0)]]
        assert time_to_reach(curves, 15.0) == pytest.approx(10.0, abs=0.02)
        assert time_to_reach(curves, 31.0) is None


class TestRecords:
    SPEC = Spec("shapes", "report", "miniclip", {"lr": 1e-3}, 0, 2.0)

    @pytest.fixture
    def made(self, monkeypatch):
        made = []

        def train(spec, data):
            made.append(spec)
            point = {"seconds": 2.0, "image_to_text": 3.0, "text_to_image": 1.0, "mean_R@1": 2.0}
            values = json.loads(json.dumps(spec.__dict__))
            return {"spec": values, "pairs": 8, "facts": {}, "curve": [point]}

        monkeypatch.setattr(records, "train_in_process", train)
        return made

    def test_continue_after_a_stop(self, made, tmp_path):
        for _ in range(2):
            assert records.final(records.Runs(tmp_path, tmp_path, {"cores": 2, "load": 1}).result(self.SPEC)) == 2.0
        assert len(made) == 1
        with (tmp_path / "runs.jsonl").open("a") as file:
            file.write('{"spec": {"set"')  # from a killed command
        assert len(records.Runs(tmp_path, tmp_path, {"cores": 2}).records) == 1
        assert not records.Runs(tmp_path, tmp_path, {"cores": 4}).records, "of another machine"

    def test_command_compares_systems_and_tunes_one(self, made, tmp_path):
        pytest.importorskip("scipy")
        options = ["--sets", "shapes", "emoji", "--seeds", "2", "--budget", "2", "--tune", "1", "--jobs", "2"]
        options += ["--data", str(tmp_path)]
        command.main([*options, "--out", str(tmp_path / "out")])
        tuning = [spec for spec in made if spec.split == "tuning"]
        assert {(spec.system, spec.budget) for spec in tuning} == {("open_clip", 1.0)}
        assert len([spec for spec in made if spec.split == "report"]) == 4
        results = json.loads((tmp_path / "out" / "results.json").read_text())
        assert results["comparisons"][0]["ratio"] == 1.0
        assert (tmp_path / "out" / "curves.png").stat().st_size > 1000

    def test_trials_make_each_run_once_with_two_at_a_time(self, made, tmp_path, capsys):
        pytest.importorskip("scipy")
        options = ["lr=2e-3", "--set", "shapes", "--seeds", "2", "--jobs", "2", "--threads", "1"]
        for _ in range(2):
            trials.main([*options, "--data", str(tmp_path), "--out", str(tmp_path)])
        assert sorted((spec.settings["lr"], spec.seed, spec.threads) for spec in made) == [
            (2e-3, 0, 1), (2e-3, 1, 1), (4e-3, 0, 1), (4e-3, 1, 1),
        ]  # fmt: skip
        assert "| `lr=2e-3` | 2.0 ± 0.0 | +0.0 |  |" in capsys.readouterr().out


def test_trials_compare_each_change_with_the_recipe():
    pytest.importorskip("scipy")
    table = trials.table({trials.PLAIN: [30.0, 32.0, 34.0], "lr=1.0": [20.0, 22.0, 24.0]}).splitlines()
    assert table[2:] == ["| `the recipe` | 32.0 ± 2.0 |  |  |", "| `lr=1.0` | 22.0 ± 2.0 | -10.0 | 0.0036 |"]


def test_changes_of_a_recipe_are_merged():
    settings = {"lr": 1e-3, "architecture": {"text": {"layers": 3, "width": 128}}}
    changed = with_change(settings, "lr=2e-3 model.text.layers=2 model.image.patch_size=16")
    assert changed == {
        "lr": 2e-3,
        "architecture": {"text": {"layers": 2, "width": 128}, "image": {"patch_size": 16}},
    }
    assert settings["architecture"]["text"]["layers"] == 3


def test_limits_of_recall():
    train = [["a fox", "a red fox"], ["a fox sleeps"], ["an owl"]]
    scored = [["a red fox", "a fox"], ["a fox", "a blue fox"], ["an owl", "the owl"]]
    assert limits.highest(scored, None) == (1, (1 + 1 / 2 + 1 / 2 + 1 + 1 + 1) / 6)
    assert limits.known_words(train, 2) == {"a", "fox"}
    # "blue" and "the" are in no training caption: "a blue fox" is read as "a fox", of which the second image has two
    to_text, to_image = limits.highest(scored, limits.known_words(train, 1))
    assert to_text == pytest.approx((1 + 2 / 3 + 1) / 3)
    assert to_image == pytest.approx((1 + 1 / 2 + 1 / 2 + 1 / 2 + 1 + 1) / 6)
    assert "| emoji, val | in 3 training images or more | 33.3 | 33.3 | 33.3 |" in limits.rows("emoji", train, scored)
