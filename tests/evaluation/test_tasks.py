"""Tasks of `miniclip eval`: few-shot probes, figures under corruptions, and their tables and records."""

import math
from collections import Counter
from functools import partial

import pytest
import torch

from miniclip.evaluation import CachedEncoder, LabelledImages, ShapeClasses, tasks
from miniclip.evaluation.comparison import Metric, Result, as_records, table
from miniclip.evaluation.corruptions import CORRUPTIONS, CorruptedImages
from miniclip.evaluation.features import image_features
from miniclip.evaluation.probes.few_shot import few_shot_probes, possible_shots
from miniclip.evaluation.probes.linear_models import lbfgs
from miniclip.evaluation.probes.linear_probe import Splits
from miniclip.evaluation.retrieval import LazyImages, embed, recalls
from miniclip.evaluation.robustness import Robustness, robustness
from miniclip.evaluation.zero_shot import class_vectors, metrics, predictions, scale_of
from miniclip.inference.kept_pixels import KeptPixels
from tests.evaluation.test_linear_probe import clusters

STEPS = Robustness("top1", 80.0, {"blur": [80.0, 70.0, 60.0, 50.0, 40.0], "noise": [80.0] * 5})


class TestFewShot:
    def test_every_number_of_shots_has_every_seed(self):
        pytest.importorskip("sklearn")
        splits = Splits(clusters(30, spread=2), clusters(60, seed=1, spread=2), None, 3)
        results = few_shot_probes(splits, "lbfgs", (1, 4), 3)
        assert {count: len(drawn) for count, drawn in results.items()} == {1: 3, 4: 3}
        assert len({tuple(result.ranks.tolist()) for result in results[1]}) > 1

    def test_usual_shots_end_at_the_smallest_class(self):
        assert possible_shots(clusters(15), ["a", "b", "c"]) == [1, 2, 4]
        with pytest.raises(ValueError, match="the class 'd' has no training images"):
            possible_shots(clusters(15), ["a", "b", "c", "d"])

    def test_task_has_mean_spread_and_interval(self, shape_model, colors):
        pytest.importorskip("sklearn")
        train = ShapeClasses("color", "train", image_size=16)
        outcome = tasks.run_few_shot(shape_model, train, colors, [1, 2], 3)
        assert [(metric.name, metric.shots) for metric in outcome.metrics] == [("1 shot", 1), ("2 shots", 2)]
        first = outcome.metrics[0]
        assert first.value == pytest.approx(sum(first.seeds) / 3)
        assert first.spread == pytest.approx(torch.tensor(first.seeds).std().item())
        assert first.low <= first.value <= first.high
        line = table([Result("m", "few-shot", outcome.metrics)]).splitlines()[2]
        assert line == f"1 shot    {first.value:.1f} ± {first.spread:.1f} [{first.low:.1f}, {first.high:.1f}]"


def test_classifier_of_far_features_has_no_false_ties():
    """Probabilities of far features round to 0, and their logarithms would be equal."""
    pytest.importorskip("sklearn")
    classify = lbfgs(3, 0)(clusters(30), 100.0)
    scores = classify(1e6 * torch.randn(20, 8))
    assert scores.isfinite().all()
    assert all(len(row.unique()) == 3 for row in scores)


class TestRobustness:
    @pytest.fixture(autouse=True)
    def _few(self, monkeypatch):
        few = {name: CORRUPTIONS[name] for name in ("contrast", "jpeg")}
        monkeypatch.setattr("miniclip.evaluation.robustness.CORRUPTIONS", few)

    def test_figures_are_those_of_the_corrupted_images(self, shape_model, colors):
        outcome = tasks.run_zero_shot(shape_model, colors)
        images = LabelledImages(colors)
        (result,) = robustness(shape_model, images, outcome.figures)
        assert result.clean == pytest.approx(outcome.metrics[0].value)
        assert list(result.corrupted) == ["contrast", "jpeg"]
        corrupted = CorruptedImages(images, shape_model.preprocess, "contrast", 5)
        classes = class_vectors(shape_model, images, None)
        embeddings = shape_model.encode_image(corrupted)
        expected = metrics(predictions(embeddings, classes, images.labels, scale_of(shape_model), images.class_names))
        assert result.corrupted["contrast"][4] == pytest.approx(expected["top1"])

    def test_retrieval_under_corruption(self, shape_model, small_shapes):
        outcome = tasks.run_retrieval(shape_model, small_shapes)
        images = LazyImages(small_shapes)
        results = robustness(shape_model, images, outcome.figures)
        assert [result.figure for result in results] == ["image_to_text R@1", "text_to_image R@1"]
        corrupted = CorruptedImages(images, shape_model.preprocess, "jpeg", 3)
        expected = recalls(embed(shape_model, small_shapes.captions, corrupted))
        assert results[0].corrupted["jpeg"][2] == pytest.approx(expected["image_to_text"]["R@1"])
        assert results[1].corrupted["jpeg"][2] == pytest.approx(expected["text_to_image"]["R@1"])

    @pytest.mark.parametrize(("kept", "times"), [(2**30, 2), (0, 11)])
    def test_images_are_decoded_once_while_memory_suffices(self, shape_model, small_shapes, kept, times, monkeypatch):
        monkeypatch.setattr("miniclip.evaluation.robustness.KeptPixels", partial(KeptPixels, max_bytes=kept))
        decoded = Counter()

        class Counted(LazyImages):
            def __getitem__(self, index):
                decoded[index] += not isinstance(index, slice)
                return super().__getitem__(index)

        (result,) = robustness(shape_model, Counted(small_shapes), {"sum": lambda rows: float(rows.sum())})
        corrupted = CorruptedImages(LazyImages(small_shapes), shape_model.preprocess, "jpeg", 2)
        assert result.corrupted["jpeg"][1] == float(image_features(shape_model, corrupted).sum())
        assert {decoded[index] for index in range(len(small_shapes))} == {times}  # once for the clean images

    def test_probe_under_corruption(self, shape_model, colors):
        pytest.importorskip("sklearn")
        encoder = CachedEncoder(shape_model)
        outcome = tasks.run_probe(encoder, ShapeClasses("color", "val", image_size=16), colors)
        (result,) = robustness(encoder, LabelledImages(colors), outcome.figures)
        assert result.clean == pytest.approx(outcome.metrics[0].value)
        assert result.mean("contrast") < result.clean

    def test_nan_is_refused(self, shape_model, small_shapes, monkeypatch):
        broken = torch.full((len(small_shapes), shape_model.config.embed_dim), torch.nan)
        monkeypatch.setattr(shape_model, "encode_image", lambda images: broken)
        with pytest.raises(ValueError, match="24 of 24 image embeddings are NaN or infinite"):
            tasks.run_retrieval(shape_model, small_shapes)


def test_table_of_a_figure_under_corruptions():
    lines = table([Result("m", "top1 under corruptions", [], STEPS)]).splitlines()
    assert lines[1] == "m: top1 80.0 without corruption"
    rows = {line.split()[0]: [float(cell) for cell in line.split()[1:]] for line in lines[4:]}
    assert rows["blur"] == [80, 70, 60, 50, 40, 60, 20]
    assert rows["mean"] == [80, 75, 70, 65, 60, 70, 10]
    assert rows["drop"] == [0, 5, 10, 15, 20, 10]


def test_records_have_equal_keys():
    records = as_records(
        [Result("m", "a", [Metric("top1", math.nan), Metric("1 shot", 5.0, seeds=(4.0, 6.0), shots=1)]),
         Result("m", "b", [], STEPS)]
    )  # fmt: skip
    assert len({tuple(record) for record in records}) == 1
    assert records[0]["value"] is None
    assert (records[1]["seeds"], records[1]["spread"]) == ([4.0, 6.0], pytest.approx(math.sqrt(2)))
    found = {(record["corruption"], record["severity"]): record["drop"] for record in records[2:]}
    assert found[("blur", 3)] == 20
    assert found[("blur", None)] == 20
    assert found[("mean", None)] == 10
    assert found[(None, None)] is None
