"""A step: the same as writing it out, the scale's bounds, bf16 near float32, the sigmoid loss."""

import copy
import math

import pytest
import torch

from miniclip.losses import contrastive_loss
from miniclip.train.optimizer import build_optimizer
from miniclip.train.settings import TrainConfig
from miniclip.train.steps import cached_step, loss_function, plain_step

from .conftest import make_model

CONFIG = TrainConfig(precision="float32", lr=1e-2, clip_norm=0.5)


@pytest.fixture
def batch(tokenizer):
    tokens = tokenizer(["a red circle", "a blue square above", "green", "a star, a star, a star"])
    return torch.randn(4, 3, 16, 16), tokens


def step(model, batch, config=CONFIG):
    kind = plain_step if config.micro_batch_size is None else cached_step
    optimizer, loss_of = build_optimizer(model, config), loss_function(config, model)
    return kind(model, optimizer, lambda rows: (batch[0][rows], batch[1][rows], None), len(batch[0]), loss_of, config)


def test_a_step_is_what_its_words_say(model, batch):
    other = copy.deepcopy(model)
    result = step(model, batch)
    out = other(*batch)
    loss = contrastive_loss(out.image_embeddings, out.text_embeddings, out.logit_scale)
    loss.backward()
    norm = math.sqrt(sum(p.grad.square().sum().item() for p in other.parameters()))
    assert float(result.loss) == pytest.approx(loss.item())
    assert float(result.grad_norm) == pytest.approx(norm, rel=1e-4)
    assert norm > CONFIG.clip_norm, "the test wants a gradient that is clipped"
    for p in other.parameters():
        p.grad *= CONFIG.clip_norm / (norm + 1e-6)
    build_optimizer(other, CONFIG).step()
    for (name, mine), theirs in zip(model.named_parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-6, msg=name)
        assert mine.grad is None


@pytest.mark.parametrize(("start", "end"), [(1e9, 100.0), (1e-9, 1.0)])
def test_the_scale_stays_within_its_bounds(tokenizer, batch, start, end):
    model = make_model(tokenizer, logit_scale=start)
    step(model, batch)
    assert model.log_scale.exp().item() == pytest.approx(end, rel=1e-4)


def test_bfloat16_is_near_float32(model, batch):
    other = copy.deepcopy(model)
    exact = step(model, batch)
    rough = step(other, batch, TrainConfig(precision="bfloat16", lr=1e-2, clip_norm=0.5))
    assert float(rough.loss) == pytest.approx(float(exact.loss), rel=0.02)
    assert rough.loss.dtype == torch.float32
    assert all(p.dtype == torch.float32 for p in other.parameters())
    assert float(rough.loss) != float(exact.loss), "autocast did nothing"


def test_the_sigmoid_loss_needs_a_bias_and_trains_it(model, tokenizer, batch):
    config = TrainConfig(loss="sigmoid", precision="float32")
    with pytest.raises(ValueError, match="logit_bias"):
        loss_function(config, model)
    biased = make_model(tokenizer, logit_scale=10.0, logit_bias=-10.0)
    step(biased, batch, config)
    assert biased.bias.item() != -10.0


def test_decay_is_for_weights_that_multiply_activations_alone(model):
    optimizer = build_optimizer(model, TrainConfig(weight_decay=0.3))
    names = {id(p): name for name, p in model.named_parameters()}
    groups = {group["weight_decay"]: {names[id(p)] for p in group["params"]} for group in optimizer.param_groups}
    assert groups[0.3] | groups[0.0] == set(names.values())
    assert not groups[0.3] & groups[0.0]
    assert {name.rsplit(".", 1)[-1] for name in groups[0.3]} == {"weight"}
    assert not [name for name in groups[0.3] if "norm" in name or "tokens" in name or "positions" in name]
    assert {"image.patches.weight", "text.projection.weight", "image.blocks.0.mlp.up.weight"} <= groups[0.3]
    assert {"log_scale", "text.tokens.weight", "image.class_token", "image.blocks.0.norm1.weight"} <= groups[0.0]


class Dropout(torch.nn.Module):
    """A block with dropout behind it, to see that both passes over a part drop the same."""

    def __init__(self, block):
        super().__init__()
        self.block = block

    def forward(self, *arguments):
        return torch.nn.functional.dropout(self.block(*arguments), 0.5)


@pytest.mark.parametrize("micro", [1, 2, 3, 4, 9])
@pytest.mark.parametrize("loss", ["contrastive", "sigmoid"])
def test_a_cached_step_is_the_plain_one(tokenizer, batch, micro, loss):
    model = make_model(tokenizer, logit_scale=10.0, logit_bias=-10.0).double()
    other, batch = copy.deepcopy(model), (batch[0].double(), batch[1])
    settings = {"precision": "float32", "loss": loss, "clip_norm": 0.5, "lr": 1e-2}
    plain = step(model, batch, TrainConfig(**settings))
    cached = step(other, batch, TrainConfig(**settings, micro_batch_size=micro))
    for a, b in zip(plain, cached, strict=True):
        torch.testing.assert_close(b, a, rtol=1e-6, atol=1e-9)
    for (name, a), b in zip(model.named_parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(b, a, rtol=0, atol=1e-6, msg=name)


def test_a_cached_step_replays_the_random_state(tokenizer, batch):
    """Dropout draws for a part what it drew for it before: the step is that of the same masks in one graph."""
    model = make_model(tokenizer)
    model.image.blocks[0] = Dropout(model.image.blocks[0])
    other = copy.deepcopy(model)
    config = TrainConfig(precision="float32", micro_batch_size=2, clip_norm=1e9)
    torch.manual_seed(5)
    cached = step(model, batch, config)
    torch.manual_seed(5)
    halves = [other(batch[0][rows], batch[1][rows]) for rows in (slice(0, 2), slice(2, 4))]
    images, texts = (torch.cat(side) for side in ([h[0] for h in halves], [h[1] for h in halves]))
    loss = contrastive_loss(images, texts, other.log_scale.exp())
    loss.backward()
    norm = math.sqrt(sum(p.grad.square().sum().item() for p in other.parameters() if p.grad is not None))
    assert cached.loss.item() == pytest.approx(loss.item(), rel=1e-6)
    assert cached.grad_norm.item() == pytest.approx(norm, rel=1e-5)
