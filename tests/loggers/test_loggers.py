"""TensorBoard and Weights & Biases: complete logs without duplicates, and failures that do not end the run."""

import json
import sys
import types

import pytest

from miniclip import cli
from miniclip.loggers.defaults import default_callbacks
from miniclip.train import Callback, Trainer


class StopAt(Callback):
    """Ends the run as a kill would, after the loggers have logged records that no training state has."""

    def __init__(self, step, event="step"):
        self.step, self.event = step, event

    def on_step(self, trainer, record):
        if (self.event, self.step) == ("step", record["step"]):
            raise RuntimeError("killed")

    def after_evaluate(self, trainer, record):
        if (self.event, self.step) == ("evaluation", record["step"]):
            raise RuntimeError("killed")


STOPS = [(9, "step"), (5, "evaluation")]  # within an epoch; after an evaluation that the saved state does not contain


def stopped_and_resumed(start, train_data, val_data, stop, **settings):
    """Return a resumed run that was killed after its state of step 5."""
    settings = {"log_every": 1, "save_every": 5, "epochs": 2, **settings}
    killed = start("run", [*default_callbacks(), StopAt(*stop)], **settings)
    killed.callbacks.sort(key=lambda callback: isinstance(callback, StopAt))  # after the loggers
    with pytest.raises(RuntimeError, match="killed"):
        killed.fit()
    resumed = Trainer.resume(killed.run_dir, train_data, val_data, device="cpu")
    assert (resumed.step, resumed.epoch) == (5, stop[1] == "step")
    resumed.fit()
    return resumed


class TestTensorBoard:
    @pytest.fixture
    def read(self):
        pytest.importorskip("tensorboard")
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        return lambda run: EventAccumulator(str(run / "tensorboard")).Reload()

    def test_logs_scalars_plots_and_settings(self, start, read, drawn):
        trainer = start(tensorboard=True, log_every=3)
        history = trainer.fit()
        events = read(trainer.run_dir)
        assert [e.step for e in events.Scalars("step/loss")] == [1, 3, 6, 9, 10]
        assert [e.value for e in events.Scalars("step/loss")] == pytest.approx(
            [history.steps[n - 1]["loss"] for n in (1, 3, 6, 9, 10)]
        )
        assert [e.step for e in events.Scalars("validation/text_to_image/R@1")] == [5, 10]
        assert {"step/lr", "step/logit_scale", "step/samples_per_second", "validation/val_loss"} <= set(
            events.Tags()["scalars"]
        )
        assert {"plots/similarities", "plots/confusions"} <= set(events.Tags()["images"])
        assert "settings/text_summary" in events.Tags()["tensors"]

    @pytest.mark.parametrize("stop", STOPS)
    def test_resumed_run_has_every_step_once(self, start, read, train_data, val_data, stop):
        trainer = stopped_and_resumed(start, train_data, val_data, stop, tensorboard=True)
        events = read(trainer.run_dir)
        assert [e.step for e in events.Scalars("step/loss")] == list(range(1, 11))
        assert [e.step for e in events.Scalars("validation/val_loss")] == [5, 10]
        assert [e.value for e in events.Scalars("step/loss")] == pytest.approx(
            [record["loss"] for record in trainer.history.steps]
        )

    def test_missing_package_prevents_the_start(self, start, monkeypatch, tmp_path, capsys):
        monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
        with pytest.raises(ImportError, match=r"pip install \"miniclip\[tensorboard\]\""):
            start(tensorboard=True)
        options = ["--tensorboard", "--max-steps", "1", "--precision", "float32", "--run-dir", str(tmp_path / "run")]
        assert cli.main(["train", *options]) == 2
        assert capsys.readouterr().err.startswith(
            "miniclip: the setting tensorboard needs the package tensorboard: pip install"
        )

    def test_full_disk_warns_once_and_does_not_end_the_run(self, start, read, monkeypatch):
        from torch.utils.tensorboard import SummaryWriter

        def full(*_, **__):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(SummaryWriter, "add_scalar", full)
        trainer = start(tensorboard=True)
        with pytest.warns(
            UserWarning, match="TensorBoardLogger: OSError: .*No space left.*; the run continues"
        ) as warned:
            assert len(trainer.fit().steps) == 10
        assert len([w for w in warned if "No space" in str(w.message)]) == 1


class FakeWandb(types.ModuleType):
    """Stores what it receives."""

    def __init__(self):
        super().__init__("wandb")
        self.inits, self.rows, self.finished = [], [], 0
        self.Image = lambda path: ("image", path)

    def init(self, **options):
        self.inits.append(options)
        return self

    @property
    def id(self):
        return self.inits[-1]["id"] or "abc123"

    def define_metric(self, name, step_metric):
        assert (name, step_metric) == ("*", "step")

    def log(self, row):
        self.rows.append(row)

    def finish(self):
        self.finished += 1


class TestWandb:
    @pytest.fixture
    def fake(self, monkeypatch):
        fake = FakeWandb()
        monkeypatch.setitem(sys.modules, "wandb", fake)
        return fake

    def test_logs_scalars_plots_and_settings(self, start, fake, drawn):
        trainer = start(wandb="my-project", log_every=5)
        trainer.fit()
        (options,) = fake.inits
        assert (options["project"], options["name"], options["resume"]) == ("my-project", "run", None)
        assert options["config"]["batch_size"] == 8
        assert options["config"]["model"]["embed_dim"] == 16
        assert [row["step"] for row in fake.rows if "train/loss" in row] == [1, 5, 10]
        evaluations = [row for row in fake.rows if "validation/val_loss" in row]
        assert [row["step"] for row in evaluations] == [5, 10]
        assert evaluations[0]["plots/confusions"] == ("image", str(trainer.run_dir / "confusions.png"))
        assert fake.finished == 1
        assert json.loads((trainer.run_dir / "wandb.json").read_text()) == {
            "id": "abc123",
            "step": 10,
            "evaluation": 10,
        }

    @pytest.mark.parametrize("stop", STOPS)
    def test_resumed_run_continues_without_duplicates(self, start, fake, train_data, val_data, stop):
        stopped_and_resumed(start, train_data, val_data, stop, wandb="p")
        first, second = fake.inits
        assert (first["id"], second["id"], second["resume"]) == (None, "abc123", "allow")
        assert [row["step"] for row in fake.rows if "train/loss" in row] == list(range(1, 11))
        assert [row["step"] for row in fake.rows if "validation/val_loss" in row] == [5, 10]

    def test_steps_repeated_with_other_settings_are_a_new_run(self, start, fake, train_data, val_data):
        killed = start("run", [*default_callbacks(), StopAt(9)], log_every=1, save_every=5, wandb="p")
        killed.callbacks.sort(key=lambda callback: isinstance(callback, StopAt))  # after the logger
        with pytest.raises(RuntimeError, match="killed"):
            killed.fit()
        changes = {"settings": {"lr": 1e-4}, "allow_changes": True}
        Trainer.resume(killed.run_dir, train_data, val_data, device="cpu", **changes).fit()
        assert [options["id"] for options in fake.inits] == [None, None]
        assert [row["step"] for row in fake.rows if "train/loss" in row] == [*range(1, 10), *range(6, 11)]

    @pytest.mark.parametrize("broken", ["init", "log", "finish"])
    def test_unreachable_service_warns_once_and_does_not_end_the_run(self, start, fake, monkeypatch, broken):
        def away(*_, **__):
            raise ConnectionError("no route\nto host")

        monkeypatch.setattr(fake, broken, away)
        trainer = start(wandb="p")
        with pytest.warns(UserWarning, match="WandbLogger: ConnectionError: no route to host") as warned:
            assert len(trainer.fit().steps) == 10
        assert len([w for w in warned if "no route" in str(w.message)]) == 1
        assert len((trainer.run_dir / "metrics.jsonl").read_text().splitlines()) == 12

    def test_missing_package_prevents_the_start(self, start, monkeypatch):
        monkeypatch.setitem(sys.modules, "wandb", None)
        with pytest.raises(ImportError, match=r"pip install \"miniclip\[wandb\]\""):
            start(wandb="p")

    def test_damaged_state_starts_a_new_wandb_run(self, start, fake):
        trainer = start(wandb="p")
        trainer.run_dir.mkdir()
        (trainer.run_dir / "wandb.json").write_text("[1")
        trainer.fit()
        assert fake.inits[0]["id"] is None

    def test_real_package_offline(self, start, monkeypatch, tmp_path):
        pytest.importorskip("wandb")
        for name in ("WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR"):
            monkeypatch.setenv(name, str(tmp_path / name))
        monkeypatch.setenv("WANDB_MODE", "offline")
        monkeypatch.setenv("WANDB_SILENT", "true")
        trainer = start(wandb="p", max_steps=4)
        trainer.fit()
        state = json.loads((trainer.run_dir / "wandb.json").read_text())
        assert state["step"] == 4
        (file,) = (trainer.run_dir / "wandb").glob(f"offline-run-*/run-{state['id']}.wandb")
        assert file.stat().st_size > 0


class TestOptional:
    def test_failing_required_callback_ends_the_run(self, start):
        with pytest.raises(RuntimeError, match="killed"):
            start(callbacks=[StopAt(2)]).fit()

    def test_settings_add_loggers_to_any_callbacks(self, start, monkeypatch):
        fake = FakeWandb()
        monkeypatch.setitem(sys.modules, "wandb", fake)
        start(callbacks=[], wandb="p", max_steps=1).fit()
        assert fake.rows
