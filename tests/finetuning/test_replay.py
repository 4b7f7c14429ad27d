"""Replay: the share of every batch, the order of the old images, resumed runs, refusals, and the command line."""

import dataclasses
import json
from collections import Counter
from itertools import islice

import pytest
import torch

import miniclip
from miniclip import cli
from miniclip.data import Captions, Replay, Shapes
from miniclip.data.options import LoaderOptions
from miniclip.data.preprocess import Preprocess
from miniclip.data.replay import ReplayLoader, batch_and_steps, replay_order, require_replay
from miniclip.diagnostics.check import check
from miniclip.runs.history import History
from miniclip.runs.metrics_file import MetricsFile
from miniclip.train import TrainConfig, Trainer
from miniclip.train.requirements import require_trainable
from tests.toys import CONFIG, StopAt, make_model
from tests.train.test_trainer import assert_same_run


@pytest.fixture(scope="module")
def old():
    return Shapes("train", 13, image_size=16, seed=5)


@pytest.fixture
def runner(tokenizer, train_data, val_data, old, tmp_path):
    """Function that returns a trainer with replay: batches of 5 new and 3 old images, 8 steps an epoch."""

    def make(run, callbacks=(), share=0.4, data=None, **settings):
        config = TrainConfig(**{"epochs": 2, "batch_size": 8, "precision": "float32", "log_every": 1, **settings})
        data = Replay(train_data, old, share) if data is None else data
        options = {"config": config, "run_dir": tmp_path / run, "callbacks": [MetricsFile(), *callbacks]}
        return Trainer(make_model(tokenizer), data, val_data, device="cpu", **options)

    return make


@pytest.fixture
def resume(val_data, tmp_path):
    def resumed(run, data, **options):
        return Trainer.resume(tmp_path / run, data, val_data, callbacks=[MetricsFile()], device="cpu", **options)

    return resumed


@pytest.mark.parametrize(("share", "batch", "rows"), [(0.5, 8, (4, 4)), (0.4, 8, (5, 3)), (0.01, 6, (5, 1))])
def test_every_batch_has_the_share_and_an_epoch_has_each_new_image_once(tokenizer, train_data, old, share, batch, rows):
    data = Replay(train_data, old, share)
    loader = ReplayLoader(data, tokenizer, Preprocess(CONFIG), LoaderOptions(batch, num_workers=0, seed=3))
    assert (loader.batch_size, loader.steps) == batch_and_steps(data, batch) == (batch, 40 // rows[0])
    drawn = []
    for epoch in range(3):
        batches = list(loader.epoch(epoch))
        for each in batches:
            assert (int((each.indices < 40).sum()), int((each.indices >= 40).sum())) == rows
            assert len(set(each.indices.tolist())) == batch
            assert torch.equal(each.pixels, torch.stack([loader_pixels(data, i) for i in each.indices.tolist()]))
            drawn += [i - 40 for i in each.indices.tolist() if i >= 40]
        new = [i for each in batches for i in each.indices.tolist() if i < 40]
        assert sorted(new) == sorted(set(new))
        assert len(new) == loader.steps * rows[0]
        assert all((each.passes[each.indices < 40] == epoch).all() for each in batches)
    counts = Counter(drawn)
    assert max(counts.values()) - min(counts.get(i, 0) for i in range(13)) <= 1, "none again before all were drawn"


def loader_pixels(data, index):
    return Preprocess(CONFIG).pixels(data[index][0])


@pytest.mark.parametrize(("size", "rows"), [(10, 4), (7, 7), (9, 2), (13, 5), (5, 1)])
def test_order_of_old_images_is_a_function_of_the_place_and_repeats_none_in_a_batch(size, rows):
    places = torch.arange(30 * rows).view(30, rows)
    order = replay_order(places, size, seed=3)
    assert all(len(set(row)) == rows for row in order.tolist())
    passes = order.flatten()[: 30 * rows // size * size].view(-1, size)
    assert all(sorted(row) == list(range(size)) for row in passes.tolist())
    assert len({tuple(row) for row in passes.tolist()}) > len(passes) // 2, "each pass has an order of its own"
    for start in range(0, 30, 7):
        assert torch.equal(replay_order(places[start : start + 4], size, seed=3), order[start : start + 4])
    assert not torch.equal(replay_order(places, size, seed=4), order)


def test_captions_of_an_image_change_with_each_pass_over_the_old_ones(tokenizer, train_data):
    old = Captions([f"{i}.png" for i in range(3)], [[f"old {i} {j}" for j in range(8)] for i in range(3)])
    old.image = lambda index, at_least=None: train_data[index][0]
    loader = ReplayLoader(Replay(train_data, old), tokenizer, Preprocess(CONFIG), LoaderOptions(4, num_workers=0))
    batches = list(loader.epoch(0))
    passes = torch.cat([batch.passes[batch.indices >= 40] for batch in batches])
    assert passes.tolist() == [place // 3 for place in range(40)]
    texts = {tokenizer.decode(row.tolist()) for b in batches for row in b.tokens[b.indices >= 40]}
    assert len(texts) > 12, "of 24 captions in 40 draws; 3 if an epoch had one draw for each image"


def test_kinds_are_spread_over_the_rows_of_each_rank(tokenizer, train_data, old):
    loader = ReplayLoader(Replay(train_data, old, 0.25), tokenizer, Preprocess(CONFIG), LoaderOptions(8, num_workers=0))
    batch = next(iter(loader.epoch(0)))
    assert [int((part >= 40).sum()) for part in batch.indices.split(4)] == [1, 1]


@pytest.mark.parametrize(
    ("new", "old", "share", "batch", "rows"),
    [
        (40, 40, 0.5, 128, (40, 40)),  # fewer new images than a batch takes
        (40, 90, 2 / 3, 90, (30, 60)),
        (10, 90, 0.75, 128, (10, 30)),
        (40, 40, 0.99, 8, (1, 7)),
        (40, 40, 0.01, 8, (7, 1)),
    ],
)
def test_rows_of_a_batch(new, old, share, batch, rows):
    assert Replay(Shapes("train", new), Shapes("train", old, seed=1), share).rows(batch) == rows


@pytest.mark.parametrize("share", [0, 1, -0.5, 1.5, float("nan")])
def test_refuses_a_share_out_of_its_range(train_data, old, share):
    with pytest.raises(ValueError, match="above 0 and below 1"):
        Replay(train_data, old, share)


def test_refuses_old_images_that_cannot_be_replayed(runner, train_data, old, tmp_path):
    with pytest.raises(ValueError, match="the replay data are the training data, 40 images"):
        Replay(train_data, Shapes("train", 40, image_size=16))
    with pytest.raises(ValueError, match="the replay data are empty"):
        Replay(train_data, torch.utils.data.Subset(old, []))
    with pytest.raises(TypeError, match="expected an object with len"):
        Replay(train_data, [1, 2])
    with pytest.raises(ValueError, match=r"a batch of 32 has 16 replayed images \(share 0.5\), and the replay data"):
        runner("few", share=0.5, batch_size=32)
    files = [tmp_path / f"{index}.png" for index in range(20)]
    photos = Captions(files, [["a photo"]] * 20)
    held_out = Captions(files[15:], [["a photo"]] * 5)
    with pytest.raises(ValueError, match=r"5 of the replayed images are validation images, such as .*15\.png"):
        require_trainable(runner("run").model, Replay(train_data, photos), held_out, TrainConfig(batch_size=8))
    assert not (tmp_path / "few").exists()


@pytest.mark.parametrize("folder", ["link", "images/../images"])
def test_validation_image_by_another_path_is_refused(train_data, tmp_path, folder):
    (tmp_path / "images").mkdir()
    try:
        (tmp_path / "link").symlink_to(tmp_path / "images")
    except OSError:
        pytest.skip("no symbolic links here")
    old, held_out = (
        Captions([tmp_path / place / f"{index}.png" for index in range(first, 8)], [["a photo"]] * (8 - first))
        for place, first in ((folder, 0), ("images", 5))
    )
    with pytest.raises(ValueError, match="3 of the replayed images are validation images"):
        require_replay(Replay(train_data, old), held_out)


def test_resumed_run_is_the_same_bit_for_bit(runner, resume, train_data, old):
    runner("whole", color_jitter=0.3).fit()
    with pytest.raises(KeyboardInterrupt):
        runner("stopped", [StopAt(11)], color_jitter=0.3, save_every=3).fit()
    resumed = resume("stopped", Replay(train_data, old, 0.4))
    assert resumed.step == 9
    resumed.fit()
    folder = resumed.run_dir
    assert_same_run(folder.with_name("whole"), folder)
    assert {record["replayed"] for record in History.read(folder).steps} == {3}
    facts = json.loads((folder / "config.json").read_text())["data"]["train"]
    assert (facts["images"], facts["old"], facts["share"]) == (53, 13, 0.4)


def test_old_images_and_their_share_are_state_of_the_run(runner, resume, train_data, old):
    runner("run", max_steps=2).fit()
    others = {
        "share 0.5 of 13 old images": Replay(train_data, old, 0.5),
        "share 0.4 of 12 old images": Replay(train_data, Shapes("train", 12, image_size=16, seed=6), 0.4),
        r"now \(40 images, 200 captions, digest \w+\)": train_data,
    }
    for words, data in others.items():
        with pytest.raises(ValueError, match=f"train data: started with .*share 0.4 of 13 old images.*{words}"):
            resume("run", data)
    changed = resume("run", Replay(train_data, old, 0.5), allow_changes=True, settings={"max_steps": 4})
    assert changed.loader.replayed == 4
    changed.fit()


@pytest.mark.parametrize(
    "settings",
    [
        {"tune_image": "frozen", "tune_text": "last-1", "min_crop_area": 1.0},
        {"tune_text": "frozen", "captions_per_image": 2},
    ],
    ids=["image", "text"],
)
def test_frozen_tower_that_is_encoded_once_gives_the_same_losses(runner, settings):
    losses = [
        [record["loss"] for record in runner(name, cache_frozen=cached, **settings).fit().steps]
        for name, cached in (("run", False), ("cached", True))
    ]
    assert losses[0] == pytest.approx(losses[1], abs=1e-6)
    assert len(losses[0]) == 16


def test_anchored_embeddings_are_those_of_the_drawn_captions(runner):
    """At the first step the model is the anchor, so that the term is zero only for the right captions."""
    settings = {"min_crop_area": 1.0, "max_steps": 1}
    plain, anchored = (
        next(iter(runner(str(weight), anchor_embeddings=weight, **settings).fit().steps))["loss"]
        for weight in (0.0, 1e3)
    )
    assert anchored == pytest.approx(plain, abs=1e-2)


# the command line


@pytest.fixture(scope="module")
def files(tokenizer, tmp_path_factory):
    """A checkpoint, a table of new images, and one of old images with a split."""
    root = tmp_path_factory.mktemp("files")
    miniclip.save(make_model(tokenizer), root / "base")
    for name, seed in (("new", 1), ("old", 2)):
        data, rows = Shapes("train", 40, seed=seed), ["image,caption,split"]
        for i in range(40):
            data[i][0].save(root / f"{name}{i}.png")
            rows.append(f'{name}{i}.png,"{data.captions[i][0]}",{"val" if i < 4 else "train"}')
        (root / f"{name}.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    return root


FAST = ["--epochs", "2", "--batch-size", "8", "--precision", "float32", "--device", "cpu", "--num-workers", "0"]


def test_finetune_replays_and_resumes(files, tmp_path, capsys):
    whole, run = tmp_path / "whole", tmp_path / "run"
    command = ["finetune", str(files / "base"), str(files / "new.csv"), *FAST, "--replay", f"{files}/old.csv:train"]
    assert cli.main([*command, "--run-dir", str(whole), "--replay-share", "0.25"]) == 0
    assert "36 training images and 12 replayed ones an epoch (2 in a batch), batches of 8" in capsys.readouterr().out
    (tmp_path / "recipe.toml").write_text(f'replay = "{files}/old.csv"\nreplay_share = 0.25\n')
    short = [*command[:3], *FAST, "--config", str(tmp_path / "recipe.toml"), "--run-dir", str(run)]
    assert cli.main([*short, "--save-every", "1", "--max-steps", "9"]) == 0
    about = json.loads((run / "config.json").read_text())["about"]
    assert (about["replay"], about["replay_share"]) == (f"{files}/old.csv:train", 0.25)
    resume = ["finetune", "--resume", str(run), "--max-steps", "12"]
    assert cli.main([*resume, "--replay-share", "0.5"]) == 2
    error = capsys.readouterr().err
    assert "share 0.25 of 36 old images" in error
    assert f"--replay {files}/old.csv:train --replay-share 0.5" in error
    assert cli.main([*resume, "--allow-changes"]) == 0
    steps = [[(r["step"], r["loss"]) for r in History.read(path).steps[:6]] for path in (whole, run)]
    assert steps[0][0] == steps[1][0], "the order and the share are those of the flags"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--replay-share", "0.5"], "--replay-share 0.5 has no old data: add --replay DATA"),
        (["--replay", "old.csv", "--replay-share", "1"], "the share of replayed images is 1.0; expected"),
        (["--replay", "old.csv:val"], "images that show what it has lost: use old.csv:train"),
        (["--replay", "new.csv"], "the replay data are the training data, 36 images"),
        (["--replay", "new.csv:all"], "4 of the replayed images are validation images, such as"),
        (["--replay", "none.csv"], "none.csv"),
        (["--replay", "old.csv", "--batch-size", "128", "--replay-share", "0.9"], "and the replay data have 36"),
    ],
)
@pytest.mark.parametrize("check", [[], ["--check"]], ids=["run", "check"])
def test_refuses_in_a_run_and_in_its_check(files, monkeypatch, tmp_path, capsys, arguments, words, check):
    monkeypatch.chdir(files)
    command = ["finetune", "base", "new.csv", *FAST, "--run-dir", str(tmp_path / "run"), *arguments, *check]
    assert cli.main(command) == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_check_covers_the_old_images(model, train_data, old, val_data):
    """Old images that are validation images of a dataset without files are found by their pixels."""
    data, config = Replay(train_data, torch.utils.data.ConcatDataset([old, val_data])), TrainConfig(batch_size=8)
    report = check(model, data, val_data, dataclasses.replace(config, precision="float32"), steps=1, seconds=30)
    shared = next(finding for finding in report.findings if finding.name == "shared images")
    assert shared.observation.startswith("20 validation images are in the training data")


def test_order_is_that_of_plain_training_for_the_new_images(runner, start):
    """The new images come in the order of a run without replay that has as many of them in a batch."""
    plain, replayed = start("plain", callbacks=[], batch_size=5).loader, runner("run").loader
    for a, b in zip(islice(plain.epoch(1), 3), islice(replayed.epoch(1), 3), strict=True):
        assert a.indices.tolist() == [index for index in b.indices.tolist() if index < 40]
