"""A folder for one at a time, whoever is killed."""

import os
import subprocess
import sys

import pytest

from miniclip.data import Shapes
from miniclip.data.cache.writing import CacheOptions, build_cache
from miniclip.hub import fresh
from miniclip.train import TrainConfig, Trainer
from miniclip.utils.lock import alone_in

pytest.importorskip("fcntl")

HOLD = "import sys, pathlib; from miniclip.utils.lock import alone_in\nwith alone_in(pathlib.Path(sys.argv[1])):\n  {}"
WAIT = "print('held', flush=True); sys.stdin.read()"


@pytest.fixture
def holder(tmp_path):
    """Another process that holds the folder until it is killed."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD.format(WAIT), tmp_path / "a"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdout.readline() == b"held\n"
    yield process
    process.kill()
    process.communicate()


def test_a_second_one_is_refused_and_told_what_to_do(tmp_path):
    with alone_in(tmp_path / "a"), pytest.raises(BlockingIOError, match="a: another process is writing there; wait"):
        alone_in(tmp_path / "a").__enter__()
    with alone_in(tmp_path / "a"), alone_in(tmp_path / "b"):
        pass
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a", "b"]  # nothing is left behind


def test_an_error_lets_go(tmp_path):
    with pytest.raises(KeyError), alone_in(tmp_path):
        raise KeyError
    with alone_in(tmp_path):
        pass


def test_a_kill_lets_go(tmp_path, holder):
    with pytest.raises(BlockingIOError):
        alone_in(tmp_path / "a").__enter__()
    holder.kill()
    holder.wait()
    with alone_in(tmp_path / "a"):
        pass


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_that_outlives_its_parent_holds_nothing(tmp_path):
    child = "import os; pid = os.fork()\n  if pid == 0: sys.stdin.read(); os._exit(0)\n"
    child += "  print(pid, flush=True); os._exit(0)"
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD.format(child), tmp_path], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    pid = int(process.stdout.readline())
    process.wait()  # the parent is gone, its child waits for the end of its input
    os.kill(pid, 0)
    with alone_in(tmp_path):
        pass
    process.communicate()


def test_a_run_is_trained_by_one_process(tmp_path, toy_config, toy_tokenizer):
    trainer = Trainer(
        fresh(toy_config, toy_tokenizer),
        Shapes("train", 8, image_size=16),
        config=TrainConfig(max_steps=1, batch_size=4),
        run_dir=tmp_path,
        callbacks=[],
        device="cpu",
    )
    with alone_in(tmp_path), pytest.raises(BlockingIOError, match="another process is writing there"):
        trainer.fit()
    assert not list(tmp_path.iterdir())
    trainer.fit()
    being_written = tmp_path / ".state.safetensors.0123abcd"
    being_written.touch()
    again = Trainer.resume(tmp_path, trainer.train_data, callbacks=[], device="cpu")
    with alone_in(tmp_path), pytest.raises(BlockingIOError, match="another process is writing there"):
        again.fit()
    assert being_written.exists()
    again.fit()
    assert not being_written.exists()  # what is left of a kill


def test_a_split_of_a_cache_is_built_by_one_process(tmp_path, toy_config, toy_tokenizer):
    preprocess, options = fresh(toy_config, toy_tokenizer).preprocess, CacheOptions(num_workers=0)
    build_cache(Shapes("test", 8, image_size=16), tmp_path, preprocess, split="test", options=options)
    with alone_in(tmp_path / "train"):
        with pytest.raises(BlockingIOError, match="another process is writing there"):
            build_cache(Shapes("train", 8, image_size=16), tmp_path, preprocess, options=options)
        build_cache(Shapes("val", 8, image_size=16), tmp_path, preprocess, split="val", options=options)
    assert len(build_cache(Shapes("train", 8, image_size=16), tmp_path, preprocess, options=options)) == 8
