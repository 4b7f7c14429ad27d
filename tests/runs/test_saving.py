"""Checkpoints: when, how many, in the background; what becomes of them on a disk that is full."""

import os
import subprocess
import sys
import threading

import pytest
import torch

from miniclip import cli
from miniclip.errors import CheckpointError
from miniclip.runs import state
from miniclip.runs.progress import Progress
from miniclip.runs.saving import BackgroundWriter
from miniclip.runs.state import list_states, read_state
from miniclip.train import Callback, TrainConfig, Trainer
from miniclip.train.validation import monitored


def test_write_uses_the_values_at_its_start():
    writer, go, found = BackgroundWriter(background=True), threading.Event(), []
    tensors = {"a": torch.zeros(3)}
    copy = writer.copy(tensors)

    def write():
        go.wait(timeout=30)
        found.append(copy["a"].clone())

    writer.start(write)
    tensors["a"].fill_(1)
    go.set()
    writer.wait()
    assert torch.equal(found[0], torch.zeros(3))


def test_writes_are_in_order_and_an_error_is_raised_once():
    writer, found = BackgroundWriter(background=True), []
    for number in range(20):
        writer.start(lambda number=number: found.append(number))
    writer.wait()
    assert found == list(range(20))

    def fail():
        raise OSError(28, "No space left on device")

    writer.start(fail)
    with pytest.raises(OSError, match="No space left"):
        writer.wait()
    writer.wait()


def test_first_error_is_not_replaced():
    def fail():
        raise OSError("the disk")

    def fail_twice():
        with BackgroundWriter(background=True) as writer:
            writer.start(fail)
            raise ValueError("the user's")

    with pytest.raises(ValueError, match="the user's"):
        fail_twice()
    with pytest.raises(OSError, match="the disk"), BackgroundWriter(background=True) as writer:
        writer.start(fail)


def test_writes_after_a_failed_one_are_left_out():
    """A state must not name a best checkpoint that could not be written."""

    def fail():
        raise OSError("the disk")

    go, written = threading.Event(), []
    writer = BackgroundWriter(background=True)
    writer.start(lambda: go.wait(timeout=30))
    writer.start(fail)
    writer.start(lambda: written.append("state"))
    go.set()
    with pytest.raises(OSError, match="the disk"):
        writer.wait()
    assert written == []
    writer.start(lambda: written.append("later"))  # the caller got the error, and may have made room
    writer.wait()
    assert written == ["later"]


@pytest.mark.parametrize("background", [True, False])
def test_files_do_not_depend_on_the_background_thread(start, background):
    trainer = start(callbacks=[], save_in_background=background, save_every=2)
    trainer.fit()
    saved = read_state(trainer.run_dir / "state.safetensors")
    assert (
        saved.progress
        == trainer.progress
        == Progress(10, 2, 10, 10, 10, trainer.progress.best, best_step=trainer.progress.best_step)
    )
    for name, value in trainer.model.state_dict().items():
        assert torch.equal(saved.weights[name], value)


def test_newest_states_are_kept_and_each_resumes_to_the_same_end(start, train_data, val_data):
    trainer = start(callbacks=[], save_every=2, keep_checkpoints=3)
    trainer.fit()
    assert list(list_states(trainer.run_dir)) == [6, 8, 10]
    end = read_state(trainer.run_dir / "state.safetensors")
    resumed = Trainer.resume(trainer.run_dir, train_data, val_data, step=6, callbacks=[], device="cpu")
    assert resumed.step == 6
    resumed.fit()
    again = read_state(trainer.run_dir / "state.safetensors")
    assert all(torch.equal(end.weights[key], again.weights[key]) for key in end.weights)
    assert list(list_states(trainer.run_dir)) == [6, 8, 10]
    with pytest.raises(FileNotFoundError, match="no state of step 7; available: 6, 8, 10"):
        Trainer.resume(trainer.run_dir, train_data, val_data, step=7)


def test_kill_between_the_names_of_a_state_loses_no_state(start, train_data, val_data, monkeypatch):
    link = state._link

    def kill_at_step_8(path, name):
        if "00000008" in path.name:
            raise KeyboardInterrupt
        link(path, name)

    trainer = start(callbacks=[], save_every=2, keep_checkpoints=3, save_in_background=False)
    monkeypatch.setattr(state, "_link", kill_at_step_8)
    with pytest.raises(KeyboardInterrupt):
        trainer.fit()
    monkeypatch.undo()
    resumed = Trainer.resume(trainer.run_dir, train_data, val_data, callbacks=[], device="cpu")
    assert resumed.step == 6
    resumed.fit()
    assert list(list_states(trainer.run_dir)) == [6, 8, 10]


def test_going_back_drops_later_states(start, train_data, val_data):
    trainer = start(callbacks=[], save_every=2, keep_checkpoints=3)
    trainer.fit()
    resumed = Trainer.resume(
        trainer.run_dir,
        train_data,
        val_data,
        step=6,
        settings={"max_steps": 7},
        allow_changes=True,
        callbacks=[],
        device="cpu",
    )
    resumed.fit()
    assert list(list_states(trainer.run_dir)) == [6, 7]


def test_damaged_newest_state_leaves_earlier_ones(start, train_data, val_data):
    trainer = start(callbacks=[], save_every=5, keep_checkpoints=2)
    trainer.fit()
    newest = trainer.run_dir / "state.safetensors"
    newest.unlink()  # its file has two names
    newest.write_bytes(b"broken")
    with pytest.raises(CheckpointError, match=r"state\.safetensors.*go back with --step 10, or one of 5"):
        Trainer.resume(trainer.run_dir, train_data, val_data)
    assert Trainer.resume(trainer.run_dir, train_data, val_data, step=5, device="cpu").step == 5


def test_temporary_files_of_a_kill_are_removed(start, train_data, val_data):
    trainer = start(callbacks=[], max_steps=1)
    trainer.fit()
    left = [trainer.run_dir / ".state.safetensors.0123abcd", trainer.run_dir / "last" / ".model.safetensors.89abcdef"]
    mine = trainer.run_dir / ".notes.txt"
    for path in (*left, mine):
        path.write_text("half")
    again = Trainer.resume(trainer.run_dir, train_data, val_data, callbacks=[], device="cpu")
    assert all(path.exists() for path in left)  # they could belong to a running process
    again.fit()
    assert not any(path.exists() for path in left)
    assert mine.exists()


class Clock(Callback):
    def __init__(self):
        self.saves = []

    def on_save(self, trainer):
        self.saves.append(trainer.step)


def test_save_minutes(start, monkeypatch):
    now = [0.0]
    monkeypatch.setattr("miniclip.runs.checkpointer.time.perf_counter", lambda: now.append(now[-1] + 20) or now[-1])
    clock = Clock()
    start(callbacks=[clock], save_minutes=1.0, log_every=1).fit()
    often = clock.saves
    clock = Clock()
    start("other", callbacks=[clock], save_minutes=None, log_every=1).fit()
    assert clock.saves == [0, 5, 10]
    assert {0, 5, 10} < set(often)


@pytest.mark.parametrize(
    ("monitor", "best"), [("recall", 2.5), ("text_to_image", 2.0), ("image_to_text", 3.0), ("val_loss", -0.5)]
)
def test_monitored(monitor, best):
    record = {"text_to_image": {"R@1": 2.0}, "image_to_text": {"R@1": 3.0}, "val_loss": 0.5}
    assert monitored(record, monitor) == best
    assert TrainConfig(monitor=monitor).monitor == monitor


def test_best_checkpoint_by_validation_loss(start):
    trainer = start(monitor="val_loss", epochs=3, callbacks=[])
    history = trainer.fit()
    assert trainer.progress.best == -min(record["val_loss"] for record in history.evaluations)


@pytest.fixture
def disk(tmp_path):
    """Function that mounts a real disk of some KiB; the test is skipped if that is not allowed."""
    if sys.platform != "linux" or os.geteuid() != 0:
        pytest.skip("mounting a small disk takes Linux, and root")
    place = tmp_path / "disk"
    place.mkdir()

    def mount(options):
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", place], capture_output=True)
        if done.returncode:
            pytest.skip("no small disk can be mounted here")
        return place

    yield mount
    subprocess.run(["umount", "-l", place], capture_output=True)  # lazily: a state may still be mapped


@pytest.mark.slow
@pytest.mark.parametrize(("change", "message"), [("size={room}k", "No space left"), ("ro", "Read-only file system")])
def test_full_or_read_only_disk_leaves_the_last_state(start, train_data, val_data, disk, change, message):
    """A full disk has room for the first state but not for a second; the other disk turns read-only."""
    trainer = start(callbacks=[], max_steps=1)
    trainer.fit()
    room = sum(path.stat().st_size for path in trainer.run_dir.rglob("*") if path.is_file()) // 1024 + 40
    run = disk("size=100m") / "run"
    subprocess.run(["cp", "-r", trainer.run_dir, run], check=True)
    before = (run / "state.safetensors").read_bytes()
    resumed = Trainer.resume(
        run, train_data, val_data, settings={"max_steps": 4}, allow_changes=True, callbacks=[], device="cpu"
    )
    disk(f"remount,{change.format(room=room)}")
    with pytest.raises(OSError, match=message):
        resumed.fit()
    assert (run / "state.safetensors").read_bytes() == before
    assert not list(run.glob(".*"))


@pytest.mark.slow
def test_command_line_prints_one_line_and_exits_with_2(disk, capsys, small_shapes):
    run = disk("size=1m") / "run"
    settings = ["--max-steps", "1", "--batch-size", "4", "--precision", "float32", "--device", "cpu"]
    assert cli.main(["train", "--run-dir", str(run), *settings]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("miniclip:")]
    assert "the disk is full" in line
