"""The lock on a directory, also after errors, kills and forks."""

import os
import subprocess
import sys

import pytest

from miniclip.data import Shapes
from miniclip.data.cache.writing import CacheOptions, build_cache
from miniclip.hub import fresh
from miniclip.train import TrainConfig, Trainer
from miniclip.utils.lock import lock_directory

pytest.importorskip("fcntl")

HOLD = "import sys, pathlib, miniclip.utils.lock as m\nwith m.lock_directory(pathlib.Path(sys.argv[1])):\n  {}"
WAIT = "print('held', flush=True); sys.stdin.read()"


@pytest.fixture
def holder(tmp_path):
    """Another process that holds the lock until it is killed."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD.format(WAIT), tmp_path / "a"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdout.readline() == b"held\n"
    yield process
    process.kill()
    process.communicate()


def test_second_caller_is_refused_with_advice(tmp_path):
    with (
        lock_directory(tmp_path / "a"),
        pytest.raises(BlockingIOError, match="a: another process is writing there; wait"),
    ):
        lock_directory(tmp_path / "a").__enter__()
    with lock_directory(tmp_path / "a"), lock_directory(tmp_path / "b"):
        pass
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a", "b"]  # no lock file


def test_error_releases_the_lock(tmp_path):
    with pytest.raises(KeyError), lock_directory(tmp_path):
        raise KeyError
    with lock_directory(tmp_path):
        pass


def test_kill_releases_the_lock(tmp_path, holder):
    with pytest.raises(BlockingIOError):
        lock_directory(tmp_path / "a").__enter__()
    holder.kill()
    holder.wait()
    with lock_directory(tmp_path / "a"):
        pass


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_forked_child_does_not_keep_the_lock(tmp_path):
    child = "import os\n  if os.fork() == 0: print(os.getpid(), flush=True); sys.stdin.read()\n"  # after its release
    child += "  os._exit(0)"
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD.format(child), tmp_path], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    pid = int(process.stdout.readline())
    process.wait()  # the parent has ended, its child waits on stdin
    os.kill(pid, 0)
    with lock_directory(tmp_path):
        pass
    process.communicate()


def test_only_one_process_trains_a_run(tmp_path, toy_config, toy_tokenizer):
    trainer = Trainer(
        fresh(toy_config, toy_tokenizer),
        Shapes("train", 8, image_size=16),
        config=TrainConfig(max_steps=1, batch_size=4),
        run_dir=tmp_path,
        callbacks=[],
        device="cpu",
    )
    with lock_directory(tmp_path), pytest.raises(BlockingIOError, match="another process is writing there"):
        trainer.fit()
    assert not list(tmp_path.iterdir())
    trainer.fit()
    being_written = tmp_path / ".state.safetensors.0123abcd"
    being_written.touch()
    again = Trainer.resume(tmp_path, trainer.train_data, callbacks=[], device="cpu")
    with lock_directory(tmp_path), pytest.raises(BlockingIOError, match="another process is writing there"):
        again.fit()
    assert being_written.exists()
    again.fit()
    assert not being_written.exists()  # a temporary file of a killed process


def test_a_split_of_a_cache_is_built_by_one_process(tmp_path, toy_config, toy_tokenizer):
    preprocess, options = fresh(toy_config, toy_tokenizer).preprocess, CacheOptions(num_workers=0)
    build_cache(Shapes("test", 8, image_size=16), tmp_path, preprocess, split="test", options=options)
    with lock_directory(tmp_path / "train"):
        with pytest.raises(BlockingIOError, match="another process is writing there"):
            build_cache(Shapes("train", 8, image_size=16), tmp_path, preprocess, options=options)
        build_cache(Shapes("val", 8, image_size=16), tmp_path, preprocess, split="val", options=options)
    assert len(build_cache(Shapes("train", 8, image_size=16), tmp_path, preprocess, options=options)) == 8
