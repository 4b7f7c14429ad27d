"""EMA of the weights: its equation, and its evaluation, saving and resumption in a run."""

import pytest
import torch
from torch import nn

import miniclip
from miniclip.runs.state import read_state
from miniclip.train import Trainer
from miniclip.train.ema import EMA
from tests.toys import StopAt


def test_equation():
    model = nn.Linear(2, 1)
    ema = EMA(model, decay=0.5)
    expected = {name: p.detach().clone() for name, p in model.named_parameters()}
    for step in range(1, 9):
        with torch.no_grad():
            for p in model.parameters():
                p.add_(torch.randn_like(p))
        ema.update(model, step)
        d = min(0.5, (1 + step) / (10 + step))
        for name, p in model.named_parameters():
            expected[name] += (1 - d) * (p.detach() - expected[name])
            torch.testing.assert_close(ema.values[name], expected[name])


def test_applied_to_restores_the_weights_bit_for_bit():
    model = nn.Linear(3, 2)
    ema = EMA(model, decay=0.9)
    nn.init.zeros_(model.weight)
    weight, values = model.weight, ema.values["weight"].clone()
    with ema.applied_to(model):
        assert model.weight is weight
        assert torch.equal(model.weight, values)
    assert torch.equal(model.weight, torch.zeros(2, 3))
    assert torch.equal(ema.values["weight"], values)


def test_ema_is_evaluated_and_saved(start, val_data):
    trainer = start(ema_decay=0.9, callbacks=[])
    history = trainer.fit()
    last = miniclip.load(trainer.run_dir / "last")
    weights = dict(trainer.model.named_parameters())
    assert any(not torch.equal(p, weights[name]) for name, p in last.named_parameters())
    for name, p in last.named_parameters():
        assert torch.equal(p, trainer.ema.values[name])
    figures = miniclip.evaluation.retrieval(last, val_data)
    assert {way: history.evaluations[-1][way] for way in figures} == figures
    saved = read_state(trainer.run_dir / "state.safetensors")
    assert all(torch.equal(saved.weights[name], p) for name, p in weights.items())  # not the EMA


def test_ema_does_not_change_training(start):
    plain, averaged = start("plain", callbacks=[]), start("averaged", ema_decay=0.99, callbacks=[])
    losses = [[record["loss"] for record in trainer.fit().steps] for trainer in (plain, averaged)]
    assert losses[0] == losses[1]


@pytest.mark.parametrize("step", [3, 6])
def test_resumed_ema_is_that_of_an_undisturbed_run(start, train_data, val_data, step):
    whole = start("whole", ema_decay=0.9, callbacks=[], save_every=1, log_every=1)
    whole.fit()
    stopped = start("stopped", ema_decay=0.9, callbacks=[StopAt(step)], save_every=1, log_every=1)
    with pytest.raises(KeyboardInterrupt):
        stopped.fit()
    resumed = Trainer.resume(stopped.run_dir, train_data, val_data, callbacks=[], device="cpu")
    assert resumed.step in (step - 1, step)
    resumed.fit()
    for name, value in whole.ema.values.items():
        assert torch.equal(value, resumed.ema.values[name]), name
