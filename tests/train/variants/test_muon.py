"""Muon: which parameters it trains, its update, and steps that change nothing."""

import copy
import pickle

import pytest
import torch
from torch import nn

from miniclip.train import TrainConfig
from miniclip.train.optimizer import build_optimizer
from miniclip.train.step_arguments import update_if
from miniclip.train.variants import muon
from tests.toys import CONFIG as CONFIG_OF_TOYS
from tests.toys import IMAGE_KINDS, make_model

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


@pytest.mark.parametrize("shape", [(384, 128), (128, 512), (64, 64), (1, 8)])
def test_the_update_is_that_of_newton_schulz_steps(shape):
    matrix, coefficients = torch.randn(shape), (3.4445, -4.775, 2.0315)
    expected = matrix.double() / matrix.double().norm()
    for _ in range(5):
        a, b, c = coefficients
        square = expected @ expected.T
        expected = a * expected + (b * square + c * square @ square) @ expected
    torch.testing.assert_close(muon.orthogonalized(matrix, coefficients, 5, 1e-7).double(), expected, rtol=0, atol=2e-5)
    assert not muon.orthogonalized(torch.zeros(shape), coefficients, 5, 1e-7).any()


def test_steps_are_those_of_torch_up_to_its_bfloat16():
    weights = [[nn.Parameter(torch.full(shape, 0.5)) for shape in ((96, 32), (32, 32), (32, 64))] for _ in range(2)]
    optimizers = [
        muon.GramMuon(weights[0], lr=0.01, weight_decay=0.1),
        torch.optim.Muon(weights[1], lr=0.01, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"),
    ]
    for _ in range(3):
        for pair in zip(*weights, strict=True):
            gradient = torch.randn(pair[0].shape)
            for weight in pair:
                weight.grad = gradient.clone()
        for optimizer in optimizers:
            optimizer.step()
    for own, other in zip(*weights, strict=True):
        torch.testing.assert_close(own, other, rtol=0, atol=3e-4)  # three updates of 0.002 in the mean
        torch.testing.assert_close(
            optimizers[0].state[own]["momentum_buffer"], optimizers[1].state[other]["momentum_buffer"]
        )


def test_the_update_stays_on_the_device_of_the_weight():
    """A convolutional stem on a GPU takes this form too; the meta device refuses tensors of other devices."""
    weight = nn.Parameter(torch.zeros(8, 3, 7, 7, device="meta"))
    weight.grad = torch.zeros_like(weight)
    muon.GramMuon([weight], lr=0.01).step()
    assert muon.orthogonalized(weight.detach().flatten(1), muon.COEFFICIENTS, 5, 1e-7).device.type == "meta"


@pytest.mark.parametrize("shape", [(8, 3, 7, 7), (16, 1, 3, 3)])
def test_a_convolution_is_a_matrix_with_a_row_for_each_output_channel(shape):
    kernels = nn.Parameter(torch.randn(shape))
    matrix = nn.Parameter(kernels.detach().flatten(1).clone())
    kernels.grad = torch.randn(shape)
    matrix.grad = kernels.grad.flatten(1)
    for weight in (kernels, matrix):
        muon.GramMuon([weight], lr=0.01).step()
    torch.testing.assert_close(kernels.flatten(1), matrix, rtol=0, atol=0)


def test_muon_trains_the_layers_of_a_convolutional_stem_but_its_last_one(tokenizer):
    model = make_model(tokenizer, image=CONFIG_OF_TOYS.replace_image(**IMAGE_KINDS["conv"]).image)
    optimizer = prepared(model)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    matrices = {names[id(p)] for group in optimizer.muon.param_groups for p in group["params"]}
    assert matrices - MATRICES == {f"image.patches.layers.{layer}.conv.weight" for layer in range(4)}
    optimizer.step()


def test_steps_that_are_not_finite_change_nothing(model):
    optimizer = prepared(model)
    update_if(optimizer, torch.tensor(True))
    weights = [parameter.detach().clone() for parameter in model.parameters()]
    states = [value.clone() for state in optimizer.state.values() for value in state.values()]
    model.image.blocks[0].mlp.up.weight.grad[0, 0] = torch.nan
    update_if(optimizer, torch.tensor(False))
    assert all(map(torch.equal, weights, model.parameters()))
    assert all(map(torch.equal, states, [value for state in optimizer.state.values() for value in state.values()]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_of_any_precision_are_updated_in_float32(dtype):
    """The directions of the gradient differ by four orders of magnitude."""
    weight = nn.Parameter(torch.zeros(64, 64, dtype=dtype))
    random = torch.Generator().manual_seed(0)
    weight.grad = (torch.randn(64, 64, generator=random) * torch.logspace(0, -4, 64)).to(dtype)
    muon.GramMuon([weight], lr=1.0).step()
    assert float(torch.linalg.matrix_norm(weight.detach().float(), 2)) == pytest.approx(1.2 * 0.2 * 8, rel=0.02)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))])
def test_copies_and_pickles_take_the_same_step(model, copied):
    optimizer = prepared(model)
    optimizer.step()
    other, other_optimizer = copied((model, optimizer))
    for parameter, twin in zip(model.parameters(), other.parameters(), strict=True):
        twin.grad = parameter.grad.clone()
    optimizer.step()
    other_optimizer.step()
    assert all(map(torch.equal, model.parameters(), other.parameters()))


def test_models_without_such_matrices_and_sharded_ones_are_refused(model, monkeypatch):
    monkeypatch.setattr(muon, "is_sharded", lambda parameter: True)
    with pytest.raises(ValueError, match="optimizer 'muon' needs whole matrices, and fsdp shards them"):
        build_optimizer(model, CONFIG)
    with pytest.raises(ValueError, match="the model has none"):
        muon.MuonWithAdamW([], [], lr=1.0, adamw={})
