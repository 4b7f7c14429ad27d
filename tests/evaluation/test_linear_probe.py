"""Linear probes: the sweep, few-shot draws, and both protocols against the code that they follow."""

import copy

import pytest
import torch

from miniclip.evaluation import ShapeClasses, few_shot, linear_probe
from miniclip.evaluation.features import image_features
from miniclip.evaluation.probes.linear_models import Features, train_layer
from miniclip.evaluation.probes.linear_probe import SWEEP_STEPS, Splits, draw_shots, hold_out, probe, sweep


def clusters(images: int, classes: int = 3, seed: int = 0, spread: float = 0.5) -> Features:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(images) % classes
    centers = torch.randn(classes, 8, generator=torch.Generator().manual_seed(9))
    return Features(centers[labels] + spread * torch.randn(images, 8, generator=generator), labels)


@pytest.mark.parametrize("protocol", ["lbfgs", "adamw"])
def test_separable_clusters_are_learned(protocol):
    pytest.importorskip("sklearn")
    splits = Splits(clusters(45), clusters(60, seed=1), clusters(15, seed=2), 3)
    result = probe(splits, protocol).metrics()
    assert result["top1"] > 90
    assert result["mean_per_class_recall"] == pytest.approx(result["top1"], abs=5)


def test_lbfgs_is_logistic_regression_of_scikit_learn():
    linear_model = pytest.importorskip("sklearn.linear_model")
    train, test = clusters(60, spread=2), clusters(60, seed=1, spread=2)
    result = probe(Splits(train, test, None, 3), "lbfgs", shots=8)
    few = draw_shots(train, 3, 8, 0)
    theirs = linear_model.LogisticRegression(C=0.316, max_iter=1000).fit(few.x.numpy(), few.labels.numpy())
    assert result.metrics()["top1"] == pytest.approx(100 * theirs.score(test.x.numpy(), test.labels.numpy()))
    assert result.strength == 0.316


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_probe_of_a_caller_without_gradients(context):
    splits = Splits(clusters(45), clusters(60, seed=1, spread=2), clusters(15, seed=2), 3)
    expected = probe(splits, "adamw", shots=4).ranks
    with context():
        assert torch.equal(probe(Splits(clusters(45), *splits[1:]), "adamw", shots=4).ranks, expected)


@pytest.mark.parametrize("protocol", ["lbfgs", "adamw"])
def test_class_without_training_images_is_never_predicted(protocol):
    pytest.importorskip("sklearn")
    angles = torch.arange(36) * torch.pi / 18
    x = torch.stack([angles.cos(), angles.sin()], dim=1)  # a circle, of which the training images are a small part
    train = Features(x[:2], torch.tensor([0, 1]))
    for seed in range(3):
        classifier = probe(Splits(train, train, train, 3), protocol, seed=seed).classifier
        assert classifier(x).argmax(dim=1).max() < 2


def test_probe_leaves_the_random_state_of_gpus_as_it_is(monkeypatch):
    monkeypatch.setattr(torch.cuda, "manual_seed_all", lambda seed: pytest.fail("the GPUs were seeded"))
    probe(Splits(clusters(45), clusters(60), None, 3), "adamw", shots=1)


def test_adamw_trains_the_layer_of_clip_benchmark(monkeypatch):
    peer = pytest.importorskip("clip_benchmark.metrics.linear_probe")
    data = clusters(40)  # one batch, so that the order does not matter
    for owner in (torch.Tensor, torch.nn.Module):
        monkeypatch.setattr(owner, "cuda", lambda self: self)
    monkeypatch.setattr(peer.torch.nn, "DataParallel", lambda model, device_ids: model)
    theirs = peer.train([(data.x, data.labels)], 8, 3, 0.01, 0.1, 10, False, "cpu", 5)
    torch.manual_seed(5)
    layer = torch.nn.Linear(8, 3)
    train_layer(layer, data, 0.01, torch.Generator().manual_seed(0))
    torch.testing.assert_close(layer.weight, theirs.weight, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("best", [0, 13, 48, 96])
def test_sweep_finds_the_peak_of_a_hill(best):
    grid = torch.logspace(-6, 6, SWEEP_STEPS + 1, dtype=torch.float64).tolist()
    tried = []

    def fit(data: Features, strength: float):
        distance = abs(grid.index(strength) - best)
        tried.append(strength)
        right = 100 - distance  # accuracy falls with the distance to the best strength

        def scores(x):
            return torch.nn.functional.one_hot((torch.arange(100) >= right).long(), 2)

        return scores

    data = Features(torch.zeros(100, 1), torch.zeros(100, dtype=torch.int64))
    assert sweep(fit, data, data, "lbfgs") == grid[best]
    assert len(tried) == len(set(tried)) <= 7 + 2 * 4


def test_shots_are_balanced_and_seeded():
    train = clusters(60)
    few = draw_shots(train, 3, 4, 0)
    assert torch.bincount(few.labels).tolist() == [4, 4, 4]
    assert torch.equal(few.x, draw_shots(train, 3, 4, 0).x)
    assert not torch.equal(few.x, draw_shots(train, 3, 4, 1).x)
    with pytest.raises(ValueError, match="21 shots: expected 1 to 20"):
        draw_shots(train, 3, 21, 0)


def test_held_out_images_are_a_part_of_the_training_images():
    kept, held_out = hold_out(clusters(50), 0)
    assert (len(kept.labels), len(held_out.labels)) == (40, 10)
    together = torch.cat([kept.x, held_out.x])
    assert torch.equal(together.sort(dim=0)[0], clusters(50).x.sort(dim=0)[0])


def test_features_are_those_before_the_projection(shape_model, colors):
    images = [colors[index][0] for index in range(5)]
    features = image_features(shape_model, images)
    assert features.shape == (5, shape_model.config.image.width)
    with torch.no_grad():
        projected = shape_model.image.projection(features)
    torch.testing.assert_close(projected, shape_model.encode_image(images, normalize=False), atol=1e-5, rtol=0)
    assert shape_model.encode_image(images).shape == (5, shape_model.config.embed_dim)


def test_features_of_a_compiled_model(shape_model, colors):
    images, model = [colors[index][0] for index in range(4)], copy.deepcopy(shape_model)
    compiled = torch.compile(model, backend="eager")
    assert torch.equal(image_features(compiled, images), image_features(shape_model, images))
    assert torch.equal(compiled.encode_image(images), shape_model.encode_image(images)), "the model is as it was"
    assert torch.equal(compiled.encode_text("a"), shape_model.encode_text("a"))


def test_few_shot_probe_of_a_model(shape_model):
    pytest.importorskip("sklearn")
    train, test = ShapeClasses("color", "train", image_size=16), ShapeClasses("color", "test", image_size=16)
    result = few_shot(shape_model, train, test, shots=(1, 8), seeds=2)
    assert [len(values) for values in result.values()] == [2, 2]
    assert sum(result[8]) > sum(result[1])  # even random features know colors


def test_bad_arguments_are_named(shape_model, colors):
    with pytest.raises(ValueError, match="protocol 'svm'"):
        linear_probe(shape_model, colors, colors, protocol="svm")
    with pytest.raises(ValueError, match="different class names"):
        linear_probe(shape_model, colors, ShapeClasses("shape", "test", image_size=16), protocol="adamw")
    with pytest.raises(ValueError, match="a class has no training images"):
        draw_shots(clusters(6), 4, 1, 0)
