"""Muon: which parameters it trains, its update, and steps that change nothing."""

import pytest
import torch

from miniclip.train import TrainConfig
from miniclip.train.optimizer import build_optimizer
from miniclip.train.step_arguments import update_if
from miniclip.train.variants import muon

CONFIG = TrainConfig(optimizer="muon", lr=0.01, weight_decay=0.1)
MATRICES = {
    f"{tower}.blocks.0.{part}.weight"
    for tower in ("image", "text")
    for part in ("attention.qkv", "attention.out", "mlp.up", "mlp.down")
}


def prepared(model):
    """The optimizer of a model that has a gradient everywhere."""
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    return build_optimizer(model, CONFIG)


def test_muon_trains_the_matrices_of_the_blocks(model):
    optimizer = prepared(model)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    matrices = {names[id(p)] for group in optimizer.muon.param_groups for p in group["params"]}
    others = {names[id(p)] for group in optimizer.adamw.param_groups for p in group["params"]}
    assert matrices == MATRICES
    assert matrices | others == set(names.values())
    assert not matrices & others
    optimizer.step()
    for parameter, state in optimizer.state.items():
        assert ("momentum_buffer" in state) == (names[id(parameter)] in MATRICES)


def test_updates_have_the_size_of_adamw_and_are_nearly_orthogonal(model):
    optimizer, weight = prepared(model), model.image.blocks[0].mlp.up.weight
    before = weight.detach().clone()
    optimizer.step()
    update = (before * (1 - 0.01 * 0.1) - weight.detach()) / 0.01
    assert float(update.square().mean().sqrt()) == pytest.approx(0.2, rel=0.2)  # that of AdamW, Liu et al. 2025
    values = torch.linalg.svdvals(update)
    assert float(values.min()) > 0.5 * float(values.max())


def test_steps_that_are_not_finite_change_nothing(model):
    optimizer = prepared(model)
    update_if(optimizer, torch.tensor(True))
    weights = [parameter.detach().clone() for parameter in model.parameters()]
    states = [value.clone() for state in optimizer.state.values() for value in state.values()]
    model.image.blocks[0].mlp.up.weight.grad[0, 0] = torch.nan
    update_if(optimizer, torch.tensor(False))
    assert all(map(torch.equal, weights, model.parameters()))
    assert all(map(torch.equal, states, [value for state in optimizer.state.values() for value in state.values()]))


def test_models_without_such_matrices_and_sharded_ones_are_refused(model, monkeypatch):
    monkeypatch.setattr(muon, "is_sharded", lambda parameter: True)
    with pytest.raises(ValueError, match="optimizer 'muon' needs whole matrices, and fsdp shards them"):
        build_optimizer(model, CONFIG)
    with pytest.raises(ValueError, match="the model has none"):
        muon.MuonWithAdamW([], [], lr=1.0, adamw={})
