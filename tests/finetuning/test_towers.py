"""Trained parts of the towers: the right parameters train, the others have no gradient, no moments and no decay."""

import dataclasses
import re

import pytest
import torch

from miniclip.finetuning import add_lora
from miniclip.finetuning.lora import is_lora, lora_layers
from miniclip.finetuning.towers import apply
from miniclip.runtime import flops
from miniclip.train import TrainConfig
from miniclip.train.optimizer import build_optimizer
from tests.fast.test_seam import model_of
from tests.toys import CONFIG, make_model

SCALE = {"log_scale"}


def trained(model) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def names(model, pattern: str) -> set[str]:
    return {name for name, _ in model.named_parameters() if re.match(pattern, name)}


@pytest.mark.parametrize(
    ("image", "text", "pattern"),
    [
        ("full", "full", r".*"),
        ("frozen", "full", r"text|log_scale"),
        ("full", "frozen", r"image|log_scale"),
        ("last-1", "frozen", r"image\.(blocks\.1|norm_after|pool|projection)|log_scale"),
        ("last-2", "full", r"image\.(blocks|norm_after|pool|projection)|text|log_scale"),
        ("lora", "lora", r".*lora_[AB]"),
        ("lora", "frozen", r"image.*lora_[AB]"),
        ("frozen", "lora", r"text.*lora_[AB]"),
        ("lora", "last-1", r"image.*lora_[AB]|text\.(blocks\.1|norm_after|projection)|log_scale"),
    ],
)
@pytest.mark.parametrize("kind", ["class", "attention"])
def test_trained_parameters(image, text, pattern, kind):
    model = model_of(kind)
    apply(model, TrainConfig(tune_image=image, tune_text=text))
    assert trained(model) == names(model, pattern)
    assert {name.split(".")[0] for name in lora_layers(model)} == {
        name for name, mode in (("image", image), ("text", text)) if mode == "lora"
    }


def test_parameters_that_are_frozen_by_hand_stay_frozen():
    model = model_of()
    model.text.norm_after.requires_grad_(False)
    model.log_scale.requires_grad_(False)
    apply(model, TrainConfig(tune_text="last-1"))
    assert trained(model) == names(model, r"image|text\.(blocks\.1|projection)")


def test_the_logit_bias_follows_the_scale(tokenizer):
    model = make_model(tokenizer, logit_bias=-10.0)
    model.logit_bias.data.fill_(-9.5)  # as after training
    apply(model, TrainConfig(tune_image="lora", tune_text="frozen"))
    assert not model.logit_bias.requires_grad
    assert not model.log_scale.requires_grad
    model = make_model(tokenizer, logit_bias=-10.0)
    apply(model, TrainConfig(tune_image="lora"))
    assert model.logit_bias.requires_grad
    assert model.log_scale.requires_grad


@pytest.mark.parametrize("modes", [("lora", "lora"), ("lora", "frozen"), ("frozen", "lora")])
def test_new_bias_that_only_adapters_would_leave_frozen_is_refused(modes, tokenizer):
    model = make_model(tokenizer)
    model.add_logit_bias()
    before, settings = trained(model), {"tune_image": modes[0], "tune_text": modes[1]}
    refusal = pytest.raises(ValueError, match="the logit bias has its first value, -10, and would stay there")
    with refusal:
        apply(model, TrainConfig(loss="sigmoid", **settings))
    assert trained(model) == before
    assert not lora_layers(model)
    apply(model, TrainConfig(**settings))  # the contrastive loss does not use the bias
    assert lora_layers(model)
    with refusal:
        apply(model, TrainConfig(loss="sigmoid"))  # as after add_lora(model) in Python


def test_settings_reach_the_adapters():
    model = model_of()
    apply(model, TrainConfig(tune_image="lora", lora_rank=2, lora_alpha=1.0, lora_targets="out,q"))
    assert sorted(lora_layers(model)) == [
        f"image.blocks.{i}.attention.{layer}" for i in range(2) for layer in ("out", "qkv")
    ]
    lora = lora_layers(model)["image.blocks.0.attention.qkv"].lora
    assert (lora.rank, lora.alpha, lora.adapted, lora.groups) == (2, 1.0, (0,), 3)


def test_refusals():
    with pytest.raises(ValueError, match="no weight of a tower would train; choose 'full', 'last-1' or 'lora'"):
        apply(model_of(), TrainConfig(tune_image="frozen", tune_text="frozen"))
    with pytest.raises(ValueError, match="tune_image is 'last-3', and the tower has 2 blocks"):
        apply(model_of(), TrainConfig(tune_image="last-3"))
    for name, value, expected in (
        ("tune_image", "last-0", "full, frozen, lora, or last-N, as in last-2"),
        ("tune_text", "half", "full, frozen, lora, or last-N, as in last-2"),
        ("lora_targets", "q,w", "some of q,k,v,out,mlp"),
        ("lora_targets", "", "some of q,k,v,out,mlp"),
        ("lora_rank", 0, "at least 1"),
    ):
        with pytest.raises(ValueError, match=f"{name}.*expected {expected}"):
            TrainConfig(**{name: value})


def test_a_and_b_decay(model):
    apply(model, TrainConfig(tune_image="lora", tune_text="frozen"))
    decays = {id(p): g["weight_decay"] for g in build_optimizer(model, TrainConfig()).param_groups for p in g["params"]}
    assert {decays[id(p)] for name, p in model.named_parameters() if is_lora(name)} == {TrainConfig().weight_decay}
    assert {decays[id(p)] for name, p in model.named_parameters() if name.endswith("bias")} == {0.0}


@pytest.mark.parametrize(("mode", "passes"), [("full", 3), ("lora", 2), ("frozen", 1), ("last-1", None)])
def test_flops_count_what_is_computed(tokenizer, mode, passes):
    config = dataclasses.replace(CONFIG.image, layers=2)
    model = make_model(tokenizer, image=config)
    apply(model, TrainConfig(tune_image=mode))
    once = flops.image_flops(model.config)
    expected = None if passes is None else passes * once + 3 * flops.text_flops(model.config, 9)
    assert flops.pair_flops(model, 9) == expected


def test_a_second_trainer_keeps_the_adapters_of_the_first(start, model):
    start("one", model=model, callbacks=[], tune_image="lora", tune_text="frozen", max_steps=1).fit()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    start("two", model=model, callbacks=[], tune_image="lora", tune_text="frozen", max_steps=1)
    assert model.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    with pytest.raises(ValueError, match="other LoRA adapters already"):
        start("three", model=model, callbacks=[], tune_image="lora", lora_rank=2)


@pytest.mark.parametrize(
    "settings",
    [
        {"tune_image": "lora", "tune_text": "lora"},
        {"tune_image": "last-1", "tune_text": "frozen"},
        {"tune_image": "lora", "tune_text": "full", "micro_batch_size": 3},
        {"tune_image": "lora", "tune_text": "frozen", "precision": "bfloat16", "gradient_checkpointing": True},
    ],
    ids=lambda settings: "-".join(map(str, settings.values())),
)
def test_frozen_weights_have_no_state_and_do_not_move(start, model, settings):
    base = {name: value.clone() for name, value in model.state_dict().items()}
    trainer = start(model=model, callbacks=[], ema_decay=0.5, weight_decay=0.5, lr=0.1, epochs=1, **settings)
    trainer.fit()
    moved = {name for name, value in model.state_dict().items() if name in base and not torch.equal(value, base[name])}
    assert moved <= trained(model)
    changed = {
        name for name, value in model.named_parameters() if is_lora(name) and float(value.detach().abs().max()) > 0
    }
    assert changed | moved == trained(model) - ({"log_scale"} - moved)
    parameters = dict(model.named_parameters())
    with_state = {name for name, parameter in parameters.items() if trainer.optimizer.state.get(parameter)}
    assert with_state == trained(model) == set(trainer.ema.values)
    assert all(parameter.grad is None for parameter in parameters.values())


def test_add_lora_leaves_only_adapters_to_an_own_loop(model):
    """An own loop trains what `add_lora` leaves."""
    add_lora(model, rank=2, targets=["q", "v"])
    sizes = [parameter.numel() for parameter in model.parameters() if parameter.requires_grad]
    assert sum(sizes) == 2 * 2 * (2 * 32 + 2 * 32)  # towers, matrices q and v: rank x (inputs + outputs)
