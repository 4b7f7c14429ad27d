"""The plan of a run that has not started."""

import dataclasses

import pytest
import torch

from miniclip.diagnostics.plan import plan
from miniclip.train import Callback


def test_a_plan_counts_right_and_leaves_no_trace(start):
    trainer, same = start("planned"), start("same")
    before, random = {k: v.clone() for k, v in trainer.model.state_dict().items()}, torch.get_rng_state()
    found = plan(trainer)
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(v, before[k]) for k, v in trainer.model.state_dict().items())
    assert all(p.grad is None for p in trainer.model.parameters())
    assert not trainer.run_dir.exists()
    assert (found.pictures, found.validation_pictures, found.batch_size) == (40, 20, 8)
    assert (found.steps, found.steps_per_epoch, found.epochs, found.evaluations) == (10, 5, 2, 2)
    assert found.captions == sum(map(len, trainer.loader._data.captions))
    assert found.parameters == found.image_parameters + found.text_parameters + 1
    assert found.weights == 4 * found.parameters
    assert found.step_memory > found.weights
    assert found.step_seconds > 0
    assert found.seconds == pytest.approx(10 * found.step_seconds + 2 * found.evaluation_seconds)
    words = found.describe()
    assert "10 of 8 pairs; 5 an epoch, 2 epochs, 1 steps of warmup" in words
    assert "NOT ENOUGH" not in words
    assert "NOT ENOUGH" in dataclasses.replace(found, free=0).describe()
    assert "not counted" in dataclasses.replace(found, flops=None).describe()
    planned, unplanned = trainer.fit(), same.fit()
    assert [r["loss"] for r in planned.steps] == [r["loss"] for r in unplanned.steps]


def test_the_plan_of_a_run_that_is_taken_up_is_what_is_left(start, train_data, val_data):
    class Stop(Callback):
        def on_step(self, trainer, record):
            raise KeyboardInterrupt

    stopped = start(callbacks=[Stop()], save_every=3)
    with pytest.raises(KeyboardInterrupt):
        stopped.fit()
    stopped.callbacks = []
    resumed = type(stopped).resume(stopped.run_dir, train_data, val_data, device="cpu")
    found = plan(resumed)
    assert found.steps == 10 - resumed.step
    assert found.evaluations == 2
