"""The doctor on small trainings that have one problem each, on a healthy one, and on resumed runs."""

import json
import math

import pytest
import torch
from PIL import Image

from miniclip.data import CacheOptions, Shapes, build_cache
from miniclip.diagnostics import doctor
from miniclip.diagnostics.doctor import FILE, Doctor, report_text
from miniclip.diagnostics.rules import window
from miniclip.diagnostics.rules.training import STUCK
from miniclip.diagnostics.rules.window import MIN_STEPS
from miniclip.loggers.defaults import default_callbacks
from miniclip.runtime import cores
from miniclip.train import Callback, Trainer
from miniclip.train.config import TrainConfig
from tests.diagnostics.test_rules import HEALTHY
from tests.toys import make_model

SHAPES = Shapes("train", 40, image_size=16)
IMAGES = [SHAPES[i][0] for i in range(40)]


class Pairs:
    """Image-caption dataset of two lists."""

    def __init__(self, images, captions):
        self.images, self.captions = images, captions

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return self.images[index], list(self.captions[index])


@pytest.fixture
def diagnose(tmp_path, tokenizer, capsys, monkeypatch):
    """Train on data and return the observations that the doctor printed and wrote, by rule name."""
    monkeypatch.setattr(window, "MIN_STEPS", 30)  # for short tests; test_rules.py uses the default
    monkeypatch.setattr("miniclip.diagnostics.rules.data.SHORT_RUN", 0)

    def run(data=SHAPES, val=None, model=None, callbacks=(), **settings):
        config = {
            "batch_size": 10,
            "epochs": 10,
            "lr": 1e-3,
            "warmup_fraction": 0.0,
            "precision": "float32",
            "log_every": 1,
        }
        trainer = Trainer(
            model or make_model(tokenizer),
            data,
            val,
            config=TrainConfig(**{**config, **settings}),
            run_dir=tmp_path / "run",
            callbacks=[*callbacks, Doctor()],
            device="cpu",
        )
        trainer.fit()
        printed = capsys.readouterr().out
        path = tmp_path / "run" / FILE
        entries = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        for entry in entries:
            head = f"{entry['severity']}, step {entry['step']}: {entry['name']}: "
            assert head + entry["observation"] in printed
        return {entry["name"]: entry["observation"] for entry in entries}

    return run


def test_unrelated_captions_leave_the_loss_at_chance(diagnose):
    words = ["red", "blue", "green", "pink", "black", "circle", "star", "ring", "cross", "heart"]
    pool = [f"{a} {b} {c}" for a in words for b in words for c in words]
    observations = diagnose(Pairs(IMAGES, [pool] * 40), lr=1e-4)  # random captions at each step
    assert set(observations) <= {"loss stuck at chance", "embedding collapse"}
    assert f"chance is {math.log(10):.2f}" in observations["loss stuck at chance"]


def test_equal_images_collapse_the_image_tower(diagnose):
    blank = [Image.new("RGB", (16, 16), "grey")] * 40
    observations = diagnose(Pairs(blank, SHAPES.captions), min_crop_area=1.0)
    assert (
        "the image embeddings have an effective rank of 1.0 and a uniformity of -" in observations["embedding collapse"]
    )
    assert "repeated images in a batch" in observations
    assert "repeat the image of another pair" in observations["repeated images in a batch"]


def test_equal_captions_collapse_the_text_tower(diagnose):
    observations = diagnose(Pairs(IMAGES, [["an image"]] * 40))
    assert "the text embeddings" in observations["embedding collapse"]
    assert "9.0 of a batch's 10 pairs repeat the caption" in observations["repeated captions in a batch"]
    assert "loss stuck at chance" not in observations, "nothing can be learned, so the captions are reported instead"


def test_duplicate_images_are_reported(diagnose):
    observations = diagnose(Pairs(IMAGES[:20] * 2, SHAPES.captions), batch_size=40, epochs=32)
    assert "20.0 of a batch's 40 pairs repeat the image" in observations["repeated images in a batch"]
    assert "repeated captions in a batch" not in observations


@pytest.mark.parametrize("variables", [{}, {"OMP_WAIT_POLICY": "PASSIVE"}, {"GOMP_SPINCOUNT": "3000"}], ids=str)
def test_busy_cores_are_reported_unless_threads_sleep(diagnose, monkeypatch, variables):
    monkeypatch.setattr(cores.OtherPrograms, "cores", lambda self: 1.5)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    monkeypatch.setattr(doctor, "available_cores", lambda: 2)
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    observations = diagnose(epochs=1)
    message = "other programs use 1.5 of 2 cores, and training has 2 threads"
    assert observations == ({} if variables else {"busy cores": message})


class ChangeScale(Callback):
    """Adds a constant to the log of the scale at each step."""

    def __init__(self, by):
        self.by = by

    def on_step(self, trainer, record):
        with torch.no_grad():
            trainer.model.log_scale.add_(self.by).clamp_(0, math.log(trainer.config.max_logit_scale))


def test_scale_at_maximum_is_reported(diagnose):
    observations = diagnose(callbacks=[ChangeScale(0.6)], epochs=12)
    assert "is 100.0, the maximum (max_logit_scale)" in observations["logit scale at maximum"]


def test_scale_near_one_is_reported(diagnose):
    observations = diagnose(callbacks=[ChangeScale(-0.6)])
    assert "fell from 14.3 to 1.0" in observations["logit scale near 1"]


def test_nonfinite_step_is_reported(diagnose):
    class Poison(Callback):
        """Makes the images of the third step infinite."""

        def on_start(self, trainer):
            prepare = trainer.prepare

            def poisoned(batch, step):
                parts = list(prepare(batch, step))
                return [part._replace(pixels=part.pixels / 0) for part in parts] if step == 2 else parts

            trainer.prepare = poisoned

    observations = diagnose(callbacks=[Poison()])["non-finite loss"]
    assert "step 3 was skipped, not finite: the embedding of image" in observations


@pytest.mark.filterwarnings("ignore:a caption of .* was cut")  # it warns once, maybe in an earlier test
@pytest.mark.parametrize("is_cached", [False, True])
def test_truncated_captions_are_reported(diagnose, tokenizer, tmp_path, is_cached):
    long = [[f"{group[0]} {'and so on ' * 60}"] for group in SHAPES.captions[:10]]
    data, model = Pairs(IMAGES, [*long, *([group[0]] for group in SHAPES.captions[10:])]), make_model(tokenizer)
    if is_cached:  # with token ids, which are cut already
        options = CacheOptions(tokenizer, model.config.text.context_length, num_workers=0)
        data = build_cache(data, tmp_path / "cache", model.preprocess, options=options)
        assert data.tokens(tokenizer, options.context_length, options.pad) is not None
    observations = diagnose(data, model=model, epochs=1)
    assert observations == {"truncated captions": "10 of 40 captions are longer than the model's context"}


def test_overfitting_is_reported(diagnose):
    captions = [[group[0]] for group in SHAPES.captions]
    val_data = Pairs(IMAGES, captions[7:] + captions[:7])  # mismatched pairs
    observations = diagnose(Pairs(IMAGES, captions), val_data, epochs=25, lr=3e-3, eval_every=5, min_crop_area=1.0)
    assert "overfitting" in observations
    assert observations["overfitting"].startswith("the training loss is ")


def test_rise_of_validation_loss_and_recall_is_reported(diagnose):
    captions = [[group[0]] for group in SHAPES.captions]
    val_data = Pairs(IMAGES, captions[7:14] + captions[:7] + captions[14:])  # some pairs mismatched
    observations = diagnose(Pairs(IMAGES, captions), val_data, epochs=25, lr=3e-3, eval_every=5, min_crop_area=1.0)
    assert "the validation loss rose from " in observations["validation loss rises while recall rises"]


def test_tower_without_gradient_is_reported(diagnose, tokenizer):
    model = make_model(tokenizer)
    for parameter in model.text.parameters():
        parameter.register_hook(lambda gradient: gradient * 1e-6)
    observations = diagnose(model=model)
    assert " in the text tower and " in observations["tower without gradient"]


def test_frozen_tower_is_not_reported(diagnose, tokenizer):
    model = make_model(tokenizer)
    model.image.requires_grad_(False)
    assert "tower without gradient" not in diagnose(model=model)


def test_slow_images_are_reported(diagnose):
    class Slow(Pairs):
        def __getitem__(self, index):
            large = self.images[index].resize((400, 400), Image.Resampling.BICUBIC)
            return large.resize((16, 16)), list(self.captions[index])

    observations = diagnose(Slow(IMAGES, SHAPES.captions), num_workers=0)
    assert observations["data wait"].startswith("the run waits for batches ")


def test_healthy_training_has_no_problems(diagnose):
    assert diagnose(epochs=25, lr=3e-3, warmup_fraction=0.2) == {}


# the callback


class Run:
    """The part of a trainer that the doctor uses."""

    def __init__(self, folder, model):
        from miniclip.runs.history import History

        self.run_dir, self.model, self.config, self.step = folder, model, TrainConfig(warmup_fraction=0.0), 0
        self.total_steps, self.train_captions, self.truncated_captions, self.history = 1000, 40, 0, History()


@pytest.fixture
def run(tmp_path, model):
    return Run(tmp_path / "run", model)


def run_steps(run, doctor, losses):
    for loss in losses:
        run.step += 1
        record = {**HEALTHY, "step": run.step, "epoch": 1, "loss": loss}
        run.history.add(record)
        doctor.on_step(run, record)


def reported_steps(run):
    path = run.run_dir / FILE
    return [json.loads(line)["step"] for line in path.read_text().splitlines()] if path.exists() else []


STUCK_LOSS, GOOD_LOSS = [4.85], [1.0]


def test_problem_is_reported_once_and_again_if_it_returns(run, capsys):
    doctor = Doctor()
    doctor.on_start(run)
    run_steps(run, doctor, STUCK_LOSS * 150)
    assert reported_steps(run) == [MIN_STEPS + 1]
    assert capsys.readouterr().out.count("loss stuck at chance") == 1
    run_steps(run, doctor, GOOD_LOSS * 2 + STUCK_LOSS * 150)  # two good steps do not clear it
    assert len(reported_steps(run)) == 1
    run_steps(run, doctor, GOOD_LOSS * 50 + STUCK_LOSS * 150)
    assert len(reported_steps(run)) == 2


LOSSES = STUCK_LOSS * 150 + GOOD_LOSS * 60 + STUCK_LOSS * 140


@pytest.fixture(scope="module")
def steps_of_a_whole_run(tmp_path_factory, tokenizer):
    """Steps that the doctor reports in a run of LOSSES without a stop."""
    whole, doctor = Run(tmp_path_factory.mktemp("whole"), make_model(tokenizer)), Doctor()
    doctor.on_start(whole)
    run_steps(whole, doctor, LOSSES)
    return reported_steps(whole)


@pytest.mark.parametrize("stop", [3, 100, 101, 120, 190, 260, 330])
def test_resumed_run_reports_the_same_as_an_uninterrupted_one(tmp_path, model, steps_of_a_whole_run, stop):
    stopped, doctor = Run(tmp_path / "stopped", model), Doctor()
    doctor.on_start(stopped)
    run_steps(stopped, doctor, LOSSES[: stop + 5])
    resumed = Run(stopped.run_dir, model)
    for record in stopped.history.steps[:stop]:  # the last five steps are lost
        resumed.history.add(record)
    resumed.step = stop
    if reported_steps(stopped):
        with (stopped.run_dir / FILE).open("a") as file:
            file.write('{"step": 1, "cut sho')
    doctor = Doctor()
    doctor.on_start(resumed)
    run_steps(resumed, doctor, LOSSES[stop:])
    assert reported_steps(resumed) == steps_of_a_whole_run
    assert len(steps_of_a_whole_run) == 2


def test_report_text():
    lines = report_text(7, STUCK, "the loss is 4.852").splitlines()
    assert lines[0] == "warning, step 7: loss stuck at chance: the loss is 4.852"
    assert lines[1].startswith("  means: The model cannot distinguish")
    assert any(line.startswith("  try:   ") for line in lines)
    assert max(map(len, lines)) <= 100


def test_doctor_is_a_default_callback():
    assert any(isinstance(callback, Doctor) for callback in default_callbacks())
