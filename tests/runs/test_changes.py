"""Changed data and settings of a resumed run: refused by default, allowed on request, named and recorded."""

import json
from pathlib import Path

import pytest
import torch

import miniclip
from miniclip.cli.train import format_summary
from miniclip.data import Shapes
from miniclip.runs.changes import NEUTRAL, accepting_command, changed_settings
from miniclip.runs.history import History
from miniclip.runs.metrics_file import MetricsFile
from miniclip.train import TrainConfig, Trainer
from miniclip.utils.option_names import flags
from tests.toys import StopAt


def test_differences_are_named(start, train_data, val_data):
    trainer = start(callbacks=[], max_steps=3)
    trainer.fit()
    with pytest.raises(ValueError, match=r"lr: started with 0\.001, now 0\.0001\. To resume .* allow_changes=True"):
        Trainer.resume(trainer.run_dir, train_data, val_data, settings={"lr": 1e-4})
    with pytest.raises(ValueError, match="unknown setting 'learning_rate'"):
        Trainer.resume(trainer.run_dir, train_data, val_data, settings={"learning_rate": 1e-4})


def test_another_optimizer_is_refused(start, train_data, val_data):
    """The moments of one mean nothing to the other."""
    trainer = start(callbacks=[], max_steps=3)
    trainer.fit()
    with pytest.raises(ValueError, match="optimizer: started with adamw, now muon"):
        Trainer.resume(trainer.run_dir, train_data, val_data, settings={"optimizer": "muon"}, allow_changes=True)


def test_allowed_changes_are_recorded_in_the_run(start, train_data, val_data):
    trainer = start(callbacks=[], max_steps=3)
    trainer.fit()
    for lr, steps in ((1e-4, 5), (1e-5, 7)):
        resumed = Trainer.resume(
            trainer.run_dir, train_data, val_data, settings={"lr": lr, "max_steps": steps}, allow_changes=True,
            callbacks=[], device="cpu",
        )  # fmt: skip
        resumed.fit()
        assert resumed.step == steps
    written = json.loads((trainer.run_dir / "config.json").read_text())
    assert written["train"]["lr"] == 1e-5
    assert written["changes"] == [
        {"step": 3, "lr": [1e-3, 1e-4], "max_steps": [3, 5]},
        {"step": 5, "lr": [1e-4, 1e-5], "max_steps": [5, 7]},
    ]


def test_neutral_settings_need_no_permission(start, train_data, val_data):
    trainer = start(callbacks=[], max_steps=3)
    trainer.fit()
    settings = {"log_every": 1, "keep_checkpoints": 2, "save_minutes": 1.0}
    assert settings.keys() <= NEUTRAL
    resumed = Trainer.resume(trainer.run_dir, train_data, val_data, settings=settings, callbacks=[], device="cpu")
    resumed.fit()
    written = json.loads((trainer.run_dir / "config.json").read_text())
    assert written["train"]["keep_checkpoints"] == 2  # the run records the settings in use
    assert written["changes"][-1].keys() == {"step", *settings}
    with pytest.raises(ValueError, match="max_steps: started with 3, now 4"):  # it changes the learning rate
        Trainer.resume(trainer.run_dir, train_data, val_data, settings={"max_steps": 4})


def test_another_monitored_metric_resets_the_best_value(start, train_data, val_data):
    trainer = start(callbacks=[], max_steps=5)
    trainer.fit()
    assert trainer.progress.best >= 0
    settings = {"monitor": "val_loss", "max_steps": None}
    resumed = Trainer.resume(
        trainer.run_dir, train_data, val_data, settings=settings, allow_changes=True, callbacks=[], device="cpu"
    )
    assert resumed.progress.best is None
    history = resumed.fit()
    assert resumed.progress.best == -history.evaluations[-1]["val_loss"]  # a recall in 0..100 would always be greater


@pytest.mark.parametrize(
    ("monitor", "settings", "images", "is_kept"),
    [
        ("recall", {}, 18, False),
        ("recall", {"batch_size": 4, "seed": 5}, 20, True),
        ("val_loss", {"batch_size": 4}, 20, False),
        ("val_loss", {"seed": 5}, 20, False),
        ("val_loss", {"lr": 1e-4}, 20, True),
    ],
)
def test_best_value_is_kept_if_later_ones_can_be_compared(start, train_data, monitor, settings, images, is_kept):
    trainer = start(callbacks=[], max_steps=5, monitor=monitor)
    trainer.fit()
    options = {"settings": settings, "allow_changes": True, "callbacks": [], "device": "cpu"}
    resumed = Trainer.resume(trainer.run_dir, train_data, Shapes("val", images, image_size=16), **options)
    kept = (resumed.progress.best, resumed.progress.best_step)
    assert kept == ((trainer.progress.best, 5) if is_kept else (None, -1))


@pytest.mark.parametrize(
    ("value_of_10", "is_damaged", "is_kept"),
    [(3.0, False, False), (1.0, False, True), (1.0, True, False)],
    ids=["dropped", "kept", "unknown"],
)
def test_best_is_of_the_new_branch(start, train_data, val_data, monkeypatch, value_of_10, is_damaged, is_kept):
    values = {5: 2.0, 10: value_of_10}
    monkeypatch.setattr("miniclip.train.trainer.monitored", lambda record, _: values[record["step"]])
    trainer = start(callbacks=[MetricsFile()], keep_checkpoints=9)
    trainer.fit()
    if is_damaged:
        newest = trainer.run_dir / "state.safetensors"
        newest.unlink()  # its file has two names
        newest.write_bytes(b"broken")
    options = {"settings": {"lr": 1e-6}, "allow_changes": True, "callbacks": [MetricsFile()], "device": "cpu"}
    resumed = Trainer.resume(trainer.run_dir, train_data, val_data, step=5, **options)
    assert resumed.progress.best == (2.0 if is_kept else None)
    values[10] = 1.0
    resumed.fit()
    best, last = (miniclip.load(trainer.run_dir / name).state_dict() for name in ("best", "last"))
    is_last = all(torch.equal(value, last[name]) for name, value in best.items())
    assert is_last == (not is_kept)
    assert ("last and best (epoch 2)" in format_summary(resumed)) == is_last
    assert ("best (epoch 1)" in format_summary(resumed)) == is_kept


@pytest.mark.parametrize("settings", [{"batch_size": 4}, {"seed": 5}, {}])
def test_other_batches_restart_the_epoch(start, val_data, settings):
    trainer = start(callbacks=[], max_steps=3)
    trainer.fit()
    data = Shapes("train", 48, image_size=16)
    resumed = Trainer.resume(
        trainer.run_dir, data, val_data, settings=settings | {"max_steps": None}, allow_changes=True, callbacks=[],
        device="cpu",
    )  # fmt: skip
    steps = 48 // resumed.config.batch_size
    assert resumed.total_steps == 3 + 2 * steps
    history = resumed.fit()
    assert [record["step"] for record in history.evaluations] == [3 + steps, 3 + 2 * steps]
    again = Trainer.resume(trainer.run_dir, data, val_data, callbacks=[], device="cpu")
    assert again.total_steps == again.step == 3 + 2 * steps


def test_more_epochs(start, train_data, val_data):
    trainer = start(callbacks=[])
    trainer.fit()
    resumed = Trainer.resume(
        trainer.run_dir, train_data, val_data, settings={"epochs": 3}, allow_changes=True, callbacks=[], device="cpu"
    )
    assert [record["step"] for record in resumed.fit().evaluations][-1] == 15


def test_another_length_names_its_effect_on_the_schedule(start, train_data, val_data):
    trainer = start(callbacks=[])
    trainer.fit()
    message = (
        r"epochs: started with 2, now 4\. The number of steps sets the schedule of the learning rate: after step 10 "
        r"the rate would be 0\.001 \(schedule of 20 steps\), not 0 \(schedule of 10 steps\)"
    )
    with pytest.raises(ValueError, match=message):
        Trainer.resume(trainer.run_dir, train_data, val_data, settings={"epochs": 4})
    with pytest.raises(ValueError, match=r"add allow_changes=True"):
        Trainer.resume(trainer.run_dir, train_data, val_data, settings={"epochs": 4})


@pytest.mark.parametrize(
    ("changes", "about", "advice"),
    [
        (
            {"lr": (1e-3, 1e-4), "flip": (False, True)},
            {"data": "shapes"},
            "use `miniclip train --resume 'my run' --lr 0.0001 --flip --allow-changes`",
        ),
        (
            {"train data": ("(1)", "(2)")},
            {"data": "/my data"},
            "use `miniclip train --resume 'my run' --data '/my data' --allow-changes`",
        ),
        ({"max_steps": (3, None)}, {"data": "shapes"}, "add --allow-changes"),
        ({"callback A": ("", "")}, {"data": "shapes"}, "add --allow-changes"),
        ({"lr": (1e-3, 1e-4)}, {}, "add --allow-changes"),
    ],
    ids=["settings", "data", "unset", "callback", "Python"],
)
def test_advice_can_be_followed(changes, about, advice):
    with flags({"allow_changes": "--allow-changes{}"}):
        assert accepting_command(Path("my run"), changes, about) == advice
    assert accepting_command(Path("my run"), changes, about) == "add allow_changes=True"


def test_every_setting_is_compared():
    assert changed_settings(TrainConfig(), TrainConfig(lr=1.0, keep_checkpoints=2)) == {
        "lr": (1e-3, 1.0),
        "keep_checkpoints": (1, 2),
    }


def test_advised_command_keeps_the_step(start, train_data, val_data):
    trainer = start(callbacks=[], keep_checkpoints=2)
    trainer.fit()
    options = {"settings": {"lr": 1e-4}, "step": 5, "about": {"data": "photos.csv"}}
    command = r"--resume \S+ --step 5 --lr 0\.0001 --allow-changes"
    with flags({"allow_changes": "--allow-changes{}"}), pytest.raises(ValueError, match=command):
        Trainer.resume(trainer.run_dir, train_data, val_data, **options)


class KillAt(StopAt):
    """Ends a run without a save, as a kill does, when the record of a step is logged."""

    def on_step(self, trainer, record):
        if record["step"] == self.step:
            raise MemoryError


@pytest.mark.parametrize("step", [6, 4], ids=["newest state", "earlier state"])
def test_changes_survive_a_kill_before_the_next_save(start, train_data, val_data, step):
    """A run that is killed and resumed ends like an undisturbed one with the same changes."""
    ends, settings = [], {"batch_size": 4, "monitor": "val_loss", "save_every": None}
    for run in ("killed", "whole"):
        stopped = start(run, [MetricsFile(), StopAt(7)], log_every=1, save_every=1, keep_checkpoints=9)
        with pytest.raises(KeyboardInterrupt):
            stopped.fit()
        options = {"settings": settings, "allow_changes": True, "step": None if step == 6 else step, "device": "cpu"}
        if run == "killed":
            callbacks = [MetricsFile(), KillAt(step + 1)]
            with pytest.raises(MemoryError):
                Trainer.resume(stopped.run_dir, train_data, val_data, callbacks=callbacks, **options).fit()
            options = {"device": "cpu"}
        resumed = Trainer.resume(stopped.run_dir, train_data, val_data, callbacks=[MetricsFile()], **options)
        assert (resumed.step, resumed.progress.best, resumed.config.batch_size) == (step, None, 4)
        resumed.fit()
        losses = [record["loss"] for record in History.read(stopped.run_dir).steps]
        ends.append((resumed.progress, losses, json.loads((stopped.run_dir / "config.json").read_text())["changes"]))
    assert ends[0] == ends[1]


@pytest.mark.parametrize("killed", ["miniclip.runs.checkpointer.state.save_state", "miniclip.train.trainer.start_run"])
def test_kill_while_a_change_is_written_loses_no_record(start, train_data, val_data, monkeypatch, killed):
    def kill(*_):
        raise MemoryError

    trainer = start(callbacks=[MetricsFile()], log_every=1, save_every=2, keep_checkpoints=9)
    before = trainer.fit()
    options = {"settings": {"lr": 1e-4}, "allow_changes": True, "step": 6, "device": "cpu"}
    for attempt in (1, 2):
        resumed = Trainer.resume(trainer.run_dir, train_data, val_data, callbacks=[MetricsFile()], **options)
        if attempt == 1:
            monkeypatch.setattr(killed, kill)
            with pytest.raises(MemoryError):
                resumed.fit()
            monkeypatch.undo()
            assert History.read(trainer.run_dir) == before
            assert json.loads((trainer.run_dir / "config.json").read_text())["changes"] == []
    assert resumed.step == 6
    assert [record["step"] for record in resumed.fit().steps] == list(range(1, 11))


def test_change_keeps_the_states_of_the_callbacks_that_are_there(start, train_data, val_data):
    class Counter(MetricsFile):
        def state_dict(self):
            return {"count": 1}

    trainer = start(callbacks=[Counter()], max_steps=3)
    trainer.fit()
    options = {"settings": {"lr": 1e-4}, "allow_changes": True, "device": "cpu"}
    assert Trainer.resume(trainer.run_dir, train_data, val_data, callbacks=[Counter()], **options).progress.callbacks
    changed = Trainer.resume(trainer.run_dir, train_data, val_data, callbacks=[], **options)
    assert changed.progress.callbacks == {}  # else the next resume would need them again
