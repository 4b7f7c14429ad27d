"""For each variant, a resumed run equals an undisturbed one to the last bit, and micro batches change nothing."""

import pytest
import torch

from miniclip.train import Callback, Trainer

CASES = {
    "muon": {"optimizer": "muon", "ema_decay": 0.5, "layer_decay": 0.9},
    "stochastic depth": {"stochastic_depth": 0.5},
    "resolution": {"first_image_size": 8, "first_fraction": 0.5, "ema_decay": 0.5, "color_jitter": 0.3, "flip": True},
    "captions": {"word_dropout": 0.3, "flip": True, "swap_left_right": True},
    "rates": {"layer_decay": 0.7, "image_lr_scale": 0.3, "logit_scale_lr_scale": 2.0},
}


class Stop(Callback):
    def __init__(self, step):
        self.step = step

    def on_step(self, trainer, record):
        if trainer.step == self.step:
            raise KeyboardInterrupt


@pytest.mark.parametrize("settings", CASES.values(), ids=CASES.keys())
def test_resumed_run_equals_an_undisturbed_one(start, undisturbed, train_data, val_data, settings):
    settings = {"log_every": 1, **settings}
    whole = undisturbed([], **settings)
    stopped = start("stopped", [Stop(7)], save_every=2, keep_checkpoints=9, eval_every=2, **settings)
    with pytest.raises(KeyboardInterrupt):
        stopped.fit()
    for step in (2, 6):  # in both halves of the run
        resumed = Trainer.resume(stopped.run_dir, train_data, val_data, step=step, callbacks=[], device="cpu")
        resumed.fit()
        assert resumed.history.steps[-1]["loss"] == whole.history.steps[-1]["loss"]
        for name, value in whole.model.state_dict().items():
            assert torch.equal(value, resumed.model.state_dict()[name]), (step, name)


@pytest.mark.parametrize(
    "name", [name for name in CASES if name != "stochastic depth"]
)  # each part has its own random numbers
def test_micro_batches_change_nothing(start, undisturbed, name):
    settings = {"log_every": 1, **CASES[name]}
    plain = undisturbed([], **settings)
    cached = start("cached", [], **settings, micro_batch_size=3)
    cached.fit()
    for a, b in zip(plain.history.steps, cached.history.steps, strict=True):
        assert b["loss"] == pytest.approx(a["loss"], rel=1e-4)
        assert b["grad_norm"] == pytest.approx(a["grad_norm"], rel=1e-3)
