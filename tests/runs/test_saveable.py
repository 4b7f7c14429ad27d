"""Models and optimizers that a checkpoint cannot hold: refused before anything is written."""

import pytest
import torch
from torch import nn

from miniclip.train import Callback, TrainConfig, Trainer
from tests.toys import make_model


def extra_parameter(model):
    model.image.extra = nn.Linear(3, 3)


def shared_memory(model):
    model.text.blocks[0].norm1.weight.data = model.text.blocks[0].norm2.weight.data


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (extra_parameter, r"image\.extra\.bias, image\.extra\.weight"),
        (shared_memory, "norm1.weight and text.blocks.0.norm2.weight share memory"),
        (lambda model: model.requires_grad_(False), "all parameters of the model are frozen"),
    ],
    ids=["extra", "shared", "frozen"],
)
def test_models_are_refused(start, model, tmp_path, change, message):
    change(model)
    with pytest.raises(ValueError, match=message):
        start(model=model)
    assert list(tmp_path.iterdir()) == []


def decay(trainer):
    trainer.optimizer.param_groups[0]["weight_decay"] = 0.5


def group_rate(trainer):
    trainer.optimizer.param_groups[0]["lr"] = 1e-6


def other_class(trainer):
    trainer.optimizer = torch.optim.SGD(trainer.model.parameters(), lr=1e-3)


def scheduler(trainer):
    torch.optim.lr_scheduler.StepLR(trainer.optimizer, 1)


def fewer_parameters(trainer):
    trainer.optimizer.param_groups.pop()


@pytest.mark.parametrize("change", [decay, group_rate, other_class, scheduler, fewer_parameters])
def test_changed_optimizers_are_refused(start, change):
    trainer = start(callbacks=[])
    change(trainer)
    with pytest.raises(ValueError, match=r"the optimizer was changed: .* use the settings lr, weight_decay"):
        trainer.fit()
    assert not (trainer.run_dir / "state.safetensors").exists()


def test_change_by_a_callback_is_refused_at_the_next_save(start):
    class Decay(Callback):
        def on_step(self, trainer, record):
            decay(trainer)

    with pytest.raises(ValueError, match=r"weight_decay of a group is 0\.5"):
        start(callbacks=[Decay()], log_every=1).fit()


def test_equal_optimizer_of_the_user_is_the_one_that_is_saved(start, train_data, val_data):
    from miniclip.train.optimizer import build_optimizer

    trainer = start(callbacks=[], max_steps=3)
    trainer.optimizer = build_optimizer(trainer.model, trainer.config)
    trainer.fit()
    resumed = Trainer.resume(trainer.run_dir, train_data, val_data, callbacks=[], device="cpu")
    steps = {float(state["step"]) for state in resumed.optimizer.state.values()}
    assert steps == {3.0}


@pytest.mark.parametrize(
    ("images", "batch_size", "message"), [(1, 8, "have one image"), (4, 1, "batch_size is 1"), (0, 8, "empty")]
)
@pytest.mark.parametrize("loss", ["contrastive", "sigmoid"])
def test_batches_of_one_pair_are_refused(tokenizer, tmp_path, images, batch_size, message, loss):
    from miniclip.data import Captions, Shapes

    model = make_model(tokenizer, logit_bias=-10.0 if loss == "sigmoid" else None)
    data = Shapes("train", images, image_size=16) if images else Captions([], [])
    with pytest.raises(ValueError, match=message):
        Trainer(model, data, config=TrainConfig(batch_size=batch_size, loss=loss), run_dir=tmp_path / "run")


def test_dataset_smaller_than_the_batch_and_a_last_batch_of_one(model, tmp_path):
    from miniclip.data import Shapes

    for images, batch_size, steps in ((3, 128, 1), (9, 8, 1), (9, 2, 4)):
        config = TrainConfig(epochs=1, batch_size=batch_size, precision="float32")
        data = Shapes("train", images, image_size=16)
        trainer = Trainer(
            model, data, config=config, run_dir=tmp_path / f"{images}-{batch_size}", callbacks=[], device="cpu"
        )
        history = trainer.fit()
        assert len(history.steps) == steps
        assert all(record["loss"] > 0.1 for record in history.steps)


def test_one_validation_image_is_not_evaluated(model, train_data, tmp_path):
    from miniclip.data import Shapes

    config = TrainConfig(epochs=1, batch_size=8, precision="float32")
    with pytest.warns(UserWarning, match="the validation data have 1 image, whose recall is 100% for any model"):
        trainer = Trainer(
            model,
            train_data,
            Shapes("val", 1, image_size=16),
            config=config,
            run_dir=tmp_path / "run",
            callbacks=[],
            device="cpu",
        )
    assert trainer.fit().evaluations == []
    assert not (tmp_path / "run" / "best").exists()
