"""Frozen towers that are encoded once: the losses of a run that encodes them at every step, at every restart."""

import copy

import pytest
import torch

from miniclip.data import Captions, Shapes
from miniclip.errors import DataError
from miniclip.finetuning import embedding_table
from miniclip.finetuning.cached_tower import FOLDER
from miniclip.finetuning.embedding_table import image_identity
from miniclip.runs.metrics_file import MetricsFile
from miniclip.runs.state import read_state
from miniclip.train import TrainConfig, Trainer
from tests.toys import StopAt, make_model

SETTINGS = {"min_crop_area": 1.0}


@pytest.fixture
def begin(start, tokenizer):
    """A trainer with frozen sides."""

    def make(run, sides=("image",), **settings):
        model = make_model(tokenizer)
        for side in sides:
            getattr(model, side).requires_grad_(False)
        return start(run, callbacks=[MetricsFile()], model=model, **{**SETTINGS, "cache_frozen": True, **settings})

    return make


def figures(trainer, name):
    return torch.tensor([record[name] for record in trainer.history.steps])


def evaluations(trainer):
    return torch.tensor([record["val_loss"] for record in trainer.history.evaluations])


def table_files(trainer):
    return sorted(path.name for path in (trainer.run_dir / FOLDER).iterdir())


@pytest.mark.parametrize(
    ("sides", "micro_batch_size"), [(("image",), None), (("text",), 3), (("image", "text"), None)], ids=str
)
def test_losses_are_those_of_encoding_at_every_step(begin, sides, micro_batch_size):
    cached = begin("cached", sides, micro_batch_size=micro_batch_size)
    plain = begin("plain", sides, micro_batch_size=micro_batch_size, cache_frozen=False)
    cached.fit(), plain.fit()
    for name, tolerance in (("loss", 1e-6), ("grad_norm", 1e-5)):
        torch.testing.assert_close(figures(cached, name), figures(plain, name), rtol=tolerance, atol=0)
    torch.testing.assert_close(evaluations(cached), evaluations(plain), rtol=1e-6, atol=0)
    assert [name.split("-")[0] for name in table_files(cached)] == sorted(sides)


def test_frozen_tower_runs_once_for_each_image(begin):
    trainer, images = begin("run"), []
    trainer.model.image.register_forward_hook(lambda _, inputs, output: images.append(len(output)))
    trainer.fit()
    assert sum(images) == len(trainer.train_data) + len(trainer.val_data)


def test_resumed_run_is_the_same_bit_for_bit(begin, train_data, val_data):
    whole, stopped = begin("whole", ("image", "text")), begin("stopped", ("image", "text"), save_every=3)
    whole.fit()
    stopped.callbacks.append(StopAt(5))
    with pytest.raises(KeyboardInterrupt):
        stopped.fit()
    again = Trainer.resume(stopped.run_dir, train_data, val_data, device="cpu")
    assert 0 < again.step < 10
    again.fit()
    first, second = (read_state(trainer.run_dir / "state.safetensors") for trainer in (whole, again))
    assert all(torch.equal(first.weights[name], value) for name, value in second.weights.items())
    assert again.history.evaluations == whole.history.evaluations
    assert table_files(again) == table_files(whole)


def test_killed_computation_continues(begin, train_data, monkeypatch):
    """The second process embeds only the images of the chunks that are not finished, and the file is the same."""
    monkeypatch.setattr(embedding_table, "CHUNK", 16)
    add, whole = embedding_table._append, begin("whole")
    expected = whole.towers.images.rows

    def add_once(partial, vectors):
        if partial.rows:
            raise KeyboardInterrupt
        add(partial, vectors)

    monkeypatch.setattr(embedding_table, "_append", add_once)
    with pytest.raises(KeyboardInterrupt):
        begin("stopped").fit()
    monkeypatch.setattr(embedding_table, "_append", add)
    assert [path.suffix for path in (whole.run_dir.parent / "stopped" / FOLDER).iterdir()] == [".partial"]
    again = Trainer.resume(whole.run_dir.parent / "stopped", train_data, None, allow_changes=True, device="cpu")
    images = []
    again.model.image.register_forward_hook(lambda _, inputs, output: images.append(len(output)))
    assert torch.equal(again.towers.images.rows, expected)
    assert sum(images) == len(train_data) - 16
    assert table_files(again) == table_files(whole)


def test_identity_of_images_is_their_content(tmp_path, train_data):
    image = train_data[0][0]
    image.save(tmp_path / "a.png")
    files = [Captions([tmp_path / "a.png"], [["a"]])]
    before = image_identity(files[0])
    train_data[1][0].save(tmp_path / "a.png")
    assert image_identity(files[0]) != before
    assert image_identity(Shapes("train", 4, image_size=16)) != image_identity(Shapes("train", 4, image_size=32))

    class Drawn(Shapes):
        first = 0

        def __getitem__(self, index):
            return super().__getitem__(index + self.first)

    data = Drawn("train", 4, image_size=16)
    before = image_identity(data)
    assert image_identity(Drawn("train", 4, image_size=16)) == before
    data.first = 1
    assert image_identity(torch.utils.data.Subset(data, [0, 1])) != before


def test_other_weights_have_another_file(begin, tmp_path, tokenizer):
    """Runs share a folder; a run with other weights in the frozen tower makes a file of its own."""
    shared = str(tmp_path / "shared")
    first, second = (begin(run, embedding_cache=shared) for run in ("first", "second"))
    rows = first.towers.images.rows
    with torch.no_grad():
        second.model.image.positions.add_(1.0)
    assert not torch.equal(second.towers.images.rows, rows)
    assert len(list((tmp_path / "shared").glob("*.npy"))) == 2
    assert not (first.run_dir / FOLDER).exists()


@pytest.mark.parametrize(
    ("sides", "settings", "message"),
    [
        ((), {}, r"trained in both towers.*tune_image"),
        (("image",), {"min_crop_area": 0.9}, r"min_crop_area is 0.9.*expected 1.0"),
        (("image",), {"flip": True}, r"flip is True"),
        (("image",), {"patch_dropout": 0.5}, r"patch_dropout is 0.5"),
        (("image",), {"first_image_size": 8}, r"first_image_size is 8.*leave first_image_size out"),
        (("image",), {"fsdp": True}, "does not work with fsdp"),
    ],
)
def test_towers_that_change_are_refused(begin, sides, settings, message):
    with pytest.raises(ValueError, match=message):
        begin("run", sides, **settings)


def test_tower_that_is_unfrozen_after_the_setup_is_refused(begin):
    trainer = begin("run")
    trainer.model.image.requires_grad_(True)
    with pytest.raises(ValueError, match="was frozen when the run was set up"):
        trainer.fit()


def test_image_augmentation_is_allowed_beside_a_frozen_text_tower(begin):
    trainer = begin("run", ("text",), min_crop_area=0.5, flip=True, patch_dropout=0.5)
    trainer.fit()
    assert trainer.step == 10


def train(model, data, config, run_dir):
    trainer = Trainer(model, data, config=config, run_dir=run_dir, callbacks=[], device="cpu")
    trainer.fit()
    return trainer


def test_unreadable_images_are_left_out(begin, tokenizer, tmp_path):
    class WithBroken(Shapes):
        def __getitem__(self, index):
            if index in {3, 17}:
                raise DataError("not an image")
            return super().__getitem__(index)

    data, model = WithBroken("train", 30, image_size=16), make_model(tokenizer)
    model.image.requires_grad_(False)
    settings = {"epochs": 2, "batch_size": 8, "precision": "float32", "on_error": "skip", "max_skip_fraction": 0.2}
    runs = {}
    for cache_frozen in (False, True):
        config = TrainConfig(**SETTINGS, **settings, cache_frozen=cache_frozen)
        run_dir = tmp_path / str(cache_frozen)
        with pytest.warns(UserWarning, match="skipped"):
            trainer = train(copy.deepcopy(model), data, config, run_dir)
        runs[cache_frozen] = trainer
    torch.testing.assert_close(figures(runs[True], "loss"), figures(runs[False], "loss"), rtol=1e-6, atol=0)
