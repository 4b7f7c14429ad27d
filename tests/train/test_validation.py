"""Validation: loss and recall on held-out data, and their values by chance."""

import math

import pytest
import torch
from torch.utils.data import Subset

from miniclip.evaluation.retrieval import Embeddings, recalls
from miniclip.train import Trainer
from miniclip.train.config import TrainConfig
from miniclip.train.step_arguments import loss_function
from miniclip.train.validation import chance_recall, validate


def test_repeats_exactly_and_has_the_chance_loss(model, val_data):
    config = TrainConfig(seed=3)
    loss = loss_function(config, model)
    first, second = (validate(model, val_data, loss, config, 8)[0] for _ in range(2))
    assert first == second
    assert first["val_chance_loss"] == pytest.approx(math.log(8))
    whole = validate(model, val_data, loss, config, 500)[0]
    assert whole["val_chance_loss"] == pytest.approx(math.log(20)), "the data are one batch"


def test_batches_are_of_the_size_in_training(model, train_data, val_data, tmp_path):
    """With fewer training images than `batch_size`, both losses are of smaller batches."""
    config = TrainConfig(epochs=1, batch_size=16, precision="float32", log_every=1)
    options = {"config": config, "run_dir": tmp_path / "run", "callbacks": [], "device": "cpu"}
    history = Trainer(model, Subset(train_data, range(6)), val_data, **options).fit()
    (evaluation,) = history.evaluations
    assert evaluation["val_chance_loss"] == pytest.approx(math.log(6))
    assert history.steps[-1]["chance_loss"] == pytest.approx(math.log(6))


def test_collapsed_model_has_chance_loss_and_no_recall(model, val_data):
    model.encode_image = lambda items: torch.ones(len(items), 16) / 4
    model.encode_text = lambda items: torch.ones(len(items), 16) / 4
    config = TrainConfig()
    metrics, embedded = validate(model, val_data, loss_function(config, model), config, 8)
    assert embedded.image_indices.tolist() == [i for i in range(20) for _ in val_data.captions[i]]
    assert metrics["val_loss"] == pytest.approx(metrics["val_chance_loss"])
    assert metrics["text_to_image"]["R@1"] == 0


@pytest.mark.parametrize(
    "counts", [[5, 5, 5, 5], [1, 2, 3], [1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1]], ids=["5", "uneven", "1"]
)
def test_chance_recall_is_that_of_random_embeddings(counts):
    expected = chance_recall(counts, ks=(1, 5))
    indices = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    generator = torch.Generator().manual_seed(0)
    total = {way: dict.fromkeys(values, 0.0) for way, values in expected.items()}
    for _ in range(1500):
        sides = (torch.randn(n, 64, generator=generator) for n in (len(counts), len(indices)))
        result = recalls(Embeddings(*(torch.nn.functional.normalize(side) for side in sides), indices), ks=(1, 5))
        for way, values in result.items():
            for k, value in values.items():
                total[way][k] += value / 1500
    for way, values in expected.items():
        assert total[way] == pytest.approx(values, abs=2.5), way


def test_chance_recall_of_the_docstring():
    chance = chance_recall([5, 5, 5, 5])
    assert chance["text_to_image"] == {"R@1": 25, "R@5": 100, "R@10": 100}
    assert chance["image_to_text"]["R@1"] == pytest.approx(25)
    assert chance["image_to_text"]["R@5"] == pytest.approx(80.6, abs=0.05)
