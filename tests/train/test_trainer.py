"""The trainer: the run directory, learning, resumption bit for bit, refusal to overwrite, errors."""

import json
import math
import os
import shutil
import signal
from pathlib import Path

import pytest
import torch

import miniclip
from miniclip.config import CLIPConfig, ImageConfig, TextConfig
from miniclip.data import Shapes
from miniclip.errors import CheckpointError, DataError
from miniclip.inference.model import CLIPModel
from miniclip.runs.metrics_file import MetricsFile
from miniclip.runs.state import read_state
from miniclip.train import Callback, History, TrainConfig, Trainer

TIMES = {"samples_per_second", "mfu", "data_wait", "other_cores"}


class StopAt(Callback):
    """Sends a signal to the process after a step, as a person or a scheduler does."""

    def __init__(self, step: int, number: int = signal.SIGINT) -> None:
        self.step, self.number = step, number

    def on_step(self, trainer, record):
        if record["step"] == self.step:
            os.kill(os.getpid(), self.number)


class Fail(Callback):
    def on_step(self, trainer, record):
        raise RuntimeError("a callback of the user's failed")


def records(run):
    history = History.read(run)
    return [{k: v for k, v in record.items() if k not in TIMES} for record in history.steps + history.evaluations]


def weights(path):
    return read_state(path / "state.safetensors").weights


def assert_same_run(a, b):
    assert records(a) == records(b)
    one, other = read_state(a / "state.safetensors"), read_state(b / "state.safetensors")
    assert one.progress == other.progress
    for mine, theirs in ((one.weights, other.weights), (one.optimizer, other.optimizer)):
        assert mine.keys() == theirs.keys()
        for key, value in mine.items():
            assert torch.equal(value, theirs[key]), key


def test_run_directory_contents(start, drawn):
    trainer = start()
    history = trainer.fit()
    run = trainer.run_dir
    assert sorted(path.name for path in run.iterdir()) == [
        "best",
        "config.json",
        "confusions.png",
        "doctor.jsonl",
        "last",
        "learning_curve.png",
        "metrics.jsonl",
        "similarities.png",
        "state.safetensors",
    ]
    for checkpoint in ("best", "last"):
        files = sorted(path.name for path in (run / checkpoint).iterdir())
        assert files == ["config.json", "model.safetensors", "tokenizer.json"]
    assert [record["step"] for record in history.steps] == list(range(1, 11))
    assert [record["epoch"] for record in history.evaluations] == [1, 2]
    assert History.read(run) == history
    assert (run / "learning_curve.png").read_bytes().startswith(b"\x89PNG")
    settings = json.loads((run / "config.json").read_text())
    assert settings["train"]["batch_size"] == 8
    assert settings["data"]["train"]["images"] == 40


def test_saved_models_are_the_trained_ones(start, val_data):
    trainer = start()
    history = trainer.fit()
    loaded = miniclip.load(trainer.run_dir / "last")
    for key, value in trainer.model.state_dict().items():
        assert torch.equal(value, loaded.state_dict()[key]), key
    best = max(history.evaluations, key=lambda r: r["text_to_image"]["R@1"] + r["image_to_text"]["R@1"])
    figures = miniclip.evaluation.retrieval(miniclip.load(trainer.run_dir), val_data)
    assert figures == {way: best[way] for way in ("image_to_text", "text_to_image")}


def test_learns_its_training_images(start, train_data):
    trainer = start(epochs=30, lr=3e-3, eval_every=30, min_crop_area=1.0)
    history = trainer.fit()
    assert history.steps[0]["loss"] > math.log(8)
    assert sum(record["loss"] for record in history.steps[-5:]) / 5 < 0.5 * math.log(8)
    chance = 100 / len(train_data)
    assert miniclip.evaluation.retrieval(trainer.model, train_data)["text_to_image"]["R@1"] > 8 * chance


def test_run_depends_on_the_seed(start):
    for run in ("a", "b"):
        start(run, color_jitter=0.3, max_rotation_degrees=10.0).fit()
    other = start("c", color_jitter=0.3, max_rotation_degrees=10.0, seed=1)
    other.fit()
    assert_same_run(other.run_dir.parent / "a", other.run_dir.parent / "b")
    assert records(other.run_dir) != records(other.run_dir.parent / "a")


@pytest.mark.parametrize("step", [1, 3, 5, 6, 10])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_resumed_run_equals_an_undisturbed_one(start, undisturbed, train_data, val_data, step, number):
    settings = {"color_jitter": 0.3, "max_rotation_degrees": 10.0, "patch_dropout": 0.5, "log_every": 1}
    whole = undisturbed(**settings)
    stopped = start("stopped", [*default(), StopAt(step, number)], **settings)
    with pytest.raises(KeyboardInterrupt):
        stopped.fit()
    assert stopped.step == step
    assert read_state(stopped.run_dir / "state.safetensors").progress.step == step
    resumed = Trainer.resume(stopped.run_dir, train_data, val_data, device="cpu")
    assert resumed.fit().evaluations == whole.history.evaluations
    assert_same_run(stopped.run_dir, whole.run_dir)


def test_micro_batches_change_nothing(start):
    settings = {"color_jitter": 0.3, "max_rotation_degrees": 10.0, "patch_dropout": 0.5}
    plain, cached = start("plain", **settings), start("cached", **settings, micro_batch_size=3)
    plain.fit()
    cached.fit()
    for a, b in zip(plain.history.steps, cached.history.steps, strict=True):
        assert b["loss"] == pytest.approx(a["loss"], rel=1e-4)
        assert b["grad_norm"] == pytest.approx(a["grad_norm"], rel=1e-3)


def default():
    from miniclip.loggers.defaults import default_callbacks

    return default_callbacks()


def test_records_later_than_the_state_are_dropped(start, train_data, val_data):
    whole = start("whole", log_every=1)
    whole.fit()
    killed = start("killed", log_every=1, save_every=3)
    saves = []
    killed.callbacks.append(type("Spy", (Callback,), {"on_save": lambda self, trainer: saves.append(trainer.step)})())
    killed.callbacks.append(StopAt(3))
    with pytest.raises(KeyboardInterrupt):
        killed.fit()
    assert saves == [0, 3]
    with (killed.run_dir / "metrics.jsonl").open("a") as file:  # a kill can leave later steps and half a line
        file.write('{"step": 4, "epoch": 1, "loss": 99.0}\n{"step": 5, "epo')
    Trainer.resume(killed.run_dir, train_data, val_data, device="cpu").fit()
    assert_same_run(killed.run_dir, whole.run_dir)


def test_finished_run_resumes_without_steps(start, train_data, val_data):
    trainer = start()
    trainer.fit()
    before = records(trainer.run_dir)
    Trainer.resume(trainer.run_dir, train_data, val_data, device="cpu").fit()
    assert records(trainer.run_dir) == before


def test_signal_handlers_are_restored(start):
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    start(max_steps=1).fit()
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_max_steps_ends_in_the_middle_of_an_epoch(start):
    trainer = start(epochs=3, max_steps=7)
    history = trainer.fit()
    assert len(history.steps) == 7
    assert [record["step"] for record in history.evaluations] == [5, 7]
    assert history.steps[-1]["lr"] < history.steps[4]["lr"]  # the schedule is that of the shorter run


def test_eval_every_and_the_last_epoch(start):
    history = start(epochs=3, eval_every=2).fit()
    assert [record["epoch"] for record in history.evaluations] == [2, 3]


def test_without_validation_data_there_is_no_best(model, train_data, tmp_path, curve_drawn):
    config = TrainConfig(epochs=1, batch_size=8)
    trainer = Trainer(model, train_data, config=config, run_dir=tmp_path / "run")
    assert trainer.fit().evaluations == []
    assert not (tmp_path / "run" / "best").exists()
    assert (tmp_path / "run" / "learning_curve.png").exists()
    assert isinstance(miniclip.load(tmp_path / "run"), CLIPModel)


def test_directory_with_a_run_is_refused_and_unchanged(start):
    trainer = start()
    trainer.fit()
    before = {path: path.read_bytes() for path in trainer.run_dir.rglob("*") if path.is_file()}
    with pytest.raises(FileExistsError, match=r"already holds a run.*--resume") as error:
        start()
    assert "\n" not in str(error.value)
    assert {path: path.read_bytes() for path in trainer.run_dir.rglob("*") if path.is_file()} == before


def test_second_trainer_of_a_directory_leaves_the_run_of_the_first(start):
    first, second = start(callbacks=default(), max_steps=2), start(callbacks=default(), max_steps=1, lr=1e-4)
    first.fit()
    before = {path: path.read_bytes() for path in first.run_dir.rglob("*") if path.is_file()}
    with pytest.raises(FileExistsError, match=r"already holds a run.*--resume"):
        second.fit()
    assert {path: path.read_bytes() for path in first.run_dir.rglob("*") if path.is_file()} == before
    first.fit()  # has no steps left, and is not taken for another run


def test_run_killed_before_its_first_state_may_be_replaced(start, train_data, val_data):
    trainer = start(max_steps=1)
    trainer.fit()
    (trainer.run_dir / "state.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="stopped before its first state"):
        Trainer.resume(trainer.run_dir, train_data, val_data)
    for name in ("best", "last"):
        with pytest.raises(FileExistsError, match=f"holds a run .{name}"):
            start(max_steps=1)
        shutil.rmtree(trainer.run_dir / name)
    with pytest.raises(FileExistsError, match=r"metrics\.jsonl"):
        start(max_steps=1)
    (trainer.run_dir / "metrics.jsonl").write_text("")
    start(max_steps=1).fit()
    other = trainer.run_dir.with_name("other")
    other.mkdir()
    (other / "config.json").write_text('{"format": "another program"}')
    with pytest.raises(FileExistsError, match=r"config\.json"):
        start("other")


def test_file_instead_of_a_directory_is_refused(start, tmp_path):
    (tmp_path / "run").write_text("mine")
    with pytest.raises(FileExistsError, match="is a file"):
        start()


def test_resume_refuses_other_data(start, train_data, val_data):
    trainer = start(max_steps=1)
    trainer.fit()
    with pytest.raises(ValueError, match=r"train data: started with \(40 images.*now \(30 images.*allow_changes=True"):
        Trainer.resume(trainer.run_dir, Shapes("train", 30, image_size=16), val_data)
    with pytest.raises(ValueError, match="val data"):
        Trainer.resume(trainer.run_dir, train_data, None)


def test_resume_of_missing_and_damaged_runs(start, train_data, val_data, tmp_path):
    with pytest.raises(FileNotFoundError, match="no run there"):
        Trainer.resume(tmp_path / "nothing", train_data, val_data)
    trainer = start(max_steps=1)
    trainer.fit()
    state = trainer.run_dir / "state.safetensors"
    state.write_bytes(state.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="not a whole safetensors file"):
        Trainer.resume(trainer.run_dir, train_data, val_data)


def test_nonfinite_weights_stop_the_run_and_keep_the_last_state(start):
    trainer = start(log_every=1, max_nonfinite_steps=2)
    trainer.callbacks.append(
        type("Poison", (Callback,), {"on_step": lambda self, t, r: t.model.image.class_token.data.fill_(math.nan)})()
    )
    with pytest.raises(
        FloatingPointError, match=r"the embedding of image .* \(8 of 8 rows\), at step 4, the last of 3"
    ):
        trainer.fit()
    saved = read_state(trainer.run_dir / "state.safetensors")
    assert saved.progress.step == 0
    assert all(value.isfinite().all() for value in saved.weights.values())


def test_error_of_a_callback_is_raised_and_the_log_is_closed(start):
    trainer = start(callbacks=[*default(), Fail()])
    with pytest.raises(RuntimeError, match="of the user's"):
        trainer.fit()
    (log,) = [callback for callback in trainer.callbacks if isinstance(callback, MetricsFile)]
    assert log._file.closed


def test_failed_write_keeps_the_last_state(start, monkeypatch):
    trainer = start(callbacks=[])
    trainer.save()
    trainer.checkpointer.writer.wait()
    before = weights(trainer.run_dir)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    trainer.save()
    with pytest.raises(OSError, match="No space left"):
        trainer.checkpointer.writer.wait()
    after = weights(trainer.run_dir)
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert not [path for path in trainer.run_dir.iterdir() if path.name.startswith(".")]


def test_model_without_tokenizer_is_refused(start, model):
    model.tokenizer = None
    with pytest.raises(ValueError, match="no tokenizer"):
        start(model=model)


def test_empty_and_unreadable_data_are_refused(model, train_data, tmp_path):
    with pytest.raises(ValueError, match="empty"):
        Trainer(model, miniclip.data.Captions([], []), run_dir=tmp_path / "a")
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 no more")
    data = miniclip.data.Captions([tmp_path / "broken.jpg"] * 2, [["a broken picture"]] * 2)
    with pytest.raises(DataError, match=r"broken\.jpg"):
        Trainer(model, data, run_dir=tmp_path / "b")
    assert not (tmp_path / "b").exists()


def test_default_run_dir_is_the_next_free_one(model, train_data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "clip").mkdir(parents=True)
    trainer = Trainer(model, train_data)
    assert trainer.run_dir == Path("runs", "clip-2")
    assert not trainer.run_dir.exists()  # nothing is written before fit


def test_training_loop_fits_on_a_screen():
    import inspect

    assert len(inspect.getsource(Trainer.fit).splitlines()) <= 40


def siglip(tokenizer) -> CLIPModel:
    """Return a SigLIP: attention pooling, no class token, text that attends to its padding, and a bias."""
    image = ImageConfig(
        16, 8, 32, 1, 2, patch_bias=True, class_token=False, norm_before=False, pooling="attention", projection="none"
    )
    text = TextConfig(40, tokenizer.vocab_size, 32, 1, 2, padding="attended", pooling="last", projection="bias")
    torch.manual_seed(0)
    return CLIPModel(CLIPConfig(image, text, 32, logit_scale=10.0, logit_bias=-10.0), tokenizer).initialise()


@pytest.mark.parametrize("micro", [None, 4])
def test_siglip_is_trained_and_resumed(start, tokenizer, train_data, val_data, micro):
    settings = {"loss": "sigmoid", "micro_batch_size": micro}
    whole = start("whole", model=siglip(tokenizer), **settings)
    history = whole.fit()
    losses = [record["loss"] for record in history.steps]
    assert losses[-1] < losses[0]
    stopped = start("stopped", [*default(), StopAt(7)], model=siglip(tokenizer), **settings)
    with pytest.raises(KeyboardInterrupt):
        stopped.fit()
    Trainer.resume(stopped.run_dir, train_data, val_data, device="cpu").fit()
    assert_same_run(stopped.run_dir, whole.run_dir)
    loaded = miniclip.load(whole.run_dir / "last")
    assert torch.equal(loaded.encode_text("a red circle"), whole.model.eval().encode_text("a red circle"))


class Modes(Callback):
    """Recorder of the model's training mode at each step."""

    def __init__(self) -> None:
        self.steps = []

    def on_step(self, trainer, record):
        self.steps.append(trainer.model.training)


def test_dropout_of_a_user_is_active_only_in_training(start, model, monkeypatch):
    evaluated = []
    monkeypatch.setattr("miniclip.train.trainer.validate", spy(evaluated))
    modes = Modes()
    start(callbacks=[modes], model=model.eval(), epochs=2).fit()
    assert modes.steps
    assert all(modes.steps)
    assert evaluated == [False, False]
    assert not model.training


def spy(evaluated):
    from miniclip.train.validation import validate

    def watch(model, *arguments):
        evaluated.append(model.training)
        return validate(model, *arguments)

    return watch
