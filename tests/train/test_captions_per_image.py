"""Several captions of an image in a step: the draw, the step in parts, the loss, the metrics, resuming."""

import math

import pytest
import torch

from miniclip.data import Captions
from miniclip.data.loader import Batch
from miniclip.data.options import LoaderOptions
from miniclip.data.sources.captions import CaptionTable
from miniclip.diagnostics.loss_floor import loss_floor
from miniclip.losses import contrastive_loss, sigmoid_loss
from miniclip.runs.metrics_file import MetricsFile
from miniclip.runtime.flops import pair_flops
from miniclip.runtime.memory import step_bytes, synthetic_step
from miniclip.tokenizer import Tokenizer
from miniclip.train import TrainConfig, Trainer
from miniclip.train.gradient_caching import cached_step
from miniclip.train.metrics import chance_loss
from miniclip.train.optimizer import build_optimizer
from miniclip.train.step_arguments import InputPreparation, loss_function, step_options
from tests.toys import make_model
from tests.train.test_trainer import StopAt, assert_same_run

ROWS = torch.tensor([0, 4, 2, 7, 5])
both_losses = pytest.mark.parametrize("loss", ["contrastive", "sigmoid"])


NAMED = [[f"{i} {j}" for j in range(1 if i == 1 else 4)] for i in range(6)]  # one caption of image 1, else four


@pytest.fixture
def table():
    tokenizer = Tokenizer.train([caption for group in NAMED for caption in group], 540)
    data = Captions([f"{i}.jpg" for i in range(6)], NAMED)

    def draw(indices, epoch, per_image=1):
        table = CaptionTable(data, tokenizer, LoaderOptions(4, context_length=16, seed=7, captions_per_image=per_image))
        _, drawn = table.pair(torch.empty(0), indices, torch.full_like(indices, epoch))
        return [tokenizer.decode(row.tolist()) for row in drawn]

    return draw


def test_captions_are_drawn_without_repetition_and_begin_with_the_single_draw(table):
    indices = torch.tensor([3, 1, 0, 5])
    draws = set()
    for epoch in range(30):
        single, several, all_four = (table(indices, epoch, per_image) for per_image in (1, 3, 4))
        assert several[::3] == all_four[::4] == single == table(indices, epoch)
        for row, index in enumerate(indices.tolist()):
            group = several[3 * row : 3 * row + 3]
            assert group == all_four[4 * row : 4 * row + 3]
            assert set(group) <= set(NAMED[index])
            assert len(set(group)) == min(3, len(NAMED[index]))
        draws.add(tuple(several[:3]))
    assert len(draws) > 15, "of 24 ordered draws"
    assert sorted(table(torch.tensor([3]), 0, 8)) == sorted(2 * NAMED[3]), "all, then all again"


def batch_of(tokenizer, captions, images=5):
    texts = ["a red circle", "a blue square", "a dog", "a green triangle left of a red circle"] * images
    pixels = torch.randint(0, 256, (images, 3, 16, 16), dtype=torch.uint8)
    return Batch(pixels, tokenizer(texts[: captions * images]), *[ROWS[:images]] * 3)


@both_losses
@pytest.mark.parametrize("settings", [{}, {"positives": "all"}, {"label_smoothing": 0.1}, {"patch_dropout": 0.5}])
def test_a_step_in_parts_equals_the_whole_step(tokenizer, loss, settings):
    results = []
    for micro_batch_size in (None, 2):
        config = TrainConfig(
            captions_per_image=3,
            loss=loss,
            micro_batch_size=micro_batch_size,
            precision="float32",
            **settings,
        )
        model = make_model(tokenizer, logit_scale=10.0, logit_bias=-10.0).double()
        model.image.register_forward_pre_hook(lambda tower, arguments: (arguments[0].double(), *arguments[1:]))
        batch = batch_of(tokenizer, 3)
        inputs = InputPreparation(model, config, 8)(batch, 0)
        assert [len(part.tokens) for part in inputs] == ([15] if micro_batch_size is None else [6, 6, 3])
        optimizer, options = build_optimizer(model, config), step_options(config, model.device)
        torch.manual_seed(0)
        result = cached_step(model, optimizer, inputs, loss_function(config, model).for_batch(batch), options)
        results.append([result.metrics["loss"], result.metrics["grad_norm"], *model.parameters()])
        torch.manual_seed(0)
    for whole, parts in zip(*results, strict=True):
        torch.testing.assert_close(parts, whole, rtol=1e-7, atol=1e-9)


@both_losses
@pytest.mark.parametrize("positives", ["pairs", "all"])
def test_loss_of_a_batch(tokenizer, loss, positives):
    """The positives are those of the settings; a call with pairs is the loss of validation."""
    model = make_model(tokenizer, logit_scale=10.0, logit_bias=-10.0)
    config = TrainConfig(captions_per_image=2, loss=loss, positives=positives, label_smoothing=0.2)
    batch, function = batch_of(tokenizer, 2), loss_function(config, model)
    output = model(torch.randn(5, 3, 16, 16), batch.tokens)
    plain = contrastive_loss if loss == "contrastive" else sigmoid_loss
    numbers = [output.logit_scale] if loss == "contrastive" else [output.logit_scale, output.logit_bias]
    own = torch.arange(5).repeat_interleave(2)
    texts = torch.tensor([0, 1, 2, 3] * 3)[:10]  # the captions 0 and 1 are those of the images 0, 2 and 4
    labels = (own[::2], own) if positives == "pairs" else (texts.view(5, 2), texts)
    expected = plain(*output[:2], *numbers, ids=labels[0], text_ids=labels[1], label_smoothing=0.2)
    torch.testing.assert_close(function.for_batch(batch)(output), expected)
    pairs = output._replace(text_embeddings=output.text_embeddings[::2])
    assert torch.equal(function(pairs), plain(*pairs[:2], *numbers))
    batch = batch._replace(tokens=batch.tokens[::2])
    for other in (TrainConfig(loss=loss), TrainConfig(loss=loss, positives="all")):
        ids = None if other.positives == "pairs" else torch.tensor([0, 1, 0, 1, 0])
        expected = plain(*pairs[:2], *numbers, ids=ids, text_ids=ids)
        torch.testing.assert_close(loss_function(other, model).for_batch(batch)(pairs), expected)


@both_losses
@pytest.mark.parametrize("positives", ["pairs", "all"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("rows", [[[1, 2], [3, 4], [5, 6]], [[1, 2], [1, 3], [2, 2]], [[1], [2], [2], [3]]])
def test_no_logits_have_a_lower_loss_than_the_floor(loss, positives, smoothing, rows):
    """Optimise free logits of each image and distinct caption, for each direction of the contrastive loss by itself."""
    config = TrainConfig(
        loss=loss, positives=positives, label_smoothing=smoothing, captions_per_image=len(rows[0]), batch_size=9
    )
    keys = torch.tensor(rows).flatten()
    images = torch.arange(len(rows)).repeat_interleave(len(rows[0]))
    if positives == "all":
        own = (torch.tensor(rows)[:, :, None] == keys).any(dim=1)
    else:
        own = torch.arange(len(rows))[:, None] == images
    best = [lowest(own, keys, loss, smoothing, side) for side in range(1 if loss == "sigmoid" else 2)]
    assert loss_floor(rows, config) == pytest.approx(sum(best) / len(best), abs=2e-3)
    assert loss_floor(rows, config) <= sum(best) / len(best) + 1e-9
    if not smoothing and len(set(keys.tolist())) == len(keys):
        chance = chance_loss(len(rows), loss, len(rows[0]))
        n, m = own.shape
        same = torch.full((n, m), math.log(1 / (n - 1)), dtype=torch.float64)  # the best for the sigmoid loss
        at = [cross_entropy(same, own, loss, 0.0, side) for side in (0, 1)]
        assert chance == pytest.approx(float(at[0] if loss == "sigmoid" else sum(at) / 2))


def lowest(own, keys, loss, smoothing, side):
    """Lowest loss of logits that are equal for equal captions."""
    distinct, places = keys.unique(return_inverse=True)
    logits = torch.zeros(len(own), len(distinct), dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([logits], lr=1, max_iter=200, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        value = cross_entropy(logits[:, places], own, loss, smoothing, side)
        value.backward()
        return value

    optimizer.step(closure)
    return float(cross_entropy(logits.detach()[:, places], own, loss, smoothing, side))


def cross_entropy(logits, own, loss, smoothing, side):
    """One direction of the contrastive loss, or the sigmoid loss, of a matrix of logits."""
    positives = own.double()
    if loss == "sigmoid":
        targets = positives * (1 - smoothing) + smoothing / 2
        return torch.nn.functional.binary_cross_entropy_with_logits(logits, targets, reduction="sum") / positives.sum()
    logits, positives = (logits, positives) if side == 0 else (logits.T, positives.T)
    targets = positives / positives.sum(dim=1, keepdim=True) * (1 - smoothing) + smoothing / logits.shape[1]
    return torch.nn.functional.cross_entropy(logits, targets)


def test_a_run_has_right_metrics_and_resumes_bit_for_bit(start, train_data, val_data, monkeypatch):
    monkeypatch.setattr("miniclip.runtime.flops.peak_flops", lambda device, precision: 1e12)
    settings = {"captions_per_image": 3, "positives": "all", "label_smoothing": 0.1, "log_every": 1, "epochs": 1}
    trainer = start("whole", **settings)
    history = trainer.fit()
    for record in history.steps:
        flops = pair_flops(trainer.model, record["tokens"], captions=3)
        assert record["mfu"] == pytest.approx(record["samples_per_second"] * flops / 1e12, abs=1e-4)
        assert record["pairs"] == 8
        assert 16 < record["distinct_captions"] <= 24
        assert record["chance_loss"] == pytest.approx(math.log(8) + math.log(3) / 2)
        assert record["loss"] > record["loss_floor"] > math.log(3) / 2
    assert history.evaluations[0]["val_chance_loss"] == pytest.approx(math.log(8))
    stopped = start("stopped", [MetricsFile(), StopAt(2)], **settings)
    with pytest.raises(KeyboardInterrupt):
        stopped.fit()
    resumed = Trainer.resume(stopped.run_dir, train_data, val_data, callbacks=[MetricsFile()], device="cpu")
    resumed.fit()
    assert_same_run(resumed.run_dir, trainer.run_dir)


def test_settings_are_checked(start):
    with pytest.raises(ValueError, match=r"captions_per_image is 9, and no training image has more than .* captions"):
        start(captions_per_image=9)


def test_memory_grows_with_the_captions(model):
    one, four = (step_bytes(model, 8, synthetic_step(model, captions=c), captions=c) for c in (1, 4))
    assert four > 1.5 * one
