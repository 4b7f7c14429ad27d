"""Training step: equality with its definition, bounds of the scale, bfloat16, the sigmoid loss, gradient caching."""

import copy
import math
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from miniclip.data.augmentation import Augment
from miniclip.losses import contrastive_loss
from miniclip.models.clip import CLIPOutput
from miniclip.models.vision import draw_patches
from miniclip.runtime.memory import checkpoint_blocks
from miniclip.train.config import TrainConfig
from miniclip.train.gradient_caching import cached_step
from miniclip.train.optimizer import build_optimizer
from miniclip.train.step import Inputs, plain_step
from miniclip.train.step_arguments import loss_function, split, step_options
from tests.toys import make_model

CONFIG = TrainConfig(precision="float32", lr=1e-2, max_grad_norm=0.5)


@pytest.fixture
def batch(tokenizer):
    tokens = tokenizer(["a red circle", "a blue square above", "green", "a star, a star, a star"])
    return torch.randn(4, 3, 16, 16), tokens


def step(model, batch, config=CONFIG):
    options, loss = step_options(config, model.device), loss_function(config, model)
    result = plain_step(model, build_optimizer(model, config), Inputs(*batch), loss, options)
    return result.metrics


def test_step_equals_its_definition(model, batch):
    other = copy.deepcopy(model)
    result = step(model, batch)
    out = other(*batch)
    loss = contrastive_loss(out.image_embeddings, out.text_embeddings, out.logit_scale)
    loss.backward()
    norm = math.sqrt(sum(p.grad.square().sum().item() for p in other.parameters()))
    assert float(result["loss"]) == pytest.approx(loss.item())
    assert float(result["grad_norm"]) == pytest.approx(norm, rel=1e-4)
    assert norm > CONFIG.max_grad_norm, "the gradient must be long enough to be clipped"
    for p in other.parameters():
        p.grad *= CONFIG.max_grad_norm / (norm + 1e-6)
    build_optimizer(other, CONFIG).step()
    for (name, mine), theirs in zip(model.named_parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-6, msg=name)
        assert mine.grad is None


@pytest.mark.parametrize(("start", "end"), [(1e5, 100.0), (1e-9, 1.0)])
def test_scale_stays_within_its_bounds(tokenizer, batch, start, end):
    model = make_model(tokenizer, logit_scale=start)
    step(model, batch)
    assert model.log_scale.exp().item() == pytest.approx(end, rel=1e-4)


def test_bfloat16_is_near_float32(model, batch):
    other = copy.deepcopy(model)
    exact = step(model, batch)
    rough = step(other, batch, TrainConfig(precision="bfloat16", lr=1e-2, max_grad_norm=0.5))
    assert float(rough["loss"]) == pytest.approx(float(exact["loss"]), rel=0.02)
    assert rough["loss"].dtype == torch.float32
    assert all(p.dtype == torch.float32 for p in other.parameters())
    assert float(rough["loss"]) != float(exact["loss"]), "autocast did nothing"


def test_sigmoid_loss_needs_a_bias_and_trains_it(model, tokenizer, batch):
    config = TrainConfig(loss="sigmoid", precision="float32")
    with pytest.raises(ValueError, match="logit_bias"):
        loss_function(config, model)
    biased = make_model(tokenizer, logit_scale=10.0, logit_bias=-10.0)
    step(biased, batch, config)
    assert biased.logit_bias.item() != -10.0


def test_only_weights_that_multiply_activations_decay(model):
    optimizer = build_optimizer(model, TrainConfig(weight_decay=0.3))
    names = {id(p): name for name, p in model.named_parameters()}
    groups = {group["weight_decay"]: {names[id(p)] for p in group["params"]} for group in optimizer.param_groups}
    assert groups[0.3] | groups[0.0] == set(names.values())
    assert not groups[0.3] & groups[0.0]
    assert {name.rsplit(".", 1)[-1] for name in groups[0.3]} == {"weight"}
    assert not [name for name in groups[0.3] if "norm" in name or "tokens" in name or "positions" in name]
    assert {"image.patches.weight", "text.projection.weight", "image.blocks.0.mlp.up.weight"} <= groups[0.3]
    assert {"log_scale", "text.tokens.weight", "image.class_token", "image.blocks.0.norm1.weight"} <= groups[0.0]


# gradient caching


class Dropout(torch.nn.Module):
    """A user's block: dropout after a block of the library."""

    def __init__(self, block):
        super().__init__()
        self.block, self.dropout = block, torch.nn.Dropout(0.3)

    def forward(self, *arguments):
        return self.dropout(self.block(*arguments))


class GradientRecorder:
    """An optimizer that records the gradients and leaves the weights."""

    def __init__(self, model):
        self.model, self.gradients, self.defaults = model, {}, {}

    def step(self):
        named = self.model.named_parameters()
        self.gradients = {name: p.grad.clone() for name, p in named if p.grad is not None}

    def zero_grad(self):
        self.model.zero_grad()


def random_inputs(model, size, seed, patch_dropout=0.0):
    """Return a function from rows to inputs, with augmentation and patch dropout drawn for the whole batch."""
    random = torch.Generator().manual_seed(seed)
    pixels = torch.randint(256, (size, 3, 16, 16), generator=random, dtype=torch.uint8)
    tokens = torch.randint(599, (size, 9), generator=random)
    ends = torch.randint(1, 9, (size, 1), generator=random)
    tokens = torch.where(torch.arange(9) >= ends, 599, tokens)  # captions of 1 to 8 tokens and their end
    augment = Augment(0.6, max_rotation_degrees=20.0, flip=True, color_jitter=0.3)
    drawn = augment.draw(size, random)
    patches = draw_patches(size, model.config.image.patches, patch_dropout, random) if patch_dropout else None
    device, dtype = model.device, model.log_scale.dtype

    def inputs(rows):
        x = model.preprocess.normalise(augment.apply(pixels[rows], drawn[rows])).to(device, dtype)
        return Inputs(x, tokens[rows].to(device), None if patches is None else patches[rows].to(device))

    return inputs


def taken(kind, model, inputs, size, config):
    """Return loss and gradients of a step."""
    recorder = GradientRecorder(model)
    rows = split(size, config.micro_batch_size)
    batch = inputs(slice(0, size)) if kind is plain_step else [inputs(part) for part in rows]
    result = kind(model, recorder, batch, loss_function(config, model), step_options(config, model.device))
    return result.metrics["loss"], recorder.gradients


def in_one_graph(model, inputs, size, config):
    """Return the expected loss and gradients: the parts are embedded in one graph that keeps all activations."""
    options, outs = step_options(config, model.device), []
    for part in [inputs(rows) for rows in split(size, config.micro_batch_size)]:
        with options.autocast():
            outs.append(model(*part)[:2])
    images, texts = (torch.cat(side) for side in zip(*outs, strict=True))
    loss = loss_function(config, model)(CLIPOutput(images, texts, model.log_scale.exp(), model.logit_bias))
    loss.backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return loss.detach(), gradients


def assert_same(one, other, tolerance):
    """Compare losses, and each parameter's gradient relative to the norm of the whole gradient."""
    torch.testing.assert_close(other[0], one[0], rtol=tolerance, atol=0)
    assert one[1].keys() == other[1].keys()
    length = torch.stack([g.norm() for g in one[1].values()]).norm()
    for name, gradient in one[1].items():
        assert float((other[1][name] - gradient).norm() / length) <= tolerance, name


def caching(micro, loss="contrastive", **settings):
    return TrainConfig(**{"precision": "float32", "max_grad_norm": 1e9, **settings}, loss=loss, micro_batch_size=micro)


sizes, micros, seeds = st.integers(2, 9), st.integers(1, 10), st.integers(0, 2**31)
losses, shares = st.sampled_from(["contrastive", "sigmoid"]), st.sampled_from([0.0, 0.5])


@pytest.fixture(scope="module")
def biased(tokenizer):
    return make_model(tokenizer, logit_scale=10.0, logit_bias=-10.0)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-6)])
@given(sizes, micros, losses, shares, seeds)
@settings(max_examples=15)
def test_cached_step_equals_the_plain_one(biased, dtype, tolerance, size, micro, loss, share, seed):
    model, config = copy.deepcopy(biased).to(dtype), caching(micro, loss)
    inputs = random_inputs(model, size, seed, share)
    plain, cached = (taken(kind, model, inputs, size, config) for kind in (plain_step, cached_step))
    assert_same(plain, cached, tolerance)
    assert float(cached[1]["log_scale"]) == pytest.approx(float(plain[1]["log_scale"]), rel=1e-3, abs=1e-6)


@given(sizes, micros, losses, shares, seeds)
@settings(max_examples=15)
def test_both_passes_draw_the_same_dropout(biased, size, micro, loss, share, seed):
    model = with_dropout(biased).double()
    config, inputs = caching(micro, loss), random_inputs(model, size, seed, share)
    results, after = [], []
    for kind in (partial(taken, cached_step), in_one_graph):
        torch.manual_seed(seed)
        results.append(kind(model, inputs, size, config))
        after.append(torch.get_rng_state())
    assert_same(results[1], results[0], 1e-10)
    assert torch.equal(*after), "the next step would draw the same numbers again"


def with_dropout(model):
    model = copy.deepcopy(model).train()
    for tower in (model.image, model.text):
        tower.blocks[0] = Dropout(tower.blocks[0])
    return model


def test_dropout_drops(biased):
    """Without dropout, the tests around this one prove nothing."""
    model = with_dropout(biased)
    inputs = random_inputs(model, 3, 0)
    losses = [taken(cached_step, model, inputs, 3, caching(2))[0] for _ in range(2)]
    assert losses[0] != losses[1]


@pytest.mark.parametrize("loss", ["contrastive", "sigmoid"])
@pytest.mark.parametrize("checkpointed", [False, True])
def test_both_passes_are_the_same_in_bfloat16(biased, loss, checkpointed):
    model, config = with_dropout(biased), caching(3, loss, precision="bfloat16")
    checkpoint_blocks(model, checkpointed)
    inputs = random_inputs(model, 8, 1, 0.5)
    torch.manual_seed(2)
    cached = taken(cached_step, model, inputs, 8, config)
    torch.manual_seed(2)
    assert_same(in_one_graph(model, inputs, 8, config), cached, 1e-6)


@pytest.mark.parametrize("frozen", [["image"], ["text"], ["image", "text"], ["image", "log_scale"]])
def test_frozen_towers(biased, frozen):
    """Locked-image tuning (Zhai et al. 2022): a frozen tower gets no gradient."""
    model = copy.deepcopy(biased)
    for name in frozen:
        getattr(model, name).requires_grad_(False)
    inputs = random_inputs(model, 5, 0)
    plain, cached = (taken(kind, model, inputs, 5, caching(2)) for kind in (plain_step, cached_step))
    assert_same(plain, cached, 1e-6)
    assert not [name for name in cached[1] if name.split(".")[0] in frozen]


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_both_passes_draw_the_same_dropout_on_a_gpu(biased, precision):
    model, config = with_dropout(biased).cuda(), caching(3, precision=precision)
    inputs = random_inputs(model, 8, 1, 0.5)
    torch.manual_seed(2)
    cached = taken(cached_step, model, inputs, 8, config)
    torch.manual_seed(2)
    assert_same(in_one_graph(model, inputs, 8, config), cached, 1e-5)


def test_auto_micro_batch_size_must_be_resolved_before_a_step():
    with pytest.raises(ValueError, match="find_micro_batch_size"):
        split(8, "auto")
