"""Learning rates by tower and depth, and the numbers of a default run."""

import pytest
import torch

from miniclip.train import TrainConfig
from miniclip.train.optimizer import build_optimizer, set_learning_rate
from tests.toys import CONFIG, make_model

# before these settings existed, at float32 on a CPU
DEFAULT_LOSSES = [
    *(2.4806771, 2.8269119, 2.2742867, 2.2368617, 2.2013059, 2.2123828, 2.1158986, 2.1089978, 2.1004016, 2.0867457),
]


def test_a_default_run_computes_what_it_did_before_these_settings(start):
    trainer = start(callbacks=[])
    history = trainer.fit()
    assert [record["loss"] for record in history.steps] == pytest.approx(DEFAULT_LOSSES, rel=1e-5)
    assert {group["lr_scale"] for group in trainer.optimizer.param_groups} == {1.0}
    assert [group["weight_decay"] for group in trainer.optimizer.param_groups] == [0.0, 0.1]


def rates(model, **settings):
    """The rate of each parameter, by name, at a base rate of 1."""
    optimizer = build_optimizer(model, TrainConfig(**settings))
    set_learning_rate(optimizer, 1.0)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found = {names[id(p)]: group["lr"] for group in optimizer.param_groups for p in group["params"]}
    assert found.keys() == set(names.values())
    return found


def test_rates_of_towers_projections_and_scale(model):
    found = rates(model, image_lr_scale=0.1, text_lr_scale=0.2, projection_lr_scale=3.0, logit_scale_lr_scale=0.0)
    for name, rate in found.items():
        expected = 0.1 if name.startswith("image") else 0.2 if name.startswith("text") else 0.0
        assert rate == (3.0 if "projection" in name else expected), name


def test_layer_decay_counts_from_the_output(tokenizer):
    model = make_model(tokenizer, image=CONFIG.replace_image(layers=3).image)
    found = rates(model, layer_decay=0.5, image_lr_scale=2.0)
    for name, expected in {
        "image.projection.weight": 1.0,
        "image.norm_after.bias": 2.0,
        "image.blocks.2.mlp.up.weight": 1.0,
        "image.blocks.0.attention.qkv.weight": 0.25,
        "image.norm_before.weight": 0.125,
        "image.patches.weight": 0.125,
        "image.class_token": 0.125,
        "text.blocks.0.norm1.weight": 0.5,
        "text.tokens.weight": 0.25,
        "text.positions": 0.25,
        "log_scale": 1.0,
    }.items():
        assert found[name] == expected, name


def test_weights_at_rate_zero_do_not_move_and_the_logged_rate_is_the_base_rate(start):
    trainer = start(callbacks=[], max_steps=3, text_lr_scale=0.0, lr=2e-3, warmup_fraction=0.0)
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    history = trainer.fit()
    after = trainer.model.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {name for name in before if name.startswith(("image.", "text.projection", "log_scale"))}
    assert history.steps[0]["lr"] == 2e-3
