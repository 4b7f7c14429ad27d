"""Every ailment provoked by a tiny training that has it, and what the doctor then says; when it says nothing."""

import json
import math

import pytest
import torch
from PIL import Image

from miniclip.data import Shapes
from miniclip.diagnostics import rules as ailments
from miniclip.diagnostics.doctor import FILE, Doctor, in_words
from miniclip.diagnostics.rules import AT_LOOKS, STEPS, stuck
from miniclip.train import Callback, Trainer
from miniclip.train.config import TrainConfig
from miniclip.train.setup import default_callbacks
from tests.diagnostics.test_rules import HEALTHY
from tests.toys import make_model

SHAPES = Shapes("train", 40, image_size=16)
PICTURES = [SHAPES[i][0] for i in range(40)]


class Pairs:
    """Pictures and captions as a test wants them."""

    def __init__(self, pictures, captions):
        self.pictures, self.captions = pictures, captions

    def __len__(self):
        return len(self.pictures)

    def __getitem__(self, index):
        return self.pictures[index], list(self.captions[index])


@pytest.fixture
def diagnosed(tmp_path, tokenizer, capsys, monkeypatch):
    """Train on data, every step a look, and give the names that the doctor has written, after they were printed."""
    monkeypatch.setattr(ailments, "STEPS", 30)  # tests shall be short; test_ailments.py has the real number

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
        written = tmp_path / "run" / FILE
        entries = [json.loads(line) for line in written.read_text().splitlines()] if written.exists() else []
        for entry in entries:
            kind = "warning" if entry["warning"] else "note"
            assert f"{kind}, step {entry['step']}: {entry['name']}: {entry['found']}" in printed
        return {entry["name"]: entry["found"] for entry in entries}

    return run


def test_captions_that_do_not_belong_to_their_pictures(diagnosed):
    words = ["red", "blue", "green", "pink", "black", "circle", "star", "ring", "cross", "heart"]
    pool = [f"{a} {b} {c}" for a in words for b in words for c in words]
    found = diagnosed(Pairs(PICTURES, [pool] * 40), lr=1e-4)  # each time other ones
    assert set(found) <= {"loss stuck at log N", "collapse"}  # with nothing to gain by it, nothing is told apart
    assert f"nothing apart has {math.log(10):.2f}" in found["loss stuck at log N"]


def test_pictures_that_are_all_the_same(diagnosed):
    blank = [Image.new("RGB", (16, 16), "grey")] * 40
    found = diagnosed(Pairs(blank, SHAPES.captions), min_crop_area=1.0)
    assert "the image embeddings have an effective rank of 1.0, a uniformity of -" in found["collapse"]
    assert "same picture twice in a batch" in found
    assert "repeat the picture of another one" in found["same picture twice in a batch"]


def test_captions_that_are_all_the_same(diagnosed):
    found = diagnosed(Pairs(PICTURES, [["a picture"]] * 40))
    assert "the text embeddings" in found["collapse"]
    assert "of a batch's 10 pairs 9.0 repeat the caption" in found["same caption twice in a batch"]
    assert "loss stuck at log N" not in found, "there is nothing to tell apart: the captions are named"


def test_pictures_that_are_twice_in_the_data(diagnosed):
    found = diagnosed(Pairs(PICTURES[:20] * 2, SHAPES.captions), batch_size=40, epochs=32)
    assert "of a batch's 40 pairs 20.0 repeat the picture" in found["same picture twice in a batch"]
    assert "same caption twice in a batch" not in found


class Push(Callback):
    """What a wrong gradient would do to the scale."""

    def __init__(self, by):
        self.by = by

    def on_step(self, trainer, record):
        with torch.no_grad():
            trainer.model.log_scale.add_(self.by).clamp_(0, math.log(trainer.config.max_logit_scale))


def test_a_scale_that_runs_away(diagnosed):
    found = diagnosed(callbacks=[Push(0.6)], epochs=12)
    assert "stands at 100.0, the greatest that max_logit_scale allows" in found["scale at its greatest"]


def test_a_scale_that_falls(diagnosed):
    found = diagnosed(callbacks=[Push(-0.6)])
    assert "fell from 14.3 to 1.0" in found["scale fell to 1"]


def test_a_loss_that_is_not_finite(diagnosed):
    class Poison(Callback):
        """A picture without an end, in the third step."""

        def on_start(self, trainer):
            inputs = trainer._inputs

            def poisoned(batch):
                step = trainer.step

                def changed(rows):
                    pixels, *rest = inputs(batch)(rows)
                    return (pixels / 0 if step == 2 else pixels), *rest

                return changed

            trainer._inputs = poisoned

    found = diagnosed(callbacks=[Poison()])["loss not finite"]
    assert "step 3 was skipped, not finite: the embedding of picture" in found


@pytest.mark.filterwarnings("ignore:a caption of .* was cut")  # the tokenizer says it once, maybe in an earlier test
def test_captions_longer_than_the_context(diagnosed):
    long = [[f"{own[0]} {'and so on ' * 60}"] for own in SHAPES.captions[:10]]
    found = diagnosed(Pairs(PICTURES, [*long, *([own[0]] for own in SHAPES.captions[10:])]), epochs=1)
    assert found == {"captions cut": "10 of 40 captions are longer than the model's context, and cut"}


def test_overfitting(diagnosed):
    captions = [[own[0]] for own in SHAPES.captions]
    others = Pairs(PICTURES, captions[7:] + captions[:7])  # of which nothing can be known
    found = diagnosed(Pairs(PICTURES, captions), others, epochs=25, lr=3e-3, eval_every=5, min_crop_area=1.0)
    assert "overfitting" in found
    assert found["overfitting"].startswith("the training loss is ")


def test_a_validation_loss_that_rises_while_recall_rises(diagnosed):
    captions = [[own[0]] for own in SHAPES.captions]
    some_wrong = Pairs(PICTURES, captions[7:14] + captions[:7] + captions[14:])  # known, and held the more surely
    found = diagnosed(Pairs(PICTURES, captions), some_wrong, epochs=25, lr=3e-3, eval_every=5, min_crop_area=1.0)
    assert "the validation loss rose from " in found["validation loss rises while recall rises"]


def test_a_tower_that_gets_no_gradient(diagnosed, tokenizer):
    model = make_model(tokenizer)
    for parameter in model.text.parameters():
        parameter.register_hook(lambda gradient: gradient * 1e-6)
    found = diagnosed(model=model)
    assert " in the text tower and " in found["a tower without gradient"]


def test_a_tower_that_was_frozen_is_no_ailment(diagnosed, tokenizer):
    model = make_model(tokenizer)
    model.image.requires_grad_(False)
    assert "a tower without gradient" not in diagnosed(model=model)


def test_pictures_that_come_slowly(diagnosed):
    class Slow(Pairs):
        def __getitem__(self, index):
            large = self.pictures[index].resize((400, 400), Image.Resampling.BICUBIC)
            return large.resize((16, 16)), list(self.captions[index])

    found = diagnosed(Slow(PICTURES, SHAPES.captions), num_workers=0)
    assert found["waiting for data"].endswith("of the time goes into waiting for batches")


def test_a_healthy_training_has_none(diagnosed):
    assert diagnosed(epochs=25, lr=3e-3, warmup_fraction=0.2) == {}


# the callback


class Run:
    """As much of a trainer as the doctor looks at."""

    def __init__(self, folder, model):
        from miniclip.runs.history import History

        self.run_dir, self.model, self.config, self.step = folder, model, TrainConfig(warmup_fraction=0.0), 0
        self.total_steps, self.data, self.captions_cut, self.history = 1000, {"train": {"captions": 40}}, 0, History()


@pytest.fixture
def run(tmp_path, model):
    return Run(tmp_path / "run", model)


def shown(run, doctor, losses):
    for loss in losses:
        run.step += 1
        record = {**HEALTHY, "step": run.step, "epoch": 1, "loss": loss}
        run.history.add(record)
        doctor.on_step(run, record)


def entries(run):
    path = run.run_dir / FILE
    return [json.loads(line)["step"] for line in path.read_text().splitlines()] if path.exists() else []


ILL, WELL = [4.85], [1.0]


def test_an_ailment_is_said_once_and_again_when_it_came_back(run, capsys):
    doctor = Doctor()
    doctor.on_start(run)
    shown(run, doctor, ILL * 150)
    assert entries(run) == [STEPS + 1]
    assert capsys.readouterr().out.count("loss stuck at log N") == 1
    shown(run, doctor, WELL * 2 + ILL * 150)  # two steps are no recovery
    assert len(entries(run)) == 1
    shown(run, doctor, WELL * 50 + ILL * 150)
    assert len(entries(run)) == 2


@pytest.mark.parametrize("stop", [3, 100, 101, 120, 190, 260, 330])
def test_a_run_that_is_taken_up_says_what_one_does_that_was_never_stopped(tmp_path, model, stop):
    losses = ILL * 150 + WELL * 60 + ILL * 140
    whole, stopped = Run(tmp_path / "whole", model), Run(tmp_path / "stopped", model)
    for run, part in ((whole, losses), (stopped, losses[: stop + 5])):
        doctor = Doctor()
        doctor.on_start(run)
        shown(run, doctor, part)
    resumed = Run(stopped.run_dir, model)
    for record in stopped.history.steps[:stop]:  # five steps are lost
        resumed.history.add(record)
    resumed.step = stop
    if entries(stopped):
        with (stopped.run_dir / FILE).open("a") as file:
            file.write('{"step": 1, "cut sho')
    doctor = Doctor()
    doctor.on_start(resumed)
    shown(resumed, doctor, losses[stop:])
    assert entries(resumed) == entries(whole)
    assert len(entries(whole)) == 2


def test_its_words(capsys):
    lines = in_words(7, AT_LOOKS[stuck], "the loss is 4.852").splitlines()
    assert lines[0] == "warning, step 7: loss stuck at log N: the loss is 4.852"
    assert lines[1].startswith("  means: The model tells no pair")
    assert any(line.startswith("  try:   ") for line in lines)
    assert max(map(len, lines)) <= 100


def test_it_is_one_of_the_usual_callbacks():
    assert any(isinstance(callback, Doctor) for callback in default_callbacks())
