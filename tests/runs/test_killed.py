"""A run that is killed at random moments and resumed each time equals a run that was never stopped.

The test kills real processes with SIGKILL. They are forked from a rank of the fixture `ranks`, so that each costs only
its training. The moments are drawn as numbers of interpreter events (calls and returns of functions, in all
threads). They fall into startup, steps, evaluations and writes, and are the same at each run of the test.
"""

import os
import random
import signal
from functools import partial
from pathlib import Path

import pytest
import torch

from miniclip.data import Shapes
from miniclip.runs.history import History
from miniclip.runs.metrics_file import MetricsFile
from miniclip.runs.state import read_state
from miniclip.tokenizer import Tokenizer
from miniclip.train import TrainConfig, Trainer
from tests.killing import attempt
from tests.toys import make_model

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork"),
]

SETTINGS = {
    "epochs": 3, "batch_size": 8, "precision": "float32", "log_every": 2, "save_every": 2, "keep_checkpoints": 2,
    "ema_decay": 0.9, "color_jitter": 0.3, "max_rotation_degrees": 10.0, "patch_dropout": 0.5, "micro_batch_size": 5,
}  # fmt: skip
KILLS = 6
TIMES = {"samples_per_second", "data_wait", "other_cores", "mfu"}


def train(run: Path) -> None:
    """Start the run, or resume it."""
    train_data, val_data = Shapes("train", 40, image_size=16), Shapes("val", 20, image_size=16)
    if (run / "state.safetensors").exists():
        trainer = Trainer.resume(run, train_data, val_data, callbacks=[MetricsFile()], device="cpu")
    else:
        tokenizer = Tokenizer.train([caption for group in train_data.captions for caption in group], 600)
        config = TrainConfig(**SETTINGS)
        options = {"config": config, "run_dir": run, "callbacks": [MetricsFile()], "device": "cpu"}
        trainer = Trainer(make_model(tokenizer), train_data, val_data, **options)
    trainer.fit()


def main(folder: Path) -> None:
    """Train one undisturbed run, then others until there were `KILLS` kills; no other thread may run."""
    torch.set_num_threads(1)
    train(folder / "whole")
    draw, kills = random.Random(0), 0
    while kills < KILLS:
        run = folder / f"killed-{kills}"
        while (status := attempt(partial(train, run), draw.randrange(20_000, 500_000))) != 0:
            assert status == -signal.SIGKILL, status
            kills += 1
            print(kills, "kills; at", run.name, sorted(path.name for path in run.glob("*")), flush=True)


def records(run):
    history = History.read(run)
    every = history.steps + history.evaluations + history.skipped
    return [{key: value for key, value in record.items() if key not in TIMES} for record in every]


def test_resumes_after_sigkill(ranks, tmp_path):
    """The rank sees no GPU: a process with one starts threads for its gradients, and must not be forked then."""
    ((_, output, _),) = ranks(1, main, tmp_path, seconds=300)
    runs = sorted(tmp_path.glob("killed-*"))
    assert output.count("kills; at") >= KILLS
    assert runs
    for run in runs:
        assert_same(tmp_path / "whole", run)


def assert_same(whole, killed):
    assert records(killed) == records(whole)
    for one, other in zip(states(whole), states(killed), strict=True):
        assert one.progress == other.progress
        for mine, theirs in (
            (one.weights, other.weights),
            (one.optimizer, other.optimizer),
            (one.ema, other.ema),
        ):
            assert mine.keys() == theirs.keys()
            assert all(torch.equal(value, theirs[key]) for key, value in mine.items())
    for name in ("best/model.safetensors", "last/model.safetensors"):
        assert (whole / name).read_bytes() == (killed / name).read_bytes()
    assert not list(killed.rglob(".*"))  # no temporary file is left


def states(run):
    return [read_state(path) for path in [run / "state.safetensors", *sorted((run / "states").iterdir())]]
