"""The plan of a run that has not started."""

import dataclasses

import pytest
import torch

from miniclip.diagnostics.plan import plan_run
from miniclip.train import Callback


def test_plan_is_correct_and_does_not_change_the_run(start):
    trainer, same = start("planned"), start("same")
    before, random_state = {k: v.clone() for k, v in trainer.model.state_dict().items()}, torch.get_rng_state()
    plan = plan_run(trainer)
    assert torch.equal(torch.get_rng_state(), random_state)
    assert all(torch.equal(v, before[k]) for k, v in trainer.model.state_dict().items())
    assert all(p.grad is None for p in trainer.model.parameters())
    assert not trainer.run_dir.exists()
    assert (plan.images, plan.val_images, plan.batch_size) == (40, 20, 8)
    assert (plan.steps, plan.steps_per_epoch, plan.epochs, plan.evaluations) == (10, 5, 2, 2)
    assert plan.captions == sum(map(len, trainer.train_data.captions))
    assert plan.parameters == plan.image_parameters + plan.text_parameters + 1
    assert plan.weight_bytes == 4 * plan.parameters
    assert plan.step_bytes > plan.weight_bytes
    assert plan.step_seconds > 0
    assert plan.seconds == pytest.approx(10 * plan.step_seconds + 2 * plan.evaluation_seconds)
    text = str(plan)
    assert "10 steps of 8 pairs; 5 per epoch, 2 epochs, 5 warmup steps" in text
    assert "NOT ENOUGH" not in text
    assert "NOT ENOUGH" in str(dataclasses.replace(plan, free_bytes=0))
    assert "not counted" in str(dataclasses.replace(plan, step_flops=None))
    planned, unplanned = trainer.fit(), same.fit()
    assert [r["loss"] for r in planned.steps] == [r["loss"] for r in unplanned.steps]


def test_plan_of_a_resumed_run_covers_the_rest(start, train_data, val_data):
    class Stop(Callback):
        def on_step(self, trainer, record):
            raise KeyboardInterrupt

    stopped = start(callbacks=[Stop()], save_every=3)
    with pytest.raises(KeyboardInterrupt):
        stopped.fit()
    stopped.callbacks = []
    resumed = type(stopped).resume(stopped.run_dir, train_data, val_data, device="cpu")
    plan = plan_run(resumed)
    assert plan.steps == 10 - resumed.step
    assert plan.evaluations == 2
