"""Batch and embedding metrics against hand-worked cases and other formulas, and in the records of a run."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from miniclip.data.loader import Batch
from miniclip.data.sources.captions import caption_keys
from miniclip.diagnostics import batch_metrics as module
from miniclip.diagnostics.batch_metrics import (
    ROWS,
    batch_metrics,
    chance_loss,
    image_keys,
    learned_fraction,
)
from miniclip.diagnostics.embedding_metrics import alignment, effective_rank, embedding_metrics, uniformity
from miniclip.losses.reference import contrastive_loss, l2_normalize, sigmoid_loss
from miniclip.models.clip import CLIPOutput
from miniclip.train.config import TrainConfig

sizes = st.tuples(st.integers(2, 20), st.integers(2, 20), st.integers(0, 2**31))


def points(n, width, seed):
    return l2_normalize(torch.randn(n, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64))


def test_metrics_match_hand_worked_cases():
    same, right = torch.tensor([[1.0, 0.0]] * 3).double(), torch.eye(2).double()
    assert alignment(same, same) == 0
    assert alignment(right, right.flip(0)) == pytest.approx(2)
    assert alignment(right, -right) == pytest.approx(4)
    assert uniformity(same) == pytest.approx(0)
    assert uniformity(right) == pytest.approx(-4)
    assert uniformity(torch.cat([right[:1], -right[:1]])) == pytest.approx(-8)
    assert uniformity(right[:1]) == 0
    assert effective_rank(same) == pytest.approx(1, abs=1e-5)
    assert effective_rank(right) == pytest.approx(2)
    assert effective_rank(torch.tensor([[2.0, 0.0], [0.0, 1.0]]).double()) == pytest.approx(3 / 2 ** (2 / 3))


@given(sizes)
def test_metrics_match_their_equations(size):
    n, _, seed = size
    x, y = points(*size), points(*size[:2], seed + 1)
    distances = torch.cdist(x, x).square()[~torch.eye(n, dtype=torch.bool)]
    assert uniformity(x) == pytest.approx(math.log(torch.exp(-2 * distances).mean()))
    share = torch.linalg.svdvals(x)
    share = share[share > 1e-12] / share.sum()
    assert effective_rank(x) == pytest.approx(math.exp(-float((share * share.log()).sum())), rel=1e-6)
    assert 1 <= effective_rank(x) <= min(size[:2]) + 1e-6
    assert -8 <= uniformity(x) <= 0
    assert 0 <= alignment(x, y) <= 4


@given(sizes)
def test_metrics_are_invariant_to_rotation(size):
    x, y = points(*size), points(*size[:2], size[2] + 1)
    rotation = torch.linalg.qr(torch.randn(size[1], size[1], dtype=torch.float64)).Q
    assert embedding_metrics(x @ rotation, y @ rotation) == pytest.approx(embedding_metrics(x, y), rel=1e-6, abs=1e-6)


def test_nonfinite_embeddings_have_no_metrics():
    x = points(4, 3, 0)
    assert embedding_metrics(x, torch.full_like(x, math.nan)) == {}


def test_chance_loss_is_the_lowest_loss_of_equal_embeddings():
    same = torch.ones(7, 4).double()
    assert chance_loss(7, "contrastive") == pytest.approx(float(contrastive_loss(same, same, 10.0)))
    losses = [float(sigmoid_loss(same, same, 1.0, bias)) for bias in torch.arange(-8, 3, 0.01).tolist()]
    assert chance_loss(7, "sigmoid") == pytest.approx(min(losses), rel=1e-4)
    assert chance_loss(1, "contrastive") == chance_loss(1, "sigmoid") == 0


def batch_of(tokens, pixels=None):
    n = len(tokens)
    pixels = torch.randint(256, (n, 3, 16, 16), dtype=torch.uint8) if pixels is None else pixels
    return Batch(pixels, tokens, *[torch.arange(n)] * (len(Batch._fields) - 2))


def output_of(n, scale=50.0):
    x = points(n, 8, 0)
    return CLIPOutput(x, x, torch.tensor(scale), None)


def test_loss_floor_is_the_lowest_loss_with_repeated_captions(tokenizer):
    captions = ["a red circle"] * 3 + ["a blue square", "a green star", "a green star"]
    record = batch_metrics(batch_of(tokenizer(captions)), output_of(6), 0, tokenizer, TrainConfig())
    assert record["distinct_captions"] == 3
    assert record["log_distinct_captions"] == pytest.approx(math.log(3))
    assert record["distinct_images"] == 6
    assert record["chance_loss"] == pytest.approx(math.log(6))
    directions = torch.eye(3).double()[torch.tensor([0, 0, 0, 1, 2, 2])]  # the best embeddings
    best = float(contrastive_loss(directions, directions, 1e4))
    assert record["loss_floor"] == pytest.approx(best)
    assert learned_fraction({**record, "loss": best}) == pytest.approx(1)
    assert learned_fraction({**record, "loss": math.log(6)}) == pytest.approx(0)


def test_learned_fraction_needs_distinct_captions(tokenizer):
    record = batch_metrics(batch_of(tokenizer(["a star"] * 4)), output_of(4), 0, tokenizer, TrainConfig())
    assert learned_fraction({**record, "loss": 1.0}) is None
    assert learned_fraction({"loss": 1.0}) is None


def test_caption_keys_do_not_depend_on_padding(tokenizer):
    captions = ["a star", "a red circle above a blue square", "a star"]
    alone = torch.cat([caption_keys(tokenizer([caption]), tokenizer) for caption in captions])
    assert torch.equal(caption_keys(tokenizer(captions), tokenizer), alone)
    assert torch.equal(caption_keys(tokenizer(captions, 40, pad=True), tokenizer), alone)
    assert len(set(alone.tolist())) == 2


@pytest.mark.parametrize("side", [16, 30, 64, 96])
def test_image_keys_depend_on_pixels(side):
    pixels = torch.randint(256, (5, 3, side, side), dtype=torch.uint8)
    pixels[3] = pixels[1]
    keys = image_keys(pixels).tolist()
    assert keys[3] == keys[1]
    assert len(set(keys)) == 4
    pixels[3, :, side // 3 : side // 3 + 4, 2:6] ^= 255  # a change of a few pixels
    assert len(set(image_keys(pixels).tolist())) == 5


def test_embedding_metrics_use_the_first_rows_of_the_whole_batch(tokenizer, monkeypatch):
    sizes = []
    monkeypatch.setattr(module, "embedding_metrics", lambda x, y: sizes.append(len(x)) or {})
    n = ROWS + 10
    for first in (0, 100, ROWS, 1000):
        batch_metrics(batch_of(tokenizer(["a star"] * n)), output_of(n), first, tokenizer, TrainConfig())
    assert sizes == [ROWS, ROWS - 100, 0, 0]


def test_records_have_batch_metrics_every_log_every_steps_and_at_epoch_ends(start):
    trainer = start(max_steps=7, log_every=3)
    history = trainer.fit()
    assert [r["step"] for r in history.steps if "alignment" in r] == [3, 5, 6, 7]  # 5 ends an epoch, 7 the run
    assert all(r["grad_norm_image"] > 0 and r["grad_norm_text"] > 0 for r in history.steps)
    for record in history.steps:
        parts = [record[f"grad_norm_{name}"] for name in ("image", "text", "rest")]
        assert math.hypot(*parts) == pytest.approx(record["grad_norm"], rel=1e-5)


def test_micro_batches_give_the_same_metrics(start):
    plain, cached = start("plain", max_steps=3), start("cached", max_steps=3, micro_batch_size=3)
    plain_record, cached_record = (trainer.fit().steps[-1] for trainer in (plain, cached))
    for name in ("alignment", "uniformity_text", "effective_rank_image", "grad_norm_image", "loss_floor"):
        assert cached_record[name] == pytest.approx(plain_record[name], rel=1e-3), name
