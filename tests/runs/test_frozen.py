"""Frozen parameters belong to a run: a resumed run trains the same parameters."""

import json

import pytest
import torch

from miniclip.checkpoints.formats.safetensors import read_tensors, write_tensors
from miniclip.errors import CheckpointError
from miniclip.runs.metrics_file import MetricsFile
from miniclip.runs.state import read_state
from miniclip.train import Trainer
from tests.toys import make_model
from tests.train.test_trainer import StopAt, assert_same_run


def test_frozen_tower_stays_frozen_after_a_resume(start, model, tokenizer, train_data, val_data):
    whole = start("whole", model=freeze(make_model(tokenizer)), callbacks=[MetricsFile()], log_every=1)
    whole.fit()
    before = {name: value.clone() for name, value in model.image.state_dict().items()}
    stopped = start("stopped", model=freeze(model), callbacks=[MetricsFile(), StopAt(3)], log_every=1)
    with pytest.raises(KeyboardInterrupt):
        stopped.fit()
    assert set(read_state(stopped.run_dir / "state.safetensors").frozen) == {f"image.{name}" for name in before}
    resumed = Trainer.resume(stopped.run_dir, train_data, val_data, callbacks=[MetricsFile()], device="cpu")
    assert not any(parameter.requires_grad for parameter in resumed.model.image.parameters())
    assert all(parameter.requires_grad for parameter in resumed.model.text.parameters())
    resumed.fit()
    for name, value in resumed.model.image.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert not torch.equal(resumed.model.text.tokens.weight, make_model(tokenizer).text.tokens.weight)
    assert_same_run(stopped.run_dir, whole.run_dir)


def freeze(model):
    model.image.requires_grad_(False)
    return model


def test_unknown_frozen_names_are_refused(start, train_data, val_data):
    trainer = start(callbacks=[], max_steps=1)
    trainer.fit()
    path = trainer.run_dir / "state.safetensors"
    tensors, metadata = read_tensors(path)
    tensors = {name: value.clone() for name, value in tensors.items()}
    write_tensors(path, tensors, {**metadata, "frozen": json.dumps(["image.adapter.weight"])})
    with pytest.raises(
        CheckpointError, match=r"state\.safetensors: the frozen parameters image\.adapter\.weight are not"
    ):
        Trainer.resume(trainer.run_dir, train_data, val_data)


def test_frozen_scale_is_not_clamped(start, model):
    model.log_scale.data.fill_(9.0)
    model.log_scale.requires_grad_(False)
    start(model=model, callbacks=[], max_steps=1).fit()
    assert model.log_scale.item() == 9.0
