"""Data in training: cached and decoded images, unreadable images, data wait, no process left."""

import json
import multiprocessing
import os
import signal
import warnings

import pytest

import miniclip
from miniclip.data import CacheOptions, Captions, Shapes, build_cache
from miniclip.runs.metrics_file import MetricsFile
from miniclip.train import Callback, TrainConfig, Trainer
from tests.toys import make_model
from tests.train.test_trainer import StopAt, assert_same_run


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    """Forty images larger than the model's, as files."""
    folder = tmp_path_factory.mktemp("sets")
    drawn = {"train": Shapes("train", 40), "val": Shapes("val", 20)}
    found = {}
    for split, shapes in drawn.items():
        for i in range(len(shapes)):
            shapes[i][0].save(folder / f"{split}{i}.jpg")
        found[split] = Captions([folder / f"{split}{i}.jpg" for i in range(len(shapes))], shapes.captions)
    return folder, found


def run(tokenizer, path, train, val=None, callbacks=(), **settings):
    config = TrainConfig(**{"epochs": 2, "batch_size": 8, "precision": "float32", "log_every": 1, **settings})
    return Trainer(
        make_model(tokenizer),
        train,
        val,
        config=config,
        run_dir=path,
        callbacks=[MetricsFile(), *callbacks],
        device="cpu",
    )


def test_cache_gives_the_same_run_bit_for_bit(tokenizer, sets, tmp_path):
    _, files = sets
    preprocess = make_model(tokenizer).preprocess
    cached = {
        split: build_cache(data, tmp_path / "cache", preprocess, split=split, options=CacheOptions(num_workers=0))
        for split, data in files.items()
    }
    kinds = {"kept": (files, {}), "streamed": (files, {"num_workers": 2}), "cached": (cached, {})}
    for name, (data, options) in kinds.items():
        run(tokenizer, tmp_path / name, data["train"], data["val"], reduced_decoding=False, **options).fit()
        assert not multiprocessing.active_children()
    assert_same_run(tmp_path / "kept", tmp_path / "streamed")
    assert_same_run(tmp_path / "kept", tmp_path / "cached")
    model = miniclip.load(tmp_path / "kept" / "last")
    assert miniclip.evaluation.retrieval(model, cached["val"]) == miniclip.evaluation.retrieval(model, files["val"])


def test_cache_of_another_size_is_refused_before_the_first_step(tokenizer, sets, tmp_path):
    _, data = sets
    other = miniclip.load("bert_vit_tiny", pretrained=False, tokenizer=tokenizer).preprocess
    cached = build_cache(data["val"], tmp_path / "cache", other, split="val", options=CacheOptions(num_workers=0))
    with pytest.raises(ValueError, match="built for another model"):
        run(tokenizer, tmp_path / "run", data["train"], cached)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("num_workers", [None, 1])
def test_unreadable_images_are_skipped_and_a_resumed_run_is_the_same(tokenizer, sets, tmp_path, num_workers):
    folder, data = sets
    bad = folder / "bad.jpg"
    bad.write_bytes(b"\xff\xd8\xff\xe0 no more")
    paths = [bad if i == 7 else path for i, path in enumerate(data["train"].paths)]
    train = Captions(paths, data["train"].captions)
    settings = {
        "num_workers": num_workers,
        "color_jitter": 0.3,
        "max_rotation_degrees": 10.0,
        "patch_dropout": 0.5,
        "micro_batch_size": 3,
    }
    with pytest.raises(miniclip.DataError, match=r"bad\.jpg"):
        run(tokenizer, tmp_path / "raised", train, **settings).fit()
    with warnings.catch_warnings(record=True, action="always") as messages:
        run(tokenizer, tmp_path / "whole", train, on_error="skip", **settings).fit()
    assert len([w for w in messages if "bad.jpg" in str(w.message)]) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        stopped = run(tokenizer, tmp_path / "stopped", train, None, [StopAt(4)], on_error="skip", **settings)
        with pytest.raises(KeyboardInterrupt):
            stopped.fit()
        assert not multiprocessing.active_children()
        Trainer.resume(tmp_path / "stopped", train, device="cpu").fit()
    assert_same_run(tmp_path / "whole", tmp_path / "stopped")


class Fail(Callback):
    def on_step(self, trainer, record):
        raise RuntimeError("a callback of the user's failed")


class KillWorker(Callback):
    def on_step(self, trainer, record):
        for child in multiprocessing.active_children():
            os.kill(child.pid, signal.SIGKILL)


def test_no_process_is_left_after_an_error(tokenizer, sets, tmp_path):
    with pytest.raises(RuntimeError, match="of the user's"):
        run(tokenizer, tmp_path / "run", sets[1]["train"], None, [Fail()], num_workers=2).fit()
    assert not multiprocessing.active_children()


def test_killed_worker_ends_the_run_with_its_reason(tokenizer, sets, tmp_path):
    with pytest.raises(ChildProcessError, match="decodes images was killed"):
        run(tokenizer, tmp_path / "run", sets[1]["train"], None, [KillWorker()], num_workers=1, epochs=500).fit()
    assert not multiprocessing.active_children()


def test_data_wait_is_logged(tokenizer, sets, tmp_path):
    run(tokenizer, tmp_path / "run", sets[1]["train"], num_workers=0).fit()
    records = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    waiting = [record["data_wait"] for record in records]
    assert all(0 <= share <= 1 for share in waiting)
    assert max(waiting) > 0


def test_fsdp_needs_whole_batches():
    from miniclip.runtime.fsdp import require_even

    with pytest.raises(ValueError, match="whole batches"):
        require_even(8, skips_samples=True)
