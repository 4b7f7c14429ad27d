"""Measurement of a spiky validation loss: batches, the best scale, the figures of a run."""

import math

import pytest
import torch

from benchmarks import spikes
from miniclip.evaluation.retrieval import Embeddings


@pytest.fixture
def embeddings():
    generator = torch.Generator().manual_seed(0)
    images = torch.nn.functional.normalize(torch.randn(40, 8, generator=generator), dim=1)
    indices = torch.arange(40).repeat_interleave(2)
    texts = images[indices] + 0.2 * torch.randn(80, 8, generator=generator)
    return Embeddings(images, torch.nn.functional.normalize(texts, dim=1), indices)


def test_losses_of_random_batches(embeddings):
    values = spikes.losses(embeddings, torch.tensor([1.0, 10.0, 100.0]), size=16, seed=0)
    assert values.shape == (spikes.DRAWS, 3)
    assert values[:, 1].std() > 0, "batches differ"
    assert values.mean(dim=0).argmin() == 1, "a scale of 100 is over-confident, a scale of 1 too flat"
    torch.testing.assert_close(values, spikes.losses(embeddings, torch.tensor([1.0, 10.0, 100.0]), size=16, seed=0))


def test_loss_without_information_is_that_of_chance():
    assert spikes.symmetric_loss(torch.zeros(16, 16)) == pytest.approx(math.log(16))


def test_figures_of_a_run():
    names = ["mean", "batch_sd", "best_scale_mean", "best_scale", "scale", "recall", "ema_mean", "ema_recall"]
    rows = [dict.fromkeys(names, 1.0) | {"one_batch": 1.0 + epoch % 2, "recall": float(epoch)} for epoch in range(8)]
    figures = spikes.summary(rows)
    assert figures["spikes of one batch"] > 1
    assert figures["spikes of the mean"] == 0
    assert figures["last R@1"] == 7
    assert "| spikes of one batch |" in spikes.to_markdown({"plain": rows})
