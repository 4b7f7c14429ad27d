"""The figures of a look: against hand-worked cases and other formulas, and what a run's records carry."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from miniclip.data.loader import Batch
from miniclip.diagnostics import health
from miniclip.diagnostics.health import (
    ROWS,
    alignment,
    caption_keys,
    effective_rank,
    embedding_figures,
    knowing_nothing,
    learned,
    look,
    picture_keys,
    uniformity,
)
from miniclip.losses.reference import contrastive_loss, l2_normalize, sigmoid_loss
from miniclip.models.clip import CLIPOutput

sizes = st.tuples(st.integers(2, 20), st.integers(2, 20), st.integers(0, 2**31))


def points(n, width, seed):
    return l2_normalize(torch.randn(n, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64))


def test_figures_worked_by_hand():
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
def test_figures_are_those_of_their_equations(size):
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
def test_a_turned_space_has_the_same_figures(size):
    x, y = points(*size), points(*size[:2], size[2] + 1)
    turn = torch.linalg.qr(torch.randn(size[1], size[1], dtype=torch.float64)).Q
    assert embedding_figures(x @ turn, y @ turn) == pytest.approx(embedding_figures(x, y), rel=1e-6, abs=1e-6)


def test_embeddings_that_are_not_finite_have_no_figures():
    x = points(4, 3, 0)
    assert embedding_figures(x, torch.full_like(x, math.nan)) == {}


def test_knowing_nothing_is_the_least_loss_of_embeddings_all_alike():
    same = torch.ones(7, 4).double()
    assert knowing_nothing(7, "contrastive") == pytest.approx(float(contrastive_loss(same, same, 10.0)))
    losses = [float(sigmoid_loss(same, same, 1.0, bias)) for bias in torch.arange(-8, 3, 0.01).tolist()]
    assert knowing_nothing(7, "sigmoid") == pytest.approx(min(losses), rel=1e-4)
    assert knowing_nothing(1, "contrastive") == knowing_nothing(1, "sigmoid") == 0


def batch_of(tokens, pixels=None):
    n = len(tokens)
    pixels = torch.randint(256, (n, 3, 16, 16), dtype=torch.uint8) if pixels is None else pixels
    return Batch(pixels, tokens, *[torch.arange(n)] * (len(Batch._fields) - 2))


def seen(n, scale=50.0):
    x = points(n, 8, 0)
    return CLIPOutput(x, x, torch.tensor(scale), None)


def test_the_least_loss_is_what_repeated_captions_leave(tokenizer):
    captions = ["a red circle"] * 3 + ["a blue square", "a green star", "a green star"]
    record = look(batch_of(tokenizer(captions)), seen(6), 0, tokenizer, "contrastive")
    assert record["captions"] == 3
    assert record["log_captions"] == pytest.approx(math.log(3))
    assert record["pictures"] == 6
    assert record["loss_nothing"] == pytest.approx(math.log(6))
    directions = torch.eye(3).double()[torch.tensor([0, 0, 0, 1, 2, 2])]  # the best that a model can do
    best = float(contrastive_loss(directions, directions, 1e4))
    assert record["loss_least"] == pytest.approx(best)
    assert learned({**record, "loss": best}) == pytest.approx(1)
    assert learned({**record, "loss": math.log(6)}) == pytest.approx(0)


def test_where_nothing_can_be_told_apart_there_is_no_share_learned(tokenizer):
    record = look(batch_of(tokenizer(["a star"] * 4)), seen(4), 0, tokenizer, "contrastive")
    assert learned({**record, "loss": 1.0}) is None
    assert learned({"loss": 1.0}) is None


def test_keys_do_not_depend_on_padding(tokenizer):
    captions = ["a star", "a red circle above a blue square", "a star"]
    alone = torch.cat([caption_keys(tokenizer([caption]), tokenizer) for caption in captions])
    assert torch.equal(caption_keys(tokenizer(captions), tokenizer), alone)
    assert torch.equal(caption_keys(tokenizer(captions, 40, pad=True), tokenizer), alone)
    assert len(set(alone.tolist())) == 2


@pytest.mark.parametrize("side", [16, 30, 64, 96])
def test_pictures_are_told_apart_by_their_pixels(side):
    pixels = torch.randint(256, (5, 3, side, side), dtype=torch.uint8)
    pixels[3] = pixels[1]
    keys = picture_keys(pixels).tolist()
    assert keys[3] == keys[1]
    assert len(set(keys)) == 4
    pixels[3, :, side // 3 : side // 3 + 4, 2:6] ^= 255  # a change of a few pixels
    assert len(set(picture_keys(pixels).tolist())) == 5


def test_only_so_many_rows_of_the_whole_batch_are_looked_at(tokenizer, monkeypatch):
    shown = []
    monkeypatch.setattr(health, "embedding_figures", lambda x, y: shown.append(len(x)) or {})
    n = ROWS + 10
    for first in (0, 100, ROWS, 1000):
        look(batch_of(tokenizer(["a star"] * n)), seen(n), first, tokenizer, "contrastive")
    assert shown == [ROWS, ROWS - 100, 0, 0]


def test_the_records_of_looks_carry_the_figures_and_a_stop_adds_none(start):
    trainer = start(max_steps=7, log_every=3)
    history = trainer.fit()
    assert [r["step"] for r in history.steps if "alignment" in r] == [3, 5, 6, 7]  # 5 ends an epoch, 7 the run
    assert all(r["grad_norm_image"] > 0 and r["grad_norm_text"] > 0 for r in history.steps)
    for record in history.steps:
        parts = [record[f"grad_norm_{name}"] for name in ("image", "text", "rest")]
        assert math.hypot(*parts) == pytest.approx(record["grad_norm"], rel=1e-5)


def test_figures_are_those_of_the_embeddings_in_micro_batches_too(start):
    plain, cached = start("plain", max_steps=3), start("cached", max_steps=3, micro_batch_size=3)
    one, other = (trainer.fit().steps[-1] for trainer in (plain, cached))
    for name in ("alignment", "uniformity_text", "effective_rank_image", "grad_norm_image", "loss_least"):
        assert other[name] == pytest.approx(one[name], rel=1e-3), name
