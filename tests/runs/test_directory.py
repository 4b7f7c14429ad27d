"""The run directory: its name, its protection, the identity of the data."""

import json
import os

import pytest

from miniclip.data import Captions, Shapes
from miniclip.errors import CheckpointError
from miniclip.runs.directory import fingerprint, next_run_dir, read_run, require_free, require_writable
from miniclip.train import Trainer


def test_next_free_name(tmp_path):
    assert next_run_dir(tmp_path / "run") == tmp_path / "run"
    (tmp_path / "run").mkdir()
    (tmp_path / "run-2").mkdir()
    assert next_run_dir(tmp_path / "run") == tmp_path / "run-3"


def test_fingerprint_depends_on_captions_and_their_order():
    data = Shapes("val", 3, image_size=16)
    same, other = Shapes("val", 3, image_size=32), Shapes("val", 3, image_size=16)
    other.captions[1].reverse()
    assert fingerprint(data) == fingerprint(same)
    assert fingerprint(data) != fingerprint(other)
    assert fingerprint(None) is None


def test_fingerprint_depends_on_file_names_but_not_on_folders():
    """Equal captions of other images: the order of the files is part of the identity."""
    captions = [["a cat"], ["a cat"], ["a dog"]]
    data = Captions(["x/0.jpg", "x/1.jpg", "x/2.jpg"], captions)
    assert fingerprint(data) == fingerprint(Captions(["/moved/0.jpg", "/moved/1.jpg", "/moved/2.jpg"], captions))
    assert fingerprint(data) != fingerprint(Captions(["x/1.jpg", "x/0.jpg", "x/2.jpg"], captions))
    assert fingerprint(data) != fingerprint(Captions(["x/0.jpg", "x/9.jpg", "x/2.jpg"], captions))


def test_another_config_is_refused(tmp_path):
    (tmp_path / "config.json").write_text('{"format": "miniclip"}')
    with pytest.raises(CheckpointError, match="not a run directory"):
        read_run(tmp_path)


@pytest.mark.parametrize("name", ["holiday.jpg", "config.json", "captions.csv", "folder"])
def test_directory_with_other_files_is_refused(start, tmp_path, name):
    folder = tmp_path / "my images"
    (folder / "folder").mkdir(parents=True) if name == "folder" else folder.mkdir()
    if name != "folder":
        (folder / name).write_text("{}")
    before = sorted(folder.rglob("*"))
    with pytest.raises(
        FileExistsError, match=rf"holds 1 other file \({name}\); a run needs a new or an empty directory"
    ):
        start("my images")
    assert sorted(folder.rglob("*")) == before


def test_empty_directories_and_logs_of_a_scheduler_are_accepted(start, tmp_path):
    (tmp_path / "run").mkdir()
    for name in (".gitkeep", "slurm-17.out", "train.log"):
        (tmp_path / "run" / name).write_text("")
    start(max_steps=1, callbacks=[]).fit()


def test_directory_inside_the_dataset_is_refused(tmp_path):
    (tmp_path / "images").mkdir()
    for path in (tmp_path / "images" / "run", tmp_path / "images" / ".." / "images" / "a" / "b"):
        with pytest.raises(FileExistsError, match="is in the folder of the dataset"):
            require_free(path, tmp_path / "images")
    require_free(tmp_path / "images-run", tmp_path / "images")
    assert [path.name for path in tmp_path.iterdir()] == ["images"]


@pytest.mark.parametrize("path", ["file/run", "file/a/b", "x" * 300, "a/" + "x" * 300])
def test_directory_that_cannot_be_made_is_named(start, tmp_path, path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"a run cannot be written there .*; choose another run directory"):
        start(path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_read_only_directory_is_named(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr("miniclip.runs.directory.write_atomically", refuse)
    with pytest.raises(OSError, match=r"run: a run cannot be written there \(Read-only file system\)"):
        require_writable(tmp_path / "a" / "run")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root may write anywhere")
def test_directory_without_permission_is_named(tmp_path):
    (tmp_path / "locked").mkdir(mode=0o500)
    with pytest.raises(PermissionError, match="cannot be written there"):
        require_writable(tmp_path / "locked" / "run")


def test_resume_of_a_directory_that_cannot_be_written(start, train_data, val_data, monkeypatch):
    trainer = start(max_steps=1, callbacks=[])
    trainer.fit()

    def refuse(*_):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr("miniclip.runs.directory.write_atomically", refuse)
    monkeypatch.setattr("miniclip.runs.resume.load_model", lambda *_: pytest.fail("the model was built"))
    with pytest.raises(OSError, match="Read-only file system"):
        Trainer.resume(trainer.run_dir, train_data, val_data)
    assert json.loads((trainer.run_dir / "config.json").read_text())["train"]["max_steps"] == 1


def test_suggested_command_is_quoted(start, tmp_path):
    start("my größe", max_steps=1, callbacks=[]).fit()
    with pytest.raises(FileExistsError) as error:
        start("my größe")
    assert f"`miniclip train --resume '{tmp_path / 'my größe'}'`" in str(error.value)
